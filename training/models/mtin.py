"""MTIN (Jiang et al. 2020): interest groups of a history, each with a memory of its own length.

Legend: `B` batch, `L` history length, `Q` interest groups, `D` width.
"""

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.blocks import agree, gather, over_places, shares
from training.models.comirec import InterestSettings
from training.models.servable import FeatureSpec
from training.models.tower import ItemTower

_DAY_S = 86_400

_NOISE = 0.1
"""Of the maps of groups at the start, beside the identity."""


class MtinConfig(InterestSettings):
    """What MTIN can be told."""

    reads_ages: ClassVar[bool] = True

    kind: Literal["mtin"] = "mtin"
    iterations: int = Field(3, ge=1, le=10, description="Of the routing.")
    shortest_s: float = Field(
        3_600.0, gt=0, le=1e9, description="Seconds in which an item fades to 1/e for the first group, before training."
    )
    longest_s: float = Field(31_536_000.0, gt=0, le=1e9, description="The same of the last group.")

    def build(self, features: FeatureSpec) -> "Mtin":
        """Return a freshly initialised network for these modalities."""
        return Mtin(self, features)

    @model_validator(mode="after")
    def _scales_rise(self) -> Self:
        if self.shortest_s > self.longest_s:
            raise ValueError(f"shortest_s is {self.shortest_s:g}, longer than longest_s, {self.longest_s:g}")
        return self


class Mtin(ItemTower):
    """A history is a set of items with ages.

    Group q reads item l with the weight (a softmax over the items of the history)

        w_lq  ~  c_lq  exp(-age_l / scale_q)  exp(-beta_q max(0, mean_q - s_lq))

    - c_lq is the share of the item that routing gives to the group (`training.blocks.routing`); each group has a map of
      its own, and the votes are V_q h_l.
    - scale_q is learned, one for each group: from the start, log-spaced, one forgets within hours and one within years.
      As weights are normalised over the history, the same time more for all items changes nothing: the answer does not
      depend on when it is asked.
    - s_lq is the product of the vote with the interest that routing has found, mean_q its mean over the history by the
      shares, beta_q > 0 learned. What lies far below the mean was hardly meant: a false positive counts for less.

    The interest is e_q = sum_l w_lq V_q h_l, and the query is e_q times the group's share of the interest mask, a
    softmax over groups of p . e_q, times Q: a mask that says nothing is 1.

    Routing's shares are constants of a step, as in all models that route; through the rest of the weights scales, betas
    and maps are learned. Ours, as it retrieves: the network that scores pairs in the paper is an inner product, and the
    interest mask weighs queries where it summed groups.
    """

    reads_ages = True

    def __init__(self, config: MtinConfig, features: FeatureSpec) -> None:
        super().__init__(config, features, num_queries=config.interests)
        num, dim = config.interests, config.dim
        # A group's query starts as what it reads is like, so that far fewer steps are needed than from noise alone.
        self.map_QDD = nn.Parameter(torch.eye(dim) + _NOISE * torch.randn(num, dim, dim) / math.sqrt(dim))
        shortest, longest = (math.log(seconds / _DAY_S) for seconds in (config.shortest_s, config.longest_s))
        # A single group has the longest.
        self.log_days_Q = nn.Parameter(torch.linspace(longest, shortest, num).flip(0))
        self.log_beta_Q = nn.Parameter(torch.zeros(num))
        self.mask_D = nn.Parameter(torch.zeros(dim))
        self.iterations = config.iterations
        self.default_query = nn.Parameter(torch.zeros(num, dim))

    def encode_users(self, items_BLD: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:
        """Return the queries `[B, Q, D]`."""
        if ages_BL is None:
            return super().encode_users(items_BLD, mask_BL)
        return self.or_default(self.read_at(items_BLD, mask_BL, ages_BL), mask_BL)

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]` of what is all of one time."""
        return self.read_at(items_BLD, mask_BL, torch.zeros_like(items_BLD[..., 0]))

    def read_at(self, items_BLD: Tensor, mask_BL: Tensor, ages_BL: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]` of items of these ages in seconds."""
        votes_BLQD = torch.einsum("qde,ble->blqd", self.map_QDD, items_BLD)
        weights_BLQ = self._weights(votes_BLQD, mask_BL, ages_BL)
        interests_BQD = (weights_BLQ.unsqueeze(-1) * votes_BLQD).sum(dim=1)
        mask_BQ = self.num_queries * torch.softmax(interests_BQD @ self.mask_D, dim=-1)
        return mask_BQ.unsqueeze(-1) * interests_BQD

    def _weights(self, votes_BLQD: Tensor, mask_BL: Tensor, ages_BL: Tensor) -> Tensor:
        """Return how much each group reads of each item `[B, L, Q]`; padding may hold anything finite."""
        start_BLQ = torch.zeros_like(votes_BLQD[..., 0])
        logits_BLQ = agree(votes_BLQD, start_BLQ, mask_BL, rounds=self.iterations - 1)
        shares_BLQ = shares(logits_BLQ, mask_BL)
        found_BQD = gather(votes_BLQD, shares_BLQ)
        scores_BLQ = (votes_BLQD * found_BQD.unsqueeze(1)).sum(dim=-1)
        total_B1Q = shares_BLQ.sum(dim=1, keepdim=True).clamp_min(1e-9)
        mean_B1Q = (shares_BLQ * scores_BLQ).sum(dim=1, keepdim=True) / total_B1Q
        memory_BLQ = ages_BL.unsqueeze(-1) / (_DAY_S * self.log_days_Q.exp())
        discount_BLQ = self.log_beta_Q.exp() * torch.relu(mean_B1Q - scores_BLQ)
        logits_BLQ = torch.log_softmax(logits_BLQ, dim=-1) - memory_BLQ - discount_BLQ
        return over_places(logits_BLQ, mask_BL)
