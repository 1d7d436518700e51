"""What all graph models share: tables of users and items, propagated over the graph of interactions.

Nothing of an item's vector is a function of its own content alone, as its neighbours' are in it: so all its parts are
learned numbers, known of trained items and predicted for others.

Legend: `U` users, `I` items, `M` modalities, `R_m` width of a modality, `P` parts of an item (the modalities, `id`,
what else the family adds), `D` width, `B` pairs of a step.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import ModalityName
from training.blocks.propagation import InteractionGraph, Nodes
from training.models.id_model import LearnedUsers
from training.models.servable import FeatureSpec
from training.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class GraphInputs:
    """What a graph model is built on."""

    graph: InteractionGraph
    features: FeatureSpec
    content: list[Tensor]
    """`[I, R_m]` of each modality, zero where an item lacks it."""
    presence_IM: Tensor

    def used(self, names: tuple[str, ...] | None) -> list[int]:
        """Return the columns of the modalities that are asked for; None asks for all.

        Raises:
            ValueError: The data set lacks one.
        """
        return self.features.used(names)

    def unit_content(self, column: int) -> Tensor:
        """Return one modality's vectors at length 1 `[I, R_m]`, zero where absent."""
        return F.normalize(self.content[column], dim=-1)

    def with_presence(self, column: int) -> Tensor:
        """Return these vectors, and 1 where an item has the modality: a projection's constant `[I, R_m + 1]`."""
        return torch.cat([self.unit_content(column), self.presence_IM[:, column : column + 1].float()], dim=-1)


class GraphSettings(Settings):
    """What every graph family can be told."""

    has_exact_fold_in: ClassVar[bool] = False
    """Whether the family reads users from histories by itself: `GraphModel.history_parts` gives rows then."""

    dim: int = Field(64, ge=1, le=1024, description="Width of the tables of users and items.")
    layers: int = Field(3, ge=1, le=10, description="Steps of propagation.")
    history_length: int = Field(100, ge=1, le=500, description="L: live histories are cut to the last L items.")
    init_std: float = Field(0.1, gt=0, le=10, description="Deviation of the normal law that tables start from.")
    negatives: int = Field(1, ge=1, le=1000, description="Random items that each pair is compared with.")

    @abstractmethod
    def build(self, inputs: GraphInputs) -> "GraphModel":
        """Return a freshly initialised model of these users, items and modalities.

        Raises:
            ValueError: The settings do not fit the data.
        """


class ContentGraphSettings(GraphSettings):
    """Of the families that read content."""

    modalities: tuple[ModalityName, ...] | None = Field(
        None, description="Modalities that enter the score. Unset: all. Empty: none, ids alone."
    )


class ModalGraphSettings(GraphSettings):
    """Of the families that are nothing without content."""

    modalities: tuple[ModalityName, ...] | None = Field(
        None, min_length=1, description="Modalities that enter the score. Unset: all."
    )


class GraphModel(LearnedUsers):
    """Tables of users and items, and what becomes of them on the graph."""

    extra_parts: ClassVar[tuple[str, ...]] = ("id",)
    """Parts beside the modalities."""

    ids_IF: nn.Parameter

    def __init__(self, config: GraphSettings, inputs: GraphInputs) -> None:
        super().__init__()
        graph = inputs.graph
        self.num_modalities = len(inputs.features.modalities)
        self.users_UD = nn.Parameter(torch.randn(graph.num_users, config.dim) * config.init_std)
        self.ids_IF = nn.Parameter(torch.randn(graph.num_items, config.dim) * config.init_std)

    @property
    def dim(self) -> int:
        """Return the width of the users' table; families that put more side by side say so."""
        return self.users_UD.shape[1]

    @property
    def num_parts(self) -> int:
        """Return P."""
        return self.num_modalities + len(self.extra_parts)

    @abstractmethod
    def nodes(self, chance: torch.Generator | None = None) -> Nodes:
        """Return the final tables.

        Args:
            chance: In training, where whatever is drawn (edges, messages that are dropped) comes from; None: nothing
                is dropped.
        """

    @abstractmethod
    def parts(self) -> Tensor:
        """Return what each part adds to each item's vector `[I, P, D]`: they sum to `nodes().items_ID`."""

    def history_parts(self) -> Tensor | None:
        """Return what each part adds to an item's row in a history `[I, P, D]`; None: rows are the items' vectors.

        Where it is given, a user with history S is `fold_in_offset` + the sum of the rows over S / sqrt(|S|): what the
        propagation itself gives a new user whose items are held fixed.
        """
        return None

    def fold_in_offset(self) -> Tensor:
        """Return `[D]`, see `history_parts`."""
        return self.users_UD.new_zeros(self.dim)

    def rows(self, users_B: Tensor, items_X: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the vectors of some users `[B, D]` and items `[X, D]`, in training."""
        nodes = self.nodes(chance)
        return F.embedding(users_B, nodes.users_UD), F.embedding(items_X, nodes.items_ID)

    def auxiliary(self, users_B: Tensor, items_X: Tensor) -> Tensor | None:  # noqa: ARG002  # most have none
        """Return the family's own further loss for a step's users and items, weighted; called after `rows`."""
        return None

    def user_tables(self) -> list[nn.Parameter]:
        """Return what is learned for single users, a row for each."""
        return [self.users_UD]

    def item_tables(self) -> list[nn.Parameter]:
        """Return what is learned for single items, a row for each."""
        return [self.ids_IF]

    def tables(self) -> list[nn.Parameter]:
        """Return the tables of users and items."""
        return [*self.user_tables(), *self.item_tables()]

    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:
        """Return the summed squares of some users' rows in all tables, so many times each, and of some items'."""
        total = self.users_UD.new_zeros(())
        for table in self.user_tables():
            total = total + (F.embedding(users_B, table).square().sum(dim=-1) * times_B).sum()
        times_I = items_X.bincount(minlength=len(self.ids_IF)).to(total.dtype)
        for table in self.item_tables():
            total = total + (table.square().sum(dim=-1) * times_I).sum()
        return total

    def users(self, rows_B: Tensor) -> Tensor:
        """Return the vectors `[B, D]` of some users."""
        return self.nodes().users_UD[rows_B]

    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:  # noqa: ARG002  # the model has it
        """Return the vectors of all items, or of some `[X, D]`."""
        items_ID = self.nodes().items_ID
        return items_ID if rows_X is None else items_ID[rows_X]

    def learned(self) -> Tensor:
        """Return all parts, each with its part of the history row where there is one, side by side `[I, F]`."""
        parts_IPD, history_IPD = self.parts(), self.history_parts()
        states_IPS = parts_IPD if history_IPD is None else torch.cat([parts_IPD, history_IPD], dim=-1)
        return states_IPS.flatten(start_dim=1)

    def as_items(self, learned_F: Tensor) -> Tensor:
        """Return the sum of the parts."""
        states_PS = learned_F.view(*learned_F.shape[:-1], self.num_parts, -1)
        return states_PS[..., : self.dim].sum(dim=-2)

    def as_learned(self, vector_D: Tensor) -> Tensor:
        """Return numbers that have the vector as part `id` and are zero elsewhere."""
        states_PS = torch.zeros_like(self.learned()[0]).view(self.num_parts, -1)
        states_PS[self.num_modalities, : self.dim] = vector_D
        return states_PS.flatten()

    def as_id(self, items_ID: Tensor) -> Tensor:
        """Return parts `[I, P, D]` of items that are part `id` alone."""
        parts_IPD = items_ID.new_zeros(len(items_ID), self.num_parts, items_ID.shape[1])
        parts_IPD[:, self.num_modalities] = items_ID
        return parts_IPD


def projection(width: int, dim: int) -> nn.Parameter:
    """Return freshly initialised weights `[dim, width]`."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, width)))
