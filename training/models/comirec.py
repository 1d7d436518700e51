"""ComiRec (Cen et al. 2020): several interests of a user, by attention (SA) or by dynamic routing (DR).

Legend: `B` batch, `L` history length, `P` places (as many as L), `Q` interests, `D` width.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.blocks import HeadsPool, in_line, route
from training.models.servable import FeatureSpec
from training.models.tower import SequenceTower, TowerSettings


class InterestSettings(TowerSettings):
    """What all models of several interests can be told."""

    interests: int = Field(4, ge=1, le=64, description="Queries of a user; an item's score is that of its best one.")


class ComiRecSaConfig(InterestSettings):
    """Interests by attention with several heads."""

    kind: Literal["comirec_sa"] = "comirec_sa"
    expansion: int = Field(4, ge=1, le=16, description="Inner width of the attention over dim.")

    def build(self, features: FeatureSpec) -> "ComiRecSa":
        """Return a freshly initialised network for these modalities."""
        return ComiRecSa(self, features)


class ComiRecDrConfig(InterestSettings):
    """Interests by dynamic routing, with maps for each place and interest."""

    kind: Literal["comirec_dr"] = "comirec_dr"
    iterations: int = Field(3, ge=1, le=10, description="Of the routing.")

    def build(self, features: FeatureSpec) -> "ComiRecDr":
        """Return a freshly initialised network for these modalities."""
        return ComiRecDr(self, features)


class ComiRecSa(SequenceTower):
    """Where an item stands says how much a head looks at it, not what it sees there."""

    def __init__(self, config: ComiRecSaConfig, features: FeatureSpec) -> None:
        super().__init__(config, features, num_queries=config.interests)
        hidden = config.expansion * config.dim
        self.heads = HeadsPool(config.dim, hidden=hidden, heads=config.interests, length=config.history_length)
        self.default_query = nn.Parameter(torch.zeros(config.interests, config.dim))

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]`."""
        queries_BQD: Tensor = self.heads(*in_line(items_BLD, mask_BL, length=self.history_length))
        return queries_BQD


class ComiRecDr(SequenceTower):
    """Routing starts even: only the maps tell interests apart."""

    def __init__(self, config: ComiRecDrConfig, features: FeatureSpec) -> None:
        super().__init__(config, features, num_queries=config.interests)
        shape = (config.history_length, config.interests, config.dim, config.dim)
        self.map_PQDD = nn.Parameter(torch.randn(shape) / math.sqrt(config.dim))
        self.iterations = config.iterations
        self.default_query = nn.Parameter(torch.zeros(config.interests, config.dim))

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]`."""
        rows_BPD, mask_BP = in_line(items_BLD, mask_BL, length=self.history_length)
        votes_BPQD = torch.einsum("pqde,bpe->bpqd", self.map_PQDD, rows_BPD)
        return route(votes_BPQD, torch.zeros_like(votes_BPQD[..., 0]), mask_BP, iterations=self.iterations)
