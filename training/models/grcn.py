"""GRCN (Wei et al. 2020): edges that a user's preferences do not explain count less, in each modality and for ids.

Per modality, a user's preference is routed to items of his that are like it, p <- normalise(p + sum_j a_j x_j) with a
the softmax of <p, x_j> over his items, some rounds long. The same products weigh the edges of the last step, over a
user's items and over an item's users. An edge of the graph of ids weighs the largest of these attentions, each times
the confidence that the sending node's modality has learned, and nothing where that is below zero (soft pruning).

Legend: `U` users, `I` items, `R` width of a modality, `M` modalities, `E` edges, `C` width of a modality's block, `d`
width of ids, `P` parts, `D` = d + M C.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.edges import Edges
from training.blocks.propagation import Nodes
from training.models.graph import GraphInputs, GraphModel, ModalGraphSettings, projection


class GrcnConfig(ModalGraphSettings):
    """GRCN: ids over a refined graph, and a block for each modality beside them."""

    kind: Literal["grcn"] = "grcn"
    layers: int = Field(2, ge=1, le=10, description="Steps of propagation of ids; all are summed.")
    content_dim: int = Field(64, ge=1, le=1024, description="Width of the block of each modality.")
    rounds: int = Field(3, ge=1, le=10, description="Of routing.")

    def build(self, inputs: GraphInputs) -> "Grcn":
        """Return the model."""
        return Grcn(self, inputs)


class Attention(NamedTuple):
    """What each edge weighs, either way `[E]`."""

    to_users_E: Tensor
    to_items_E: Tensor


class Grcn(GraphModel):
    """GRCN. Blocks lie side by side, so parts are blocks; all of an item's blocks are in its score."""

    def __init__(self, config: GrcnConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        graph = inputs.graph
        self._edges, self._layers, self._rounds = Edges(graph), config.layers, config.rounds
        self._columns = inputs.features.used(config.modalities)
        count, width = len(self._columns), config.content_dim
        self._dim = config.dim + count * width
        self._contents = [inputs.with_presence(column) for column in self._columns]
        self._has_E = [inputs.presence_IM[self._edges.item_E, column] for column in self._columns]
        self.projections = nn.ParameterList([projection(one.shape[1], width) for one in self._contents])
        self.preferences = nn.ParameterList(
            [nn.Parameter(torch.randn(graph.num_users, width) * config.init_std) for _ in range(count)]
        )
        """`[U, C]` of each modality, before routing."""
        # All attention counts at first: near zero, as published, half of the edges would be pruned by chance.
        self.confidence_UM = nn.Parameter(torch.ones(graph.num_users, count))
        self.confidence_IM = nn.Parameter(torch.ones(graph.num_items, count))

    @property
    def dim(self) -> int:
        """Return D."""
        return self._dim

    def user_tables(self) -> list[nn.Parameter]:
        """Return ids, preferences and confidence of users."""
        return [self.users_UD, *self.preferences, self.confidence_UM]

    def item_tables(self) -> list[nn.Parameter]:
        """Return ids and confidence of items."""
        return [self.ids_IF, self.confidence_IM]

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:  # noqa: ARG002  # nothing is dropped
        """Return ids and modalities side by side."""
        blocks, attentions = [], []
        for place in range(len(self._columns)):
            nodes, attention = self._modality(place)
            blocks.append(nodes)
            attentions.append(attention)
        return Nodes(*(torch.cat(side, dim=-1) for side in zip(self._ids(attentions), *blocks, strict=True)))

    def parts(self) -> Tensor:
        """Return each block where it lies in the item's vector, and zero elsewhere."""
        items_ID, width = self.nodes().items_ID, self.users_UD.shape[1]
        parts_IPD = items_ID.new_zeros(len(items_ID), self.num_parts, self.dim)
        parts_IPD[:, self.num_modalities, :width] = items_ID[:, :width]
        for column, block_C in zip(
            self._columns, torch.arange(width, self.dim).view(len(self._columns), -1), strict=True
        ):
            parts_IPD[:, column, block_C] = items_ID[:, block_C]
        return parts_IPD

    def _modality(self, place: int) -> tuple[Nodes, Attention]:
        """Return a modality's block of users and items, and its attention; an item that lacks it has none."""
        edges, has_E = self._edges, self._has_E[place]
        content_IC = F.leaky_relu(F.linear(self._contents[place], self.projections[place]))
        content_IC = F.normalize(content_IC, dim=-1)
        preference_UC = F.normalize(self.preferences[place], dim=-1)
        for _ in range(self._rounds):
            preference_UC = routed(edges, preference_UC, content_IC, has_E)[0]
        logit_E = edges.products(preference_UC, content_IC).masked_fill(~has_E, -torch.inf)
        attention = Attention(edges.softmax_of_users(logit_E), edges.softmax_of_items(logit_E))
        return Nodes(
            preference_UC + edges.to_users(attention.to_users_E, content_IC),
            content_IC + edges.to_items(attention.to_items_E, preference_UC),
        ), attention

    def _ids(self, attentions: list[Attention]) -> Nodes:
        """Return the sum of the layers of ids over the refined graph."""
        edges = self._edges
        to_users_E, to_items_E = self._weights(attentions)
        nodes = total = Nodes(self.users_UD, self.ids_IF)
        for _ in range(self._layers):
            nodes = Nodes(edges.to_users(to_users_E, nodes.items_ID), edges.to_items(to_items_E, nodes.users_UD))
            total = Nodes(total.users_UD + nodes.users_UD, total.items_ID + nodes.items_ID)
        return total

    def _weights(self, attentions: list[Attention]) -> Attention:
        """Return what the edges of the graph of ids weigh."""
        to_users = [one.to_users_E for one in attentions]
        to_items = [one.to_items_E for one in attentions]
        return Attention(
            _largest(to_users, self.confidence_IM, self._edges.item_E),
            _largest(to_items, self.confidence_UM, self._edges.user_E),
        )


def _largest(shares: list[Tensor], confidence_NM: Tensor, sender_E: Tensor) -> Tensor:
    """Return the largest attention times its sender's confidence, or zero where all are below `[E]`."""
    # A modality at a time: gradients of gathered rows of M numbers cost many times as much as those of numbers.
    columns = confidence_NM.unbind(dim=1)
    weighed = [share_E * own_N.index_select(0, sender_E) for share_E, own_N in zip(shares, columns, strict=True)]
    return torch.stack(weighed).amax(dim=0).relu()


def routed(edges: Edges, preference_UC: Tensor, content_IC: Tensor, has_E: Tensor) -> tuple[Tensor, Tensor]:
    """Return the users' preferences after a round of routing, and what each edge had of its user's attention `[E]`."""
    logit_E = edges.products(preference_UC, content_IC).masked_fill(~has_E, -torch.inf)
    share_E = edges.softmax_of_users(logit_E)
    return F.normalize(preference_UC + edges.to_users(share_E, content_IC), dim=-1), share_E
