"""What all rankers share: a network scores a user and an item together, where no inner product can.

An item's candidate vector is made of its parts, and a user's query of the user, once each. What is left to be done for
every pair of them is the `Ranker`. It is exported as it is, so a service orders the candidates that another model has
retrieved, and no vector of a pair is ever stored.

Legend: `U` users, `I` items, `M` modalities, `R_m` width of a modality, `R` width of all together, `P` = M + 1 parts of
an item (the modalities, then `id`), `S` state width, `D` width of a candidate, `F` learned numbers of an item, `Q`
width of a query, `H` width of a history row, `B` users, `K` items of each, `X` items asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import ModalityName, Scorer
from training.models.id_model import LearnedUsers
from training.models.servable import FeatureSpec
from training.settings import Settings

_NUMBERS_AT_ONCE = 1 << 20
"""Of a network's widest layer over all pairs of a piece: 4 MB, which stay in the processor's cache."""


class RankerSettings(Settings):
    """What every ranker can be told."""

    has_exact_fold_in: ClassVar[bool] = False
    """Whether the family reads users from histories by itself."""

    dim: int = Field(64, ge=1, le=1024, description="Width of what is learned of each user and item.")
    history_length: int = Field(100, ge=1, le=500, description="L: live histories are cut to the last L items.")
    modalities: tuple[ModalityName, ...] | None = Field(
        None, description="Modalities that enter the score. Unset: all. Empty: none, ids alone."
    )
    init_std: float = Field(0.1, gt=0, le=10, description="Deviation of the normal law that tables start from.")
    loss: Literal["bce", "bpr"] = Field(
        "bce", description="bce: cross-entropy of yes and no for each item alone. bpr: a user's items before others."
    )
    negatives: int = Field(4, ge=1, le=1000, description="Random items that the user lacks, for each pair.")

    @abstractmethod
    def build(self, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> "RankerModel":
        """Return a freshly initialised model of these users, items and modalities.

        Raises:
            ValueError: The settings do not fit the data.
        """


class NetworkSettings(RankerSettings):
    """Of the families with a network of several layers."""

    dropout: float = Field(0.0, ge=0, lt=1, description="Share of what each layer reads that is left out in training.")


class Ranker(nn.Module, ABC):
    """From candidates and queries to scores. The last number of a state, and of a candidate, is added to the score."""

    def __init__(self, *, state_dim: int, dim: int, query_dim: int, row_dim: int, pair_dim: int) -> None:
        super().__init__()
        self.state_dim, self.dim, self.query_dim, self.row_dim = state_dim, dim, query_dim, row_dim
        self._pair_dim = pair_dim
        self.offset = nn.Parameter(torch.zeros(()))
        """Of all scores: it ranks nothing, and spares the items' own numbers from carrying it."""

    @abstractmethod
    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return candidates `[..., D]` of states `[..., P, S]` and presence `[..., P]` bool."""

    @abstractmethod
    def pair_scores(self, queries_B1Q: Tensor, candidates_KD: Tensor, chance: torch.Generator | None) -> Tensor:
        """Return what `forward` does, without its constants."""

    def rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return what users are read from, `[..., H]`: unless the family says otherwise, the sum of what is there."""
        return present(states_PS, presence_P).sum(dim=-2)

    def id_state(self, learned_F: Tensor) -> Tensor:
        """Return the state `[..., S]` of part `id` of items with these learned numbers: as a rule, these."""
        return learned_F

    def forward(self, queries_B1Q: Tensor, candidates_KD: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """Return scores `[B, K]`.

        Args:
            queries_B1Q: Users.
            candidates_KD: The same for all users, or each user's own `[B, K, D]`.
            chance: In training, where whatever is drawn comes from; None: nothing is left out.
        """
        return self.pair_scores(queries_B1Q, candidates_KD, chance) + candidates_KD[..., -1] + self.offset

    def over_catalogue(self, queries_B1Q: Tensor, items_XD: Tensor) -> Tensor:
        """Return the scores `[B, X]` of all pairs, in pieces of bounded memory."""
        size = max(1, _NUMBERS_AT_ONCE // (self._pair_dim * len(items_XD)))
        return torch.cat([self(piece_B1Q, items_XD) for piece_B1Q in torch.split(queries_B1Q, size)])


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPairs:
    """Users and items of a step that belong together, row by row."""

    queries_BQ: Tensor
    candidates_BD: Tensor
    items_B: Tensor
    content_BR: Tensor


class RankerModel(LearnedUsers):
    """Tables of users and items, the projections of content, and the ranker."""

    scorer: ClassVar[Scorer] = "ranker"
    ids_IF: nn.Parameter
    presence_IM: Tensor

    def __init__(
        self,
        config: RankerSettings,
        features: FeatureSpec,
        presence_IM: Tensor,
        *,
        ranker: Ranker,
        num_users: int,
        user_dim: int,
        item_dim: int,
    ) -> None:
        """Make the tables; each item has `item_dim` numbers, and a bias after them."""
        super().__init__()
        self.ranker = ranker
        self.columns = features.used(config.modalities)
        """Of the modalities that enter the score."""
        self._widths = [modality.dim for modality in features.modalities]
        self.users_UD = nn.Parameter(torch.randn(num_users, user_dim) * config.init_std)
        self.ids_IF = nn.Parameter(F.pad(torch.randn(len(presence_IM), item_dim) * config.init_std, (0, 1)))
        self.register_buffer("presence_IM", presence_IM, persistent=False)

    @property
    def dim(self) -> int:
        """Return D."""
        return self.ranker.dim

    @abstractmethod
    def content_weight(self, m: int) -> Tensor:
        """Return the projection `[S, R_m]` of a modality that enters the score: its state is linear in its content."""

    def id_numbers(self, rows_X: Tensor | None = None) -> Tensor:
        """Return the learned numbers `[X, F]` of items, as `Ranker.id_state` takes them: as a rule, their own row."""
        return self.ids_IF if rows_X is None else F.embedding(rows_X, self.ids_IF)

    def states(self, content_XR: Tensor, rows_X: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return states `[X, P, S]` and presence `[X, P]` of items with this content."""
        ids_XS = self.ranker.id_state(self.id_numbers(rows_X))
        contents = torch.split(content_XR, self._widths, dim=-1)
        states = [
            F.linear(one_XR, self.content_weight(m)) if m in self.columns else torch.zeros_like(ids_XS)
            for m, one_XR in enumerate(contents)
        ]
        presence_XM = self.presence_IM if rows_X is None else self.presence_IM[rows_X]
        return torch.stack([*states, ids_XS], dim=1), F.pad(presence_XM, (0, 1), value=True)

    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:
        """Return the candidates `[X, D]` of items with this content; `rows_X` is None for the whole catalogue."""
        return self.ranker.fuse(*self.states(content_XR, rows_X))

    def history_rows(self, content_IR: Tensor) -> Tensor:
        """Return what users are read from `[I, H]`."""
        return self.ranker.rows(*self.states(content_IR))

    def users(self, rows_B: Tensor) -> Tensor:
        """Return the queries `[B, Q]` of some users: as a rule, their vectors."""
        return F.embedding(rows_B, self.users_UD)

    def score(self, queries_B1Q: Tensor, items_XD: Tensor) -> Tensor:
        """Return the scores `[B, X]`."""
        return self.ranker.over_catalogue(queries_B1Q, items_XD)

    def auxiliary(self, pairs: ScoredPairs) -> Tensor | None:  # noqa: ARG002  # most have none
        """Return the family's own further loss for a step's pairs, weighted."""
        return None

    def tables(self) -> list[nn.Parameter]:
        """Return users and items."""
        return [self.users_UD, self.ids_IF]

    def learned(self) -> Tensor:
        """Return the learned numbers of all items `[I, F]`."""
        return self.id_numbers().detach()

    def as_items(self, learned_F: Tensor) -> Tensor:
        """Return the candidates `[..., D]` of items that are part `id` alone; the bias among them adds up."""
        num_modalities = len(self._widths)
        states_PS = F.pad(self.ranker.id_state(learned_F).unsqueeze(-2), (0, 0, num_modalities, 0))
        is_id_P = torch.arange(num_modalities + 1) == num_modalities
        return self.ranker.fuse(states_PS, is_id_P.expand(states_PS.shape[:-1]))

    def as_learned(self, vector_D: Tensor) -> Tensor:
        """Return numbers that add the candidate's last number, the bias."""
        return F.pad(vector_D[-1:], (self.learned().shape[1] - 1, 0))

    def lift(self, queries_B1Q: Tensor) -> Tensor:  # noqa: ARG002  # it is the same for all users
        """Return a bias of 1."""
        return self.as_learned(torch.ones_like(self.ids_IF[0]))


class Layers(nn.Module):
    """Hidden layers with rectifiers, and one number in the end."""

    def __init__(self, widths: Sequence[int], *, dropout: float) -> None:
        """Take the width of the input, then of each hidden layer."""
        super().__init__()
        self.hidden = nn.ModuleList([layer(*pair) for pair in pairwise(widths)])
        self.out_W = nn.Parameter(torch.empty(widths[-1]).uniform_(-1, 1) * widths[-1] ** -0.5)
        self.dropout = dropout

    def forward(self, values_W: Tensor, chance: torch.Generator | None) -> Tensor:
        """Return `[...]` of `[..., W]`."""
        for one in self.hidden:
            values_W = torch.relu(one(self._dropped(values_W, chance)))
        return self._dropped(values_W, chance) @ self.out_W

    def _dropped(self, values_W: Tensor, chance: torch.Generator | None) -> Tensor:
        if chance is None or self.dropout == 0:
            return values_W
        kept_W = torch.rand(values_W.shape, generator=chance) >= self.dropout
        return values_W * kept_W.to(values_W.dtype) / (1 - self.dropout)


def layer(width_in: int, width_out: int) -> nn.Linear:
    """Return a fresh layer without a constant.

    What is read is small at first: a constant of torch's size would alone decide which rectifiers are ever on.
    """
    made = nn.Linear(width_in, width_out)
    nn.init.zeros_(made.bias)
    return made


def present(states_PS: Tensor, presence_P: Tensor) -> Tensor:
    """Return the states that are there, and zero elsewhere."""
    return states_PS * presence_P.unsqueeze(-1).to(states_PS.dtype)
