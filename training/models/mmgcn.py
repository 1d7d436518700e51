"""MMGCN (Wei et al. 2019): a graph network for each modality, whose users have a preference table of their own in each.

In a layer of modality m, h = LeakyReLU(mean of neighbours W), s = LeakyReLU(x W' + b') + id, and what goes on is
LeakyReLU([h; s] W'' + b''); users and items are the mean of the modalities' last layers.

Published code never trains the tables: they are no parameters there. Here they are, unless `published_tables` asks for
that.

Legend: `U` users, `I` items, `R` width of a modality, `M` modalities, `N` nodes of a side, `P` parts, `D` width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.propagation import Nodes, Propagator
from training.models.graph import GraphInputs, GraphModel, ModalGraphSettings, projection


class MmgcnConfig(ModalGraphSettings):
    """MMGCN: the mean of a graph network for each modality."""

    kind: Literal["mmgcn"] = "mmgcn"
    published_tables: bool = Field(
        False, description="Leave ids and preferences as they were drawn, as published code does unawares."
    )

    def build(self, inputs: GraphInputs) -> "Mmgcn":
        """Return the model."""
        return Mmgcn(self, inputs)


class Mmgcn(GraphModel):
    """MMGCN. A modality's part is its network's item over M: ids run through all networks, so `id` has none of it."""

    def __init__(self, config: MmgcnConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        step = inputs.graph.operator("mean")
        self._columns = inputs.used(config.modalities)
        self.preferences = nn.ParameterList(
            [nn.Parameter(torch.randn_like(self.users_UD) * config.init_std) for _ in self._columns]
        )
        """`[U, D]` of each modality."""
        self.networks = nn.ModuleList(
            [
                _ModalityNetwork(inputs.with_presence(column), step, dim=config.dim, layers=config.layers)
                for column in self._columns
            ]
        )
        self._learns_tables = not config.published_tables
        if config.published_tables:
            for module, name in [(self, "users_UD"), (self, "ids_IF"), *_entries(self.preferences)]:
                _freeze(module, name)

    def user_tables(self) -> list[nn.Parameter]:
        """Return ids and preferences of users; of published tables none, as nothing is learned."""
        return [self.users_UD, *self.preferences] if self._learns_tables else []

    def item_tables(self) -> list[nn.Parameter]:
        """Return the ids."""
        return [self.ids_IF] if self._learns_tables else []

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:  # noqa: ARG002  # nothing is dropped
        """Return the mean over the modalities."""
        sides = zip(*self._by_modality(), strict=True)
        return Nodes(*(torch.stack(side).mean(dim=0) for side in sides))

    def parts(self) -> Tensor:
        """Return what each modality's network adds to the mean."""
        parts_IPD = self.ids_IF.new_zeros(len(self.ids_IF), self.num_parts, self.dim)
        for column, nodes in zip(self._columns, self._by_modality(), strict=True):
            parts_IPD[:, column] = nodes.items_ID / len(self._columns)
        return parts_IPD

    def _by_modality(self) -> list[Nodes]:
        ids = Nodes(self.users_UD, self.ids_IF)
        return [
            network(preference_UD, ids) for network, preference_UD in zip(self.networks, self.preferences, strict=True)
        ]


class _ModalityNetwork(nn.Module):
    """The layers of one modality."""

    def __init__(self, content_IR: Tensor, step: Propagator, *, dim: int, layers: int) -> None:
        super().__init__()
        self._content_IR, self._step = content_IR, step
        self.project = projection(content_IR.shape[1], dim)
        self.neighbours = nn.ParameterList([projection(dim, dim) for _ in range(layers)])
        self.own = nn.ModuleList([nn.Linear(dim, dim) for _ in range(layers)])
        self.combine = nn.ModuleList([nn.Linear(2 * dim, dim) for _ in range(layers)])

    def forward(self, preference_UD: Tensor, ids: Nodes) -> Nodes:
        """Return the last layer; layer 0 is preferences and projected content, of length 1."""
        nodes = Nodes(*(F.normalize(one, dim=-1) for one in (preference_UD, F.linear(self._content_IR, self.project))))
        for weight_DD, own, combine in zip(self.neighbours, self.own, self.combine, strict=True):
            sides = []
            for node_ND, received_ND, id_ND in zip(nodes, self._step(nodes), ids, strict=True):
                near_ND = F.leaky_relu(F.linear(received_ND, weight_DD))
                side_ND = F.leaky_relu(own(node_ND)) + id_ND
                sides.append(F.leaky_relu(combine(torch.cat([near_ND, side_ND], dim=-1))))
            nodes = Nodes(*sides)
        return nodes


def _entries(tables: nn.ParameterList) -> list[tuple[nn.Module, str]]:
    return [(tables, str(place)) for place in range(len(tables))]


def _freeze(module: nn.Module, name: str) -> None:
    """Make a parameter a buffer: no optimiser sees it."""
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)
