"""The item tower that all content models share; what differs is how they read users.

Legend: `B` batch, `L` history length, `M` modalities, `S` state width, `D` vector width (equal to S here), `Q` queries.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import Modality
from training.blocks import AttentionPool, ModalityProjector, Pooling, Scale
from training.models.content import ContentModel
from training.models.servable import FeatureSpec
from training.settings import Settings


class TowerSettings(Settings):
    """What all can be told."""

    dim: int = Field(64, ge=1, le=1024, description="Width of states, item vectors and queries.")
    history_length: int = Field(50, ge=1, le=500, description="L: histories are cut to the last L items.")


class ItemTower(ContentModel):
    """Items by attention over their projected modalities (Demure, Eq. 1-3). An empty history is a learned query."""

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
        )
        self.projector = ModalityProjector([m.dim for m in features.modalities], state_dim=config.dim)
        self.modality_pool = AttentionPool(config.dim, pooling=pooling, scale=scale)

    @abstractmethod
    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]` of histories; of an empty one, anything finite."""

    def encode_users(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]`."""
        known_B11 = mask_BL.any(dim=-1)[:, None, None]
        return torch.where(known_B11, self.read(items_BLD, mask_BL), self.default_query)

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return modality states `[B, M, S]`, zero where absent (see `ContentModel`)."""
        states_BMS: Tensor = self.projector(features, presence_BM)
        return states_BMS

    def fuse(self, states_MS: Tensor, presence_M: Tensor) -> Tensor:
        """Return item vectors `[..., D]` (Eq. 1-3 over modalities)."""
        items_D: Tensor = self.modality_pool(states_MS, presence_M)
        return items_D

    def modality_parts(self, states_MS: Tensor, presence_M: Tensor) -> Tensor:
        """Return a_m W_h x^m `[..., M, D]`: parts that sum to the item vector, without residual (W_h has no bias)."""
        weights_M = self.modality_pool.weights(states_MS, presence_M)
        parts_MD: Tensor = self.modality_pool.h(states_MS) * weights_M.unsqueeze(-1)
        return parts_MD

    def fusion_slopes(self, states_MS: Tensor, presence_M: Tensor, directions_MS: Tensor) -> Tensor:
        """Return the item vector's derivative along one direction per modality `[..., M, D]` (see `ContentModel`)."""
        return self.modality_pool.slopes(states_MS, presence_M, directions_MS)

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
