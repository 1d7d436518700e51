"""What every model that reads items from their content can do beyond being servable.

Legend: `D_m` raw width, `R` width after conditioning, `M` modalities, `P` parts, `S` state width, `D` vector width.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from training.models.learned_ids import ID, LearnedIds
from training.models.servable import FeatureSpec, Retriever


class ContentModel(Retriever):
    """Items from modalities, users from items: no user id. Parts are the modalities, and `id` if it is asked for."""

    reads_order: bool = False
    """Whether the order of a history counts; else it is a set."""

    ids: LearnedIds | None
    """What is learned for single items, if anything is."""

    def __init__(
        self,
        features: FeatureSpec,
        *,
        dim: int,
        state_dim: int,
        history_length: int,
        num_queries: int,
        ids: LearnedIds | None = None,
    ) -> None:
        super().__init__(
            features.modalities,
            dim=dim,
            state_dim=state_dim,
            history_length=history_length,
            num_queries=num_queries,
            extra_parts=[] if ids is None else [ID],
        )
        self.ids = ids

    @abstractmethod
    def fusion_slopes(self, states_PS: Tensor, presence_P: Tensor, directions_PS: Tensor) -> Tensor:
        """Return the item vector's derivative when the state of one part alone moves: `[..., P, D]`, no gradient.

        Args:
            states_PS: `[..., P, S]`.
            presence_P: `[..., P]` bool; an absent part has slope 0.
            directions_PS: `[..., P, S]`, the way in which each part's state moves.
        """

    @abstractmethod
    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors x from now on, where (x - mean) basis was taken so far; `modalities` changes with it.

        Args:
            maps: Per modality mean `[D_m]` and basis `[D_m, R_m]`.
        """
