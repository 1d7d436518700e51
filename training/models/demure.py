"""Demure and its Base Model: one network, trained with and without interest-guided augmentation.

Demure's Eq. 1-4: attention pooling over the modalities of an item, the same over the items of a history, then a
feed-forward network; the score is an inner product. Base is the network trained on the sampled softmax alone.

Legend: `B` batch, `L` history length, `P` places (as many as L), `D` vector width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.augment import AugmentConfig
from training.blocks import AttentionPool, FeedForward, FeedForwardKind, Pooling, Scale, in_line
from training.models.servable import FeatureSpec
from training.models.tower import ItemTower, TowerSettings


class NetworkConfig(TowerSettings):
    """The network that both families share."""

    pooling: Pooling = Field("row", description="Pooling weight: `row` as Eq. 3 prints it, `column` as its prose says.")
    scale: Scale = Field("sqrt_dim", description="Attention scores over sqrt(dim), or as the paper has them (`none`).")
    feed_forward: FeedForwardKind = Field("relu", description="`linear` keeps the user vector linear in the history.")
    positions: bool = Field(
        False, description="Learn a vector for each place of a history, from its end, and add it to what stands there."
    )
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


class Demure(ItemTower):
    """The network of Demure (Eq. 1-4). The user is one query, from a set without order unless places are learned."""

    position_PD: nn.Parameter | None
    """Of each place, the newest last; None: a history is a set."""

    def __init__(self, config: NetworkConfig, features: FeatureSpec) -> None:
        super().__init__(config, features, pooling=config.pooling, scale=config.scale)
        self.item_pool = AttentionPool(config.dim, pooling=config.pooling, scale=config.scale)
        self.feed_forward = FeedForward(config.dim, kind=config.feed_forward, expansion=config.expansion)
        self.default_query = nn.Parameter(torch.zeros(1, config.dim))
        self.reads_order = config.positions
        shape = (config.history_length, config.dim)
        self.position_PD = nn.Parameter(torch.randn(shape) * 0.02) if config.positions else None

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the query `[B, 1, D]` (Eq. 1-4 over items)."""
        if self.position_PD is not None:
            items_BLD, mask_BL = in_line(items_BLD, mask_BL, length=self.history_length)
            items_BLD = items_BLD + self.position_PD
        query_BD: Tensor = self.feed_forward(self.item_pool(items_BLD, mask_BL))
        return query_BD.unsqueeze(-2)
