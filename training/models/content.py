"""What every servable model that knows items by their content alone can do.

Legend: `B` batch, `L` history length, `M` modalities, `D_m` raw width, `S` state width, `D` vector width, `Q` queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from api_schemas.manifest import Modality


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What a data set offers to a model."""

    modalities: tuple[Modality, ...]


class ContentModel(nn.Module, ABC):
    """Items from modalities, users from items: no user id, no item id, no positions.

    Rows never interact (no batch statistics), so the gradient of a sum over a batch is the gradient of each row.
    The score of a user and an item is the largest of the Q inner products of the user's queries with the item.
    """

    def __init__(
        self, features: FeatureSpec, *, dim: int, state_dim: int, history_length: int, num_queries: int
    ) -> None:
        super().__init__()
        self.modalities = features.modalities
        self.dim = dim
        """D: width of item vectors and queries."""
        self.state_dim = state_dim
        """S: width of a modality state."""
        self.history_length = history_length
        """L: histories are cut to the last L items."""
        self.num_queries = num_queries
        """Q: queries of one user."""

    @abstractmethod
    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return modality states `[B, M, S]`, zero where absent, of raw vectors per modality `[B, D_m]`."""

    @abstractmethod
    def fuse(self, states_MS: Tensor, presence_M: Tensor) -> Tensor:
        """Return item vectors `[..., D]` of states `[..., M, S]` and presence `[..., M]` bool.

        The same vector is the candidate and the item's row in a history.
        """

    @abstractmethod
    def encode_users(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return queries `[B, Q, D]` of item vectors `[B, L, D]` and mask `[B, L]` bool.

        Padding may hold anything finite and changes nothing. An empty history gives a learned default, never NaN.
        L may differ from `history_length`.
        """

    @abstractmethod
    def modality_parts(self, states_MS: Tensor, presence_M: Tensor) -> Tensor:
        """Return the item vector split by modality, `[..., M, D]`: the parts sum to `fuse` of the same input.

        The attention is held at its values, so the split of a score is exact and additive, but not causal.
        """

    @abstractmethod
    def fusion_slopes(self, states_MS: Tensor, presence_M: Tensor, directions_MS: Tensor) -> Tensor:
        """Return the item vector's derivative when the state of one modality alone moves: `[..., M, D]`, no gradient.

        Args:
            states_MS: `[..., M, S]`.
            presence_M: `[..., M]` bool; an absent modality has slope 0.
            directions_MS: `[..., M, S]`, the way in which each modality's state moves.
        """

    @abstractmethod
    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors x from now on, where (x - mean) basis was taken so far; `modalities` changes with it.

        Args:
            maps: Per modality mean `[D_m]` and basis `[D_m, R_m]`.
        """

    def encode_items(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return item vectors `[B, D]` of raw vectors."""
        return self.fuse(self.project(features, presence_BM), presence_BM)
