"""What every model that knows items by their content alone can do beyond being servable.

Legend: `D_m` raw width, `R` width after conditioning, `M` modalities, `S` state width, `D` vector width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from training.models.servable import FeatureSpec, Retriever


class ContentModel(Retriever):
    """Items from modalities, users from items: no user id, no item id. Its parts are the modalities."""

    reads_order: ClassVar[bool] = False
    """Whether the order of a history counts; else it is a set."""

    def __init__(
        self, features: FeatureSpec, *, dim: int, state_dim: int, history_length: int, num_queries: int
    ) -> None:
        super().__init__(
            features.modalities, dim=dim, state_dim=state_dim, history_length=history_length, num_queries=num_queries
        )

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
