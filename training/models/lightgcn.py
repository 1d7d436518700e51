"""LightGCN (He et al. 2020): users and items averaged over their neighbourhoods, layer by layer, and nothing else."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from training.blocks.propagation import Nodes
from training.models.graph import GraphInputs, GraphModel, GraphSettings


class LightGcnConfig(GraphSettings):
    """LightGCN on ids alone: the mean of layers 0 to `layers`."""

    has_exact_fold_in: ClassVar[bool] = True
    kind: Literal["lightgcn"] = "lightgcn"

    def build(self, inputs: GraphInputs) -> "LightGcn":
        """Return the model."""
        return LightGcn(self, inputs)


class LightGcn(GraphModel):
    """LightGCN."""

    def __init__(self, config: LightGcnConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        self._layers, self._step = config.layers, inputs.graph.operator()
        self._received_I1 = received(inputs.graph.degree_I, layers=config.layers)

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:  # noqa: ARG002  # nothing is dropped
        """Return the mean of the layers (Eq. 4)."""
        return self._step.mean(Nodes(self.users_UD, self.ids_IF), self._layers)

    def parts(self) -> Tensor:
        """Return the items' vectors: all of them is id."""
        return self.as_id(self.nodes().items_ID)

    def history_parts(self) -> Tensor:
        """Return what a new user receives of each item."""
        before = self._step.mean(Nodes(self.users_UD, self.ids_IF), self._layers - 1)
        return self.as_id(before.items_ID * self._received_I1)


def received(degree_I: Tensor, *, layers: int) -> Tensor:
    """Return `[I, 1]`: times the mean of an item's layers 0 to L - 1 it is what a new user of one item receives.

    The user's mean of layers 0 to L is sum_{l<L} z_i^(l) / sqrt(n d_i) over L + 1, where layer 0 of the user is zero
    and items do not react. Items without interactions send nothing.
    """
    sent_I = torch.where(degree_I > 0, degree_I.clamp_min(1).rsqrt(), torch.zeros_like(degree_I))
    return (sent_I * layers / (layers + 1)).unsqueeze(-1)
