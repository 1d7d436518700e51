"""What an exported model must be able to do, whether its users are read from content or have vectors of their own.

Legend: `B` batch, `L` history length, `M` modalities, `P` parts of an item (the modalities first), `D_m` raw width, `S`
state width, `D` vector width, `H` history row, `Q` queries, `K` candidates, `N` items, `I` items of the catalogue.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from api_schemas.manifest import Modality, Scorer

_PRODUCTS_AT_ONCE = 1 << 22
"""Products of queries and items of one piece: 16 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpec:
    """What a data set offers to a model."""

    modalities: tuple[Modality, ...]
    trained_I: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Which items of the catalogue training users have, bool; none where nothing is learned for single items."""

    def used(self, names: tuple[str, ...] | None) -> list[int]:
        """Return the columns of the modalities that are asked for; None asks for all.

        Raises:
            ValueError: The data set lacks one.
        """
        known = [modality.name for modality in self.modalities]
        strange = sorted(set(names or ()) - set(known))
        if strange:
            raise ValueError(f"model.modalities: {strange[0]!r} is not among the data set's {known}")
        return [m for m, name in enumerate(known) if names is None or name in names]


def over_queries(products: Tensor, *, dim: int, scorer: Scorer) -> Tensor:
    """Return the scores of inner products that lie, one for each query of a user, along `dim` (`index.ranking` too)."""
    assert scorer != "ranker", "a ranker takes no inner products"
    return products.amax(dim=dim) if scorer == "max" else products.logsumexp(dim=dim)


def score_catalogue(queries_BQD: Tensor, items_ND: Tensor, *, scorer: Scorer) -> Tensor:
    """Return the scores `[B, N]` of users with these queries; the products of all queries are never there at once."""
    size = max(1, _PRODUCTS_AT_ONCE // (queries_BQD.shape[1] * len(items_ND)))
    pieces_BQD = torch.split(queries_BQD, size)
    return torch.cat([over_queries(piece_BQD @ items_ND.T, dim=1, scorer=scorer) for piece_BQD in pieces_BQD])


class ServableModel(nn.Module, ABC):
    """Items from parts, users from items. Rows never interact: the gradient of a sum is the gradient of each row."""

    reads_ages: ClassVar[bool] = False
    """Whether it counts how long ago each behaviour of a history was."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        *,
        dim: int,
        state_dim: int,
        history_length: int,
        num_queries: int,
        extra_parts: Sequence[str] = (),
        history_dim: int | None = None,
        query_dim: int | None = None,
        scorer: Scorer = "max",
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.extra_parts = tuple(extra_parts)
        """Parts that the model adds to the modalities, such as `id`."""
        self.dim = dim
        """D: width of item vectors, and of queries unless `query_dim` says otherwise."""
        self.state_dim = state_dim
        """S: width of the state of a part."""
        self.history_length = history_length
        """L: histories are cut to the last L items."""
        self.num_queries = num_queries
        """Q: queries of one user."""
        self.query_dim = dim if query_dim is None else query_dim
        """Width of a query."""
        self.scorer: Scorer = scorer
        """What the Q inner products make together, or that there are none."""
        self.history_is_candidate = history_dim is None
        """An item's row in a history is its vector; else `history_rows` says what it is."""
        self.history_dim = dim if history_dim is None else history_dim
        """H: width of an item's row in a history."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """Return the names of an item's states: the modalities in order, then what the model adds."""
        return (*(modality.name for modality in self.modalities), *self.extra_parts)

    def part_presence(self, presence_BM: Tensor) -> Tensor:
        """Return which parts `[B, P]` an item has that is known by its modalities alone: all extra ones, or nothing."""
        any_B1 = presence_BM.any(dim=-1, keepdim=True)
        return torch.cat([presence_BM, *[any_B1 for _ in self.extra_parts]], dim=-1)

    @abstractmethod
    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, S]`, zero where absent, of raw vectors per modality `[B, D_m]`."""

    @abstractmethod
    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return item vectors `[..., D]` of states `[..., P, S]` and presence `[..., P]` bool."""

    @abstractmethod
    def encode_users(self, rows_BLH: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:
        """Return queries `[B, Q, D]` of history rows `[B, L, H]` and mask `[B, L]` bool.

        Padding may hold anything finite and changes nothing. An empty history gives a default, never NaN. L may differ
        from `history_length`.

        Args:
            rows_BLH: Of the past items.
            mask_BL: Where there are any.
            ages_BL: Seconds from each behaviour to the latest one of its history, as it was before anything of it was
                hidden; None: all are of one time. Read where `reads_ages` says so alone.
        """

    @abstractmethod
    def score(self, queries_BQD: Tensor, items_ND: Tensor) -> Tensor:
        """Return the scores `[B, N]` of users with these queries, each with every item; for whole catalogues, too."""

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return what the user encoder reads of items, `[..., H]`: unless the model says otherwise, their vectors."""
        return self.fuse(states_PS, presence_P)

    def parts_of(
        self,
        features: Sequence[Tensor],
        presence_BM: Tensor,
        rows_B: Tensor | None,  # noqa: ARG002  # most know items by their content alone
        *,
        chance: torch.Generator | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return states `[B, P, S]` and presence `[B, P]` of items of the trained catalogue, with all that is learned.

        Args:
            features: As `project` takes them.
            presence_BM: `[B, M]` bool.
            rows_B: Where in the catalogue the items are; None: they are all of it, in order.
            chance: Of a training step, for what such a step leaves to chance; None outside of training.
        """
        return self.project(features, presence_BM), self.part_presence(presence_BM)

    def encode_items(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return item vectors `[B, D]` of raw vectors, of items of which no more is known."""
        return self.fuse(self.project(features, presence_BM), self.part_presence(presence_BM))


class Retriever(ServableModel):
    """The score of a user and an item is made of the Q inner products of the user's queries with the item.

    So an index finds the best items, and a score can be taken apart; see `over_queries`.
    """

    def score(self, queries_BQD: Tensor, items_ND: Tensor) -> Tensor:
        """Return the scores `[B, N]`."""
        return score_catalogue(queries_BQD, items_ND, scorer=self.scorer)

    @abstractmethod
    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the item vector split by part, `[..., P, D]`: they sum to `fuse` of the same input.

        Attention, where there is any, is held at its values, so the split of a score is exact and additive, but not
        causal.
        """

    def history_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the history row split by part, `[..., P, H]`: they sum to `history_rows` of the same input."""
        return self.modality_parts(states_PS, presence_P)

    @property
    def user_map(self) -> Tensor | None:
        """Return A `[H, D]` where a user is one query, sum_l w_l h_l A plus a constant; else None.

        h_l is a history row, which must be linear in its states, and w is `history_weights`. Gradients with respect to
        a history are then constants times A, and need no differentiation to be explained.
        """
        return None

    def history_weights(self, real_BL: Tensor) -> Tensor:
        """Return w of `user_map`, `[B, L]`: zero where no item is, else what depends on nothing but where items are."""
        return real_BL / real_BL.sum(dim=-1, keepdim=True).clamp_min(1)
