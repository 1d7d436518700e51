"""The item tower that all content models share; what differs is how they read users.

Legend: `B` batch, `L` history length, `M` modalities, `P` parts of an item (the modalities, and `id` where it is
learned), `S` state width, `D` vector width (equal to S here), `Q` queries.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import Modality
from training.blocks import AttentionPool, ModalityProjector, Pooling, Scale
from training.models.content import ContentModel
from training.models.learned_ids import LearnedIds
from training.models.servable import FeatureSpec
from training.settings import Settings


class TowerSettings(Settings):
    """What all can be told."""

    reads_ages: ClassVar[bool] = False
    """As the model has it: said here too, as data are read before there is a model."""

    dim: int = Field(64, ge=1, le=1024, description="Width of states, item vectors and queries.")
    history_length: int = Field(50, ge=1, le=500, description="L: histories are cut to the last L items.")
    ids: bool = Field(False, description="Learn a state for each item, as if it were one more modality.")
    id_dropout: float = Field(
        0.2, gt=0, lt=1, description="Share of these that a step hides, so that items without one are known, too."
    )


class ItemTower(ContentModel):
    """Items by attention over their projected modalities, and over what is learned of them as such (Demure, Eq. 1-3).

    An empty history is a learned query.
    """

    default_query: nn.Parameter
    """`[Q, D]`."""

    def __init__(
        self,
        config: TowerSettings,
        features: FeatureSpec,
        *,
        num_queries: int = 1,
        pooling: Pooling = "row",
        scale: Scale = "sqrt_dim",
    ) -> None:
        super().__init__(
            features,
            dim=config.dim,
            state_dim=config.dim,
            history_length=config.history_length,
            num_queries=num_queries,
            ids=LearnedIds(features.trained_I, state_dim=config.dim, dropout=config.id_dropout) if config.ids else None,
        )
        self.projector = ModalityProjector([m.dim for m in features.modalities], state_dim=config.dim)
        self.modality_pool = AttentionPool(config.dim, pooling=pooling, scale=scale)

    @abstractmethod
    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]` of histories; of an empty one, anything finite."""

    def encode_users(self, items_BLD: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:  # noqa: ARG002  # read by few
        """Return the queries `[B, Q, D]`."""
        return self.or_default(self.read(items_BLD, mask_BL), mask_BL)

    def or_default(self, queries_BQD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]`, the learned one in place of those of empty histories."""
        return torch.where(mask_BL.any(dim=-1)[:, None, None], queries_BQD, self.default_query)

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, S]`: of modalities zero where absent, and `id` unknown."""
        states_BMS: Tensor = self.projector(features, presence_BM)
        if self.ids is None:
            return states_BMS
        return _with_id(states_BMS, self.ids.unknown_S.expand(states_BMS.shape[0], -1))

    def parts_of(
        self,
        features: Sequence[Tensor],
        presence_BM: Tensor,
        rows_B: Tensor | None,
        *,
        chance: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return states `[B, P, S]` and presence `[B, P]` of items of the catalogue, which all have an `id`."""
        if self.ids is None:
            return super().parts_of(features, presence_BM, rows_B)
        states_BPS = _with_id(self.projector(features, presence_BM), self.ids(rows_B, chance=chance))
        return states_BPS, F.pad(presence_BM, (0, 1), value=True)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return item vectors `[..., D]` (Eq. 1-3 over modalities)."""
        items_D: Tensor = self.modality_pool(states_PS, presence_P)
        return items_D

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return a_p W_h x^p `[..., P, D]`: parts that sum to the item vector, without residual (W_h has no bias)."""
        weights_P = self.modality_pool.weights(states_PS, presence_P)
        parts_PD: Tensor = self.modality_pool.h(states_PS) * weights_P.unsqueeze(-1)
        return parts_PD

    def fusion_slopes(self, states_PS: Tensor, presence_P: Tensor, directions_PS: Tensor) -> Tensor:
        """Return the item vector's derivative along one direction per part `[..., P, D]` (see `ContentModel`)."""
        return self.modality_pool.slopes(states_PS, presence_P, directions_PS)

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on (see `ContentModel`)."""
        self.projector.absorb(maps)
        self.modalities = tuple(
            Modality(name=modality.name, dim=len(mean_D))
            for modality, (mean_D, _) in zip(self.modalities, maps, strict=True)
        )


class SequenceTower(ItemTower):
    """Those that read a history in its order; items stand in line, the newest at the last place."""

    reads_order = True


def _with_id(states_BMS: Tensor, id_BS: Tensor) -> Tensor:
    return torch.cat([states_BMS, id_BS.to(states_BMS.dtype).unsqueeze(1)], dim=1)
