"""DisenGCN (Ma et al. 2019) on the graph of interactions: each edge is routed to the channels that explain it.

A node is K channels, z_k = normalise(act(W_k x + b_k)). Routing goes T rounds: an edge belongs to channel k by p_k =
softmax_k(<z_v,k, c_u,k> / tau), and c_u,k = normalise(z_u,k + sum_v p_k z_v,k); c = z at first. The channels side by
side are the next layer's x, and the last layer is what scores. The paper classifies nodes; here pairs are learned from.

All channels have length 1, so scores lie between -K and K.

Legend: `U` users, `I` items, `E` edges, `K` channels, `d` width of a channel, `N` nodes of a side, `D` = K d.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.edges import Edges
from training.blocks.propagation import Nodes
from training.models.graph import GraphInputs, GraphModel, GraphSettings

_SLOPE = 0.2
"""Of the leaky ReLU below zero."""


class DisenGcnConfig(GraphSettings):
    """DisenGCN on ids alone."""

    kind: Literal["disengcn"] = "disengcn"
    layers: int = Field(1, ge=1, le=10, description="Layers of routing.")
    channels: int = Field(4, ge=1, le=64, description="K: parts that a node's vector is made of; `dim` is K times d.")
    rounds: int = Field(3, ge=1, le=10, description="T: of routing in a layer.")
    tau: float = Field(1.0, gt=0, le=10, description="Temperature of routing.")

    def build(self, inputs: GraphInputs) -> "DisenGcn":
        """Return the model.

        Raises:
            ValueError: The width is not that of all channels together.
        """
        if self.dim % self.channels != 0:
            raise ValueError(f"model.dim: is {self.dim}, which {self.channels} channels can not share")
        return DisenGcn(self, inputs)


class DisenGcn(GraphModel):
    """DisenGCN."""

    def __init__(self, config: DisenGcnConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        self._edges, self._num_channels = Edges(inputs.graph), config.channels
        self._rounds, self._tau = config.rounds, config.tau
        self.channels = nn.ModuleList([nn.Linear(config.dim, config.dim) for _ in range(config.layers)])
        """W_k and b_k of all channels, of each layer."""

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:  # noqa: ARG002  # nothing is dropped
        """Return the channels of the last layer side by side."""
        nodes = Nodes(self.users_UD, self.ids_IF)
        for layer in self.channels:
            users, items = (self._split(F.leaky_relu(layer(one), negative_slope=_SLOPE)) for one in nodes)
            nodes = Nodes(*(torch.cat(one, dim=-1) for one in self._routed(users, items)))
        return nodes

    def parts(self) -> Tensor:
        """Return the items' vectors: all of them is id."""
        return self.as_id(self.nodes().items_ID)

    def _split(self, values_ND: Tensor) -> list[Tensor]:
        """Return the channels `[N, d]`, each at length 1."""
        return [F.normalize(one, dim=-1).contiguous() for one in torch.chunk(values_ND, self._num_channels, dim=-1)]

    def _routed(self, users: list[Tensor], items: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return users' and items' channels after all rounds; both sides read the other's z, not its c."""
        edges, centres = self._edges, (users, items)
        for _ in range(self._rounds):
            to_users = self._shares([edges.products(c, z) for c, z in zip(centres[0], items, strict=True)])
            to_items = self._shares([edges.products(z, c) for z, c in zip(users, centres[1], strict=True)])
            centres = (
                [
                    F.normalize(z + edges.to_users(share_E, other), dim=-1)
                    for z, share_E, other in zip(users, to_users, items, strict=True)
                ],
                [
                    F.normalize(z + edges.to_items(share_E, other), dim=-1)
                    for z, share_E, other in zip(items, to_items, users, strict=True)
                ],
            )
        return centres

    def _shares(self, products: list[Tensor]) -> list[Tensor]:
        """Return how much of each edge each channel has `[E]`."""
        return [share_E.contiguous() for share_E in torch.softmax(torch.stack(products) / self._tau, dim=0)]
