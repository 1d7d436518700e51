"""Demure and its Base Model: one network, trained with and without interest-guided augmentation.

Demure's Eq. 1-4: attention pooling over the modalities of an item, the same over the items of a history, then a
feed-forward network; the score is an inner product. Base is the network trained on the sampled softmax alone.

Legend: `B` batch, `L` history length, `M` modalities, `S` state width, `D` vector width (equal to S here).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import Modality
from training.augment import AugmentConfig
from training.blocks import AttentionPool, FeedForward, FeedForwardKind, ModalityProjector, Pooling, Scale
from training.models.content import ContentModel
from training.models.servable import FeatureSpec
from training.settings import Settings


class NetworkConfig(Settings):
    """The network that both families share."""

    dim: int = Field(64, ge=1, le=1024, description="Width of states, item vectors and queries.")
    history_length: int = Field(50, ge=1, le=500, description="L: histories are cut to the last L items.")
    pooling: Pooling = Field("row", description="Pooling weight: `row` as Eq. 3 prints it, `column` as its prose says.")
    scale: Scale = Field("sqrt_dim", description="Attention scores over sqrt(dim), or as the paper has them (`none`).")
    feed_forward: FeedForwardKind = Field("relu", description="`linear` keeps the user vector linear in the history.")
    expansion: int = Field(4, ge=1, le=16, description="Inner width of the feed-forward network over dim.")

    def build(self, features: FeatureSpec) -> "Demure":
        """Return a freshly initialised network for these modalities."""
        return Demure(self, features)


class BaseConfig(NetworkConfig):
    """The network without augmentation: the yardstick of the paper's Table 2."""

    kind: Literal["base"] = "base"


class DemureConfig(NetworkConfig):
    """The network with augmented views."""

    kind: Literal["demure"] = "demure"
    augment: AugmentConfig = AugmentConfig()


class Demure(ContentModel):
    """The network of Demure (Eq. 1-4). The user is one query; an empty history is a learned one."""

    def __init__(self, config: NetworkConfig, features: FeatureSpec) -> None:
        super().__init__(
            features,
            dim=config.dim,
            state_dim=config.dim,
            history_length=config.history_length,
            num_queries=1,
        )
        self.projector = ModalityProjector([m.dim for m in features.modalities], state_dim=config.dim)
        self.modality_pool = AttentionPool(config.dim, pooling=config.pooling, scale=config.scale)
        self.item_pool = AttentionPool(config.dim, pooling=config.pooling, scale=config.scale)
        self.feed_forward = FeedForward(config.dim, kind=config.feed_forward, expansion=config.expansion)
        self.default_query = nn.Parameter(torch.zeros(1, config.dim))

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

    def encode_users(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the query `[B, 1, D]` (Eq. 1-4 over items)."""
        query_BD = self.feed_forward(self.item_pool(items_BLD, mask_BL))
        known_B1 = mask_BL.any(dim=-1, keepdim=True)
        return torch.where(known_B1, query_BD, self.default_query).unsqueeze(-2)
