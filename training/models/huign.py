"""HUIGN (Wei et al. 2021): items by the intents that they serve, fine to coarse in each modality; users by theirs.

Items are neighbours where the same users have them. Per modality, content is averaged over `layers` steps of that
graph, h_1 = LeakyReLU(W_1 x), and an item belongs to the first level's intents by A_1 = softmax(h_1 V_1). An intent is
the mean of its items' h, intents are neighbours where their items are, and so on upwards: a level's intents belong to
those of the next by A_l, and items by A_1 ... A_l. All levels side by side, summed over modalities, are the item; a
user's weights of the intents are free. Ids stand beside the intents.

Published code does not run, and multiplies with a dense matrix of items; here each item keeps its strongest neighbours.
Two further losses, weighed: the entropy of the assignments, so that an item has few intents, and the squared distance
correlation (Szekely et al. 2007) of a level's intents, so that they differ.

Legend: `U` users, `I` items, `R` width of a modality, `M` modalities, `d` width of ids, `N` rows of a level below, `L`
intents of a level, `K` intents of all levels, `P` parts, `D` = K + d.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.co_interaction import co_interactions
from training.blocks.propagation import Nodes, SparseMatrix
from training.models.graph import GraphInputs, GraphModel, ModalGraphSettings


class HuignConfig(ModalGraphSettings):
    """HUIGN: intents of every level, and ids."""

    kind: Literal["huign"] = "huign"
    layers: int = Field(2, ge=1, le=10, description="Steps over the graph of items; content is the mean of all.")
    intents: tuple[Annotated[int, Field(ge=2, le=1024)], ...] = Field(
        (32, 8, 4), min_length=1, description="Of each level, the finest first."
    )
    neighbours: int = Field(20, ge=1, le=1000, description="Of an item in the graph of items, at most.")
    entropy_weight: float = Field(0.001, ge=0, description="Of the entropy of what items belong to.")
    independence_weight: float = Field(0.01, ge=0, description="Of the dependence of a level's intents on each other.")

    def build(self, inputs: GraphInputs) -> "Huign":
        """Return the model."""
        return Huign(self, inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Intents:
    """One modality's intents, by level."""

    items: list[Tensor]
    """How much of each item belongs to each intent `[I, L]`."""
    intents: list[Tensor]
    """The intents' own vectors `[L, d]`."""

    def side_by_side(self) -> Tensor:
        """Return all levels `[I, K]`."""
        return torch.cat(self.items, dim=-1)


class Huign(GraphModel):
    """HUIGN. A part of a modality is its intents; `id` is the ids, beside them."""

    def __init__(self, config: HuignConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        near_II = co_interactions(inputs.graph, neighbours=config.neighbours)
        self._columns = inputs.features.used(config.modalities)
        self._hierarchies = nn.ModuleList(
            [
                _Hierarchy(inputs.with_presence(column), near_II, dim=config.dim, config=config)
                for column in self._columns
            ]
        )
        self._num_intents = sum(config.intents)
        self.intents_UK = nn.Parameter(torch.randn(inputs.graph.num_users, self._num_intents) * config.init_std)
        self._weights = config.entropy_weight, config.independence_weight
        self._last: list[Intents] = []

    @property
    def dim(self) -> int:
        """Return D."""
        return self._num_intents + self.users_UD.shape[1]

    def user_tables(self) -> list[nn.Parameter]:
        """Return ids and intents of users."""
        return [self.users_UD, self.intents_UK]

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:  # noqa: ARG002  # nothing is dropped
        """Return intents and ids side by side."""
        intents_IK = torch.stack([one.side_by_side() for one in self._intents()]).sum(dim=0)
        return Nodes(torch.cat([self.intents_UK, self.users_UD], dim=-1), torch.cat([intents_IK, self.ids_IF], dim=-1))

    def rows(self, users_B: Tensor, items_X: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the vectors of some users and items, and keep the intents for the step's other losses."""
        self._last = self._intents()
        intents_IK = torch.stack([one.side_by_side() for one in self._last]).sum(dim=0)
        users = [F.embedding(users_B, table) for table in (self.intents_UK, self.users_UD)]
        items = [F.embedding(items_X, table) for table in (intents_IK, self.ids_IF)]
        return torch.cat(users, dim=-1), torch.cat(items, dim=-1)

    def auxiliary(self, users_B: Tensor, items_X: Tensor) -> Tensor | None:  # noqa: ARG002  # of items alone
        """Return the two losses, each the mean over modalities and levels, of what the last `rows` made."""
        levels = [level for one in self._last for level in zip(one.items, one.intents, strict=True)]
        self._last = []
        rows_Y = torch.unique(items_X)
        entropies = [_entropy(F.embedding(rows_Y, items_IL)) for items_IL, _ in levels]
        dependences = [dependence(intents_Ld) for _, intents_Ld in levels]
        entropy_weight, independence_weight = self._weights
        return entropy_weight * torch.stack(entropies).mean() + independence_weight * torch.stack(dependences).mean()

    def parts(self) -> Tensor:
        """Return each modality's intents, and the ids, where they lie in the item's vector."""
        parts_IPD = self.ids_IF.new_zeros(len(self.ids_IF), self.num_parts, self.dim)
        for column, one in zip(self._columns, self._intents(), strict=True):
            parts_IPD[:, column, : self._num_intents] = one.side_by_side()
        parts_IPD[:, self.num_modalities, self._num_intents :] = self.ids_IF
        return parts_IPD

    def _intents(self) -> list[Intents]:
        return [hierarchy() for hierarchy in self._hierarchies]


class _Hierarchy(nn.Module):
    """The levels of one modality."""

    def __init__(self, content_IR: Tensor, near_II: SparseMatrix, *, dim: int, config: HuignConfig) -> None:
        super().__init__()
        self._near_II = near_II
        # What the graph of items does to content is linear and the same in every step: it is done once.
        smooth_IR = moved_IR = content_IR
        for _ in range(config.layers):
            moved_IR = near_II @ moved_IR
            smooth_IR = smooth_IR + moved_IR
        self._smooth_IR = smooth_IR / (config.layers + 1)
        widths = [content_IR.shape[1], *[dim] * (len(config.intents) - 1)]
        self.project = nn.ModuleList([nn.Linear(width, dim, bias=False) for width in widths])
        self.assign = nn.ModuleList([nn.Linear(dim, count) for count in config.intents])

    def forward(self) -> Intents:
        """Return the intents of all levels."""
        hidden_Nd = F.leaky_relu(self.project[0](self._smooth_IR))
        items: list[Tensor] = []
        intents: list[Tensor] = []
        for level, assign in enumerate(self.assign):
            share_NL = torch.softmax(assign(hidden_Nd), dim=-1)
            intents_Ld = share_NL.T @ hidden_Nd / share_NL.sum(dim=0).clamp_min(_LEAST).unsqueeze(-1)
            items.append(items[-1] @ share_NL if items else share_NL)
            intents.append(intents_Ld)
            if level + 1 < len(self.assign):
                near_LL = items[-1].T @ (self._near_II @ items[-1])
                near_LL = near_LL / near_LL.sum(dim=-1, keepdim=True).clamp_min(_LEAST)
                hidden_Nd = F.leaky_relu(self.project[level + 1](intents_Ld + near_LL @ intents_Ld))
        return Intents(items, intents)


_LEAST = 1e-12
"""What a divisor is at least: an intent may lose all items, and its share of them is 0 in float32 then."""


def _entropy(share_YL: Tensor) -> Tensor:
    """Return the mean entropy of rows that sum to 1, as a share of the largest possible one."""
    entropy_Y = -torch.xlogy(share_YL, share_YL.clamp_min(_LEAST)).sum(dim=-1)
    return entropy_Y.mean() / torch.log(torch.tensor(float(share_YL.shape[1])))


def dependence(vectors_Ld: Tensor) -> Tensor:
    """Return the mean squared distance correlation of different vectors, over the dimensions as their samples.

    1 where all tell the same, near 0 where each tells something else.
    """
    gaps_Ldd = (vectors_Ld.unsqueeze(-1) - vectors_Ld.unsqueeze(-2)).abs()
    centred_Ldd = gaps_Ldd - gaps_Ldd.mean(dim=-1, keepdim=True)
    centred_Ldd = centred_Ldd - centred_Ldd.mean(dim=-2, keepdim=True)
    # Correlations are inner products of what has length 1; vectors that are constant tell nothing and have none.
    unit_LZ = F.normalize(centred_Ldd.flatten(start_dim=1), dim=-1)
    correlation_LL = unit_LZ @ unit_LZ.T
    count = len(vectors_Ld)
    return (correlation_LL.sum() - correlation_LL.diagonal().sum()) / (count * (count - 1))
