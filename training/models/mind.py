"""MIND (Li et al. 2019): several interests of a user by dynamic routing, one map for all of them.

Legend: `B` batch, `L` history length, `P` places (as many as L), `Q` interests, `D` width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.blocks import in_line, route
from training.models.comirec import InterestSettings
from training.models.servable import FeatureSpec
from training.models.tower import SequenceTower


class MindConfig(InterestSettings):
    """What MIND can be told."""

    kind: Literal["mind"] = "mind"
    iterations: int = Field(3, ge=1, le=10, description="Of the routing.")

    def build(self, features: FeatureSpec) -> "Mind":
        """Return a freshly initialised network for these modalities."""
        return Mind(self, features)


class Mind(SequenceTower):
    """One map cannot tell interests apart, so routing starts from random logits.

    They are drawn once and kept with the model: the same history gives the same queries wherever and whenever it runs.
    """

    def __init__(self, config: MindConfig, features: FeatureSpec) -> None:
        super().__init__(config, features, num_queries=config.interests)
        self.map = nn.Linear(config.dim, config.dim, bias=False)
        # A parameter, as the tracer of gradients takes no buffers.
        drawn_PQ = torch.randn(config.history_length, config.interests)
        self.logits_PQ = nn.Parameter(drawn_PQ, requires_grad=False)
        self.iterations = config.iterations
        self.default_query = nn.Parameter(torch.zeros(config.interests, config.dim))

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]`."""
        rows_BPD, mask_BP = in_line(items_BLD, mask_BL, length=self.history_length)
        votes_BPQD = self.map(rows_BPD).unsqueeze(2)
        logits_BPQ = self.logits_PQ + torch.zeros_like(votes_BPQD[..., 0])
        return route(votes_BPQD, logits_BPQ, mask_BP, iterations=self.iterations)
