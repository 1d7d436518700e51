"""NeuMF++: NeuMF (He et al. 2017) whose network reads the item's content beside its id.

A weighted product of the ids (GMF) and a network over user, id and content, with tables of their own, are added:

    s_ui = w . (g_u * g_i) + network([p_u, p_i, x_1, ..., x_M]) + b_i

The network's first layer is linear in what it reads. So an item's share of it is a sum over its parts, made once, and a
user's is made once; a pair adds the two. The score is the same number as that of the vectors put side by side.

Legend: as in `training.models.ranker`, with `G` = `dim`, `W` width of the network's first layer, S = D = H = G + W + 1
and Q = G + W.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.models.ranker import Layers, NetworkSettings, Ranker, RankerModel, layer, present
from training.models.servable import FeatureSpec


class NeuMfConfig(NetworkSettings):
    """NeuMF++."""

    kind: Literal["neumf"] = "neumf"
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (64, 32), min_length=1, description="Widths of the network's hidden layers."
    )

    def build(self, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> "NeuMf":
        """Return a freshly initialised model."""
        return NeuMf(self, features, presence_IM, num_users=num_users)


class NeuMfRanker(Ranker):
    """A candidate is the sum of its states: factors of the product, its share of the first layer, the bias."""

    def __init__(self, config: NeuMfConfig) -> None:
        width = config.dim + config.hidden[0]
        super().__init__(
            state_dim=width + 1, dim=width + 1, query_dim=width, row_dim=width + 1, pair_dim=max(config.hidden)
        )
        self._widths = [config.dim, config.hidden[0]]
        self.layers = Layers(config.hidden, dropout=config.dropout)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the sum of the parts that are there `[..., D]`."""
        return present(states_PS, presence_P).sum(dim=-2)

    def pair_scores(self, queries_B1Q: Tensor, candidates_KD: Tensor, chance: torch.Generator | None) -> Tensor:
        """Return product and network, added."""
        user_B1G, user_B1W = torch.split(queries_B1Q, self._widths, dim=-1)
        item_KG, item_KW, _ = torch.split(candidates_KD, [*self._widths, 1], dim=-1)
        product_B1K = user_B1G @ item_KG.transpose(-1, -2)
        network_BK: Tensor = self.layers(torch.relu(user_B1W + item_KW), chance)
        return product_B1K.squeeze(-2) + network_BK


class NeuMf(RankerModel):
    """Two tables of users and two of items, each pair side by side in one."""

    def __init__(self, config: NeuMfConfig, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> None:
        dim, first = config.dim, config.hidden[0]
        super().__init__(
            config,
            features,
            presence_IM,
            ranker=NeuMfRanker(config),
            num_users=num_users,
            user_dim=2 * dim,
            item_dim=2 * dim,
        )
        self._factors = dim
        self.product_G = nn.Parameter(torch.ones(dim))
        """w: with ones, and no network, the model is matrix factorisation."""
        self.first_user = layer(dim, first)
        self.first_id_WG = nn.Parameter(nn.init.xavier_uniform_(torch.empty(first, dim)))
        self.first_content = nn.ParameterList(
            [torch.randn(first, features.modalities[m].dim) * config.init_std for m in self.columns]
        )

    def users(self, rows_B: Tensor) -> Tensor:
        """Return the queries `[B, Q]`: weighted factors, and the share of the first layer."""
        factors_BG, network_BG = F.embedding(rows_B, self.users_UD).tensor_split(2, dim=-1)
        return torch.cat([factors_BG * self.product_G, self.first_user(network_BG)], dim=-1)

    def id_numbers(self, rows_X: Tensor | None = None) -> Tensor:
        """Return factors, share of the first layer and bias `[X, S]`."""
        factors_XG, network_XG, bias_X1 = torch.split(
            super().id_numbers(rows_X), [self._factors, self._factors, 1], dim=-1
        )
        return torch.cat([factors_XG, F.linear(network_XG, self.first_id_WG), bias_X1], dim=-1)

    def content_weight(self, m: int) -> Tensor:
        """Return the projection `[S, R_m]`: the first layer's weights, and no share of product and bias."""
        return F.pad(self.first_content[self.columns.index(m)], (0, 0, self._factors, 1))
