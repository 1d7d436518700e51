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
        self._columns = inputs.features.used(config.modalities)
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
        return _mean(self._by_modality())

    def rows(self, users_B: Tensor, items_X: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the vectors of some users and items; the last layer is made for them alone."""
        rows_Y, place_X = torch.unique(items_X, return_inverse=True)
        users_BD, items_YD = _mean(self._by_modality((users_B, rows_Y)))
        return users_BD, F.embedding(place_X, items_YD)

    def parts(self) -> Tensor:
        """Return what each modality's network adds to the mean."""
        parts_IPD = self.ids_IF.new_zeros(len(self.ids_IF), self.num_parts, self.dim)
        for column, nodes in zip(self._columns, self._by_modality(), strict=True):
            parts_IPD[:, column] = nodes.items_ID / len(self._columns)
        return parts_IPD

    def _by_modality(self, rows: tuple[Tensor, Tensor] | None = None) -> list[Nodes]:
        ids = Nodes(self.users_UD, self.ids_IF)
        pairs = zip(self.networks, self.preferences, strict=True)
        return [network(preference_UD, ids, rows) for network, preference_UD in pairs]


class _ModalityNetwork(nn.Module):
    """The layers of one modality."""

    def __init__(self, content_IR: Tensor, step: Propagator, *, dim: int, layers: int) -> None:
        super().__init__()
        self._content_IR, self._step = content_IR, step
        self.project = projection(content_IR.shape[1], dim)
        self.neighbours = nn.ParameterList([projection(dim, dim) for _ in range(layers)])
        self.own = nn.ModuleList([nn.Linear(dim, dim) for _ in range(layers)])
        self.combine = nn.ModuleList([nn.Linear(2 * dim, dim) for _ in range(layers)])

    def forward(self, preference_UD: Tensor, ids: Nodes, rows: tuple[Tensor, Tensor] | None = None) -> Nodes:
        """Return the last layer, of some users and items or of all.

        Layer 0 is preferences and projected content, of length 1.
        """
        content_ID = F.linear(self._content_IR, self.project)
        nodes = Nodes(F.normalize(preference_UD, dim=-1), F.normalize(content_ID, dim=-1))
        for layer in range(len(self.own)):
            received = self._step(nodes)
            if rows is not None and layer == len(self.own) - 1:
                nodes, received, ids = (_chosen(one, rows) for one in (nodes, received, ids))
            nodes = Nodes(*(self._next(layer, *of_side) for of_side in zip(nodes, received, ids, strict=True)))
        return nodes

    def _next(self, layer: int, node_ND: Tensor, received_ND: Tensor, id_ND: Tensor) -> Tensor:
        """Return a layer of one side, of the one before, of its mean over neighbours, and of ids."""
        near_ND = F.leaky_relu(F.linear(received_ND, self.neighbours[layer]))
        side_ND = F.leaky_relu(self.own[layer](node_ND)) + id_ND
        return F.leaky_relu(self.combine[layer](torch.cat([near_ND, side_ND], dim=-1)))


def _mean(networks: list[Nodes]) -> Nodes:
    return Nodes(*(torch.stack(side).mean(dim=0) for side in zip(*networks, strict=True)))


def _chosen(nodes: Nodes, rows: tuple[Tensor, Tensor]) -> Nodes:
    return Nodes(F.embedding(rows[0], nodes.users_UD), F.embedding(rows[1], nodes.items_ID))


def _entries(tables: nn.ParameterList) -> list[tuple[nn.Module, str]]:
    return [(tables, str(place)) for place in range(len(tables))]


def _freeze(module: nn.Module, name: str) -> None:
    """Make a parameter a buffer: no optimiser sees it."""
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)
