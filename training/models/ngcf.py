"""NGCF (Wang et al. 2019): messages are neighbours, and neighbours times oneself, each through a matrix of its layer.

As in the paper's Eq. 7 a layer has no constants; published code adds some.

Legend: `U` users, `I` items, `N` nodes of a side, `d` width of a layer, `D` width of all layers together.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.dropout import dropout
from training.blocks.propagation import Nodes
from training.models.graph import GraphInputs, GraphModel, GraphSettings, projection

_SLOPE = 0.2
"""Of the leaky ReLU below zero."""


class NgcfConfig(GraphSettings):
    """NGCF on ids alone: layers 0 to `layers` side by side."""

    kind: Literal["ngcf"] = "ngcf"
    dropout: float = Field(0.1, ge=0, lt=1, description="Of what a layer gives, in training.")

    def build(self, inputs: GraphInputs) -> "Ngcf":
        """Return the model."""
        return Ngcf(self, inputs)


class Ngcf(GraphModel):
    """NGCF."""

    def __init__(self, config: NgcfConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        self._step, self._dropout = inputs.graph.operator(), config.dropout
        self.sums = nn.ParameterList([projection(config.dim, config.dim) for _ in range(config.layers)])
        """W_1 of each layer, of what comes from neighbours and oneself."""
        self.products = nn.ParameterList([projection(config.dim, config.dim) for _ in range(config.layers)])
        """W_2 of each layer, of what comes from neighbours times oneself."""

    @property
    def dim(self) -> int:
        """Return D = (L + 1) d."""
        return self.users_UD.shape[1] * (len(self.sums) + 1)

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:
        """Return all layers side by side; all but layer 0 have length 1 (Eq. 7 and 9)."""
        nodes = Nodes(self.users_UD, self.ids_IF)
        layers = [nodes]
        for sums_dd, products_dd in zip(self.sums, self.products, strict=True):
            sides = [_layer(*pair, sums_dd, products_dd) for pair in zip(nodes, self._step(nodes), strict=True)]
            if chance is not None and self._dropout > 0:
                sides = [dropout(one, share=self._dropout, chance=chance) for one in sides]
            nodes = Nodes(*sides)
            layers.append(Nodes(*(F.normalize(one, dim=-1) for one in nodes)))
        return Nodes(*(torch.cat(side, dim=-1) for side in zip(*layers, strict=True)))

    def parts(self) -> Tensor:
        """Return the items' vectors: all of them is id."""
        return self.as_id(self.nodes().items_ID)


def _layer(own_Nd: Tensor, received_Nd: Tensor, sums_dd: Tensor, products_dd: Tensor) -> Tensor:
    """Return the next layer of one side."""
    return F.leaky_relu(
        F.linear(received_Nd + own_Nd, sums_dd) + F.linear(received_Nd * own_Nd, products_dd), negative_slope=_SLOPE
    )
