"""SLMRec (Tao et al. 2022): one LightGCN channel for ids and one for each modality, fused by an affine map.

All channels share the users' table: Z_m^(0) = [E_U; F_m], Z_m = the mean of layers 0 to L, F_m = W_m x + b_m of vectors
x of length 1 (Eq. 1-3). Propagation is linear, which saves most of the work:

- what comes from the users' table is the same in all channels, so it is propagated once;
- the graph has two sides, so users' and items' ids together cost one propagation, not two;
- W_m comes after propagation as well as before it: narrow content is propagated once and for all, and a step reads the
  rows that it needs.

The same linearity makes explanations exact: of a channel's vector, what comes from content is the modality's part, what
comes from the tables of users and items is `id`, in whichever channel it runs.

Legend: `U` users, `I` items, `R` width of a modality, `C` channels (ids, then modalities), `d` width of a channel, `D`
width, `B` users, `Y` items, `N` nodes, `P` parts.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.dropout import dropout
from training.blocks.propagation import Nodes, Propagator
from training.models.graph import ContentGraphSettings, GraphInputs, GraphModel, projection
from training.models.lightgcn import received

PRECOMPUTED_WIDTH = 512
"""Wider content is projected first and propagated in every step."""


class ChannelSettings(ContentGraphSettings):
    """What both families of channels can be told."""

    has_exact_fold_in: ClassVar[bool] = True

    fusion: Literal["concat", "mean"] = Field(
        "concat", description="concat: an affine map of the channels side by side. mean: of the channels."
    )
    scorer: Literal["cosine", "dot"] = Field(
        "cosine",
        description="Of users and items, in training and serving alike; the paper trains by cosine and serves dot.",
    )

    def build(self, inputs: GraphInputs) -> "ChannelModel":
        """Return the model."""
        return ChannelModel(self, inputs)


class LightGcnChannelsConfig(ChannelSettings):
    """The LightGCN of SLMRec's table: its channels without self-supervision, trained on pairs (BPR)."""

    kind: Literal["lightgcn_channels"] = "lightgcn_channels"
    scorer: Literal["cosine", "dot"] = Field("dot", description="Of users and items, in training and serving alike.")


class SlmrecConfig(ChannelSettings):
    """SLMRec: in-batch InfoNCE and self-supervised tasks, each with a weight."""

    kind: Literal["slmrec"] = "slmrec"
    main_weight: float = Field(1.0, ge=0, description="Of the main loss; 0 leaves self-supervision alone.")
    fac_weight: float = Field(0.1, ge=0, description="alpha of FAC: ids predict modalities in ever coarser spaces.")
    fm_weight: float = Field(0.0, ge=0, description="alpha of FM: two views that each lack a modality.")
    fd_weight: float = Field(0.0, ge=0, description="alpha of FD: two views with dropout.")
    tau: float = Field(0.2, gt=0, le=10, description="Temperature of the main loss.")
    tau_ssl: float = Field(0.2, gt=0, le=10, description="Temperature of the self-supervised losses.")
    mask_positives: bool = Field(
        True, description="A user's other items in the batch are no negatives; as published they are."
    )
    correct_popularity: bool = Field(
        False,
        description="Divide what a negative counts by how often it is expected in a batch (logQ): else popular items "
        "are held down for being in many.",
    )
    negatives: int = Field(0, ge=0, le=1_000_000, description="Random items that join those of the batch.")
    fac_similarity: Literal["cosine", "dot"] = Field("cosine", description="Of FAC; published code has dot.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Of FD.")
    dropped: Literal["messages", "features"] = Field(
        "messages",
        description="messages: FD drops them after each layer, as published code has it. features: content, as the "
        "paper has it.",
    )

    def build(self, inputs: GraphInputs) -> "Slmrec":
        """Return the model.

        Raises:
            ValueError: FAC or FM has a weight, and there is no modality to it.
        """
        if not inputs.features.used(self.modalities) and (self.fac_weight > 0 or self.fm_weight > 0):
            raise ValueError("model.modalities: is empty, and fac_weight and fm_weight need at least one")
        return Slmrec(self, inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """Some users or some items in all channels."""

    shared_ND: Tensor
    """What comes from the users' table."""
    own: list[Tensor]
    """What comes from each channel's items: ids, then modalities."""

    def all(self, *, without: int | None = None) -> list[Tensor]:
        """Return the channels `[N, d]`; one of them may lack what its items have."""
        return [self.shared_ND if c == without else self.shared_ND + own_ND for c, own_ND in enumerate(self.own)]

    def some(self, rows: Tensor) -> "Channels":
        """Return some of them."""
        return Channels(F.embedding(rows, self.shared_ND), [F.embedding(rows, own_ND) for own_ND in self.own])


class ChannelModel(GraphModel):
    """Channels, fusion, and the two in parts."""

    extra_parts: ClassVar[tuple[str, ...]] = ("id", "bias")

    def __init__(self, config: ChannelSettings, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        self._layers, self._step = config.layers, inputs.graph.operator()
        self.is_cosine = config.scorer == "cosine"
        self._received_I1 = received(inputs.graph.degree_I, layers=config.layers)
        self._columns = inputs.features.used(config.modalities)
        contents = [inputs.with_presence(column) for column in self._columns]
        self.projections = nn.ParameterList([projection(one.shape[1], config.dim) for one in contents])
        self.content = [_Content(one, self._step, layers=config.layers) for one in contents]
        width = config.dim * self.num_channels
        self.fuse_users = nn.Linear(width, config.dim) if config.fusion == "concat" else None
        self.fuse_items = nn.Linear(width, config.dim) if config.fusion == "concat" else None

    @property
    def num_channels(self) -> int:
        """Return C."""
        return 1 + len(self._columns)

    def channels(self, users_B: Tensor | None, items_Y: Tensor | None) -> tuple[Channels, Channels]:
        """Return some users and some items in all channels; None asks for all."""
        shared = self._step.mean_of_users(self.users_UD, self._layers)
        ids = self._step.mean_of_items(self.ids_IF, self._layers)
        content = [
            one.rows(weight_dR, users_B, items_Y) for one, weight_dR in zip(self.content, self.projections, strict=True)
        ]
        users = Channels(
            _rows(shared.users_UD, users_B), [_rows(ids.users_UD, users_B), *[one.users_UD for one in content]]
        )
        items = Channels(
            _rows(shared.items_ID, items_Y), [_rows(ids.items_ID, items_Y), *[one.items_ID for one in content]]
        )
        return users, items

    def fused(self, channels: list[Tensor], side: Literal["users", "items"]) -> Tensor:
        """Return users or items `[N, D]` of all channels."""
        fuse = self.fuse_users if side == "users" else self.fuse_items
        if fuse is None:
            return torch.stack(channels).mean(dim=0)
        fused_ND: Tensor = fuse(torch.cat(channels, dim=-1))
        return fused_ND

    def scored(self, vectors_ND: Tensor) -> Tensor:
        """Return the vectors as the scorer has them."""
        return F.normalize(vectors_ND, dim=-1) if self.is_cosine else vectors_ND

    def nodes(self, chance: torch.Generator | None = None) -> Nodes:  # noqa: ARG002  # nothing is dropped
        """Return both fused tables, as scored."""
        users, items = self.channels(None, None)
        return Nodes(self.scored(self.fused(users.all(), "users")), self.scored(self.fused(items.all(), "items")))

    def rows(self, users_B: Tensor, items_X: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the vectors of some users and items; only their rows are fused."""
        rows_Y, place_X = torch.unique(items_X, return_inverse=True)
        users, items = self.channels(users_B, rows_Y)
        items_YD = self.scored(self.fused(items.all(), "items"))
        return self.scored(self.fused(users.all(), "users")), F.embedding(place_X, items_YD)

    def parts(self) -> Tensor:
        """Return the items' vectors by part; under cosine each is divided by the item's length."""
        items = self.channels(None, None)[1]
        parts_IPD = self._split(items, self.fuse_items)
        if self.fuse_items is not None:
            parts_IPD[:, -1] = self.fuse_items.bias
        return (
            parts_IPD / parts_IPD.sum(dim=1).norm(dim=-1).clamp_min(1e-12)[:, None, None]
            if self.is_cosine
            else parts_IPD
        )

    def history_parts(self) -> Tensor:
        """Return the rows of the exact fold-in: W_U over all channels of what a new user receives of an item."""
        before = self._layers - 1
        shared = self._step.mean_of_users(self.users_UD, before)
        ids = self._step.mean_of_items(self.ids_IF, before)
        content = [
            self._step.mean_of_items(one.projected(weight_dR), before).items_ID
            for one, weight_dR in zip(self.content, self.projections, strict=True)
        ]
        received = Channels(shared.items_ID, [ids.items_ID, *content])
        return self._split(received, self.fuse_users) * self._received_I1[:, None]

    def fold_in_offset(self) -> Tensor:
        """Return b_U."""
        return super().fold_in_offset() if self.fuse_users is None else self.fuse_users.bias

    def _split(self, channels: Channels, fuse: nn.Linear | None) -> Tensor:
        """Return what each part adds to the fused vectors `[N, P, D]`, the constant left out."""
        weights = [
            torch.eye(self.dim) / self.num_channels
            if fuse is None
            else fuse.weight[:, c * self.dim : (c + 1) * self.dim]
            for c in range(self.num_channels)
        ]
        parts_NPD = channels.shared_ND.new_zeros(len(channels.shared_ND), self.num_parts, self.dim)
        parts_NPD[:, self.num_modalities] = (
            channels.own[0] @ weights[0].T + channels.shared_ND @ torch.stack(weights).sum(dim=0).T
        )
        for column, own_ND, weight_DD in zip(self._columns, channels.own[1:], weights[1:], strict=True):
            parts_NPD[:, column] = own_ND @ weight_DD.T
        return parts_NPD


class Slmrec(ChannelModel):
    """SLMRec: the channels, and what FAC moves their items through."""

    def __init__(self, config: SlmrecConfig, inputs: GraphInputs) -> None:
        super().__init__(config, inputs)
        count = len(self._columns) if config.fac_weight > 0 else 0
        # As published: spaces as wide as a channel, the last one half of it.
        widths = [config.dim] * (count - 1) + [max(1, config.dim // 2)] if count > 1 else [config.dim] * count
        self.onward = nn.ModuleList([nn.Linear(*pair) for pair in zip([config.dim, *widths], widths, strict=False)])
        """From each space to the next; the first one takes ids."""
        self.spaces = nn.ModuleList([nn.Linear(config.dim, width) for width in widths])
        """From each modality to its space."""

    def without_messages(
        self, users_B: Tensor, items_Y: Tensor, *, share: float, chance: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return some users and some items in all channels, some messages dropped at random after each layer (FD).

        Each channel loses other messages, so nothing is shared or done beforehand: this costs C full propagations.
        """
        content = [one.projected(weight_dR) for one, weight_dR in zip(self.content, self.projections, strict=True)]
        nodes = Nodes(self.users_UD.repeat(1, self.num_channels), torch.cat([self.ids_IF, *content], dim=-1))
        users_UZ, items_IZ = nodes
        for _ in range(self._layers):
            nodes = Nodes(*(dropout(one, share=share, chance=chance) for one in self._step(nodes)))
            users_UZ, items_IZ = users_UZ + nodes.users_UD, items_IZ + nodes.items_ID
        users_BZ, items_YZ = F.embedding(users_B, users_UZ), F.embedding(items_Y, items_IZ)
        count, width = self._layers + 1, self.users_UD.shape[1]
        return list(torch.split(users_BZ / count, width, dim=-1)), list(torch.split(items_YZ / count, width, dim=-1))

    def without_features(
        self,
        users: Channels,
        items: Channels,
        users_B: Tensor,
        items_Y: Tensor,
        *,
        share: float,
        chance: torch.Generator,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the same users and items where some of all items' content is dropped before it is propagated (FD).

        What comes from the tables of users and ids stays, and is not propagated again.
        """
        own_users, own_items = [users.own[0]], [items.own[0]]
        for one, weight_dR in zip(self.content, self.projections, strict=True):
            content_Id = dropout(one.projected(weight_dR), share=share, chance=chance)
            mean = self._step.mean_of_items(content_Id, self._layers)
            own_users.append(F.embedding(users_B, mean.users_UD))
            own_items.append(F.embedding(items_Y, mean.items_ID))
        return Channels(users.shared_ND, own_users).all(), Channels(items.shared_ND, own_items).all()


class _Content:
    """One modality on the graph: vectors of items, which users get from them."""

    def __init__(self, content_IR: Tensor, step: Propagator, *, layers: int) -> None:
        self._content_IR, self._step, self._layers = content_IR, step, layers
        is_narrow = content_IR.shape[1] <= PRECOMPUTED_WIDTH
        self._mean = step.mean_of_items(content_IR, layers) if is_narrow else None

    def projected(self, weight_dR: Tensor) -> Tensor:
        """Return layer 0 `[I, d]`."""
        return F.linear(self._content_IR, weight_dR)

    def rows(self, weight_dR: Tensor, users_B: Tensor | None, items_Y: Tensor | None) -> Nodes:
        """Return the mean of the layers for some users and items."""
        if self._mean is None:
            mean = self._step.mean_of_items(self.projected(weight_dR), self._layers)
            return Nodes(_rows(mean.users_UD, users_B), _rows(mean.items_ID, items_Y))
        users_BR, items_YR = _rows(self._mean.users_UD, users_B), _rows(self._mean.items_ID, items_Y)
        return Nodes(F.linear(users_BR, weight_dR), F.linear(items_YR, weight_dR))


def _rows(table_ND: Tensor, rows_B: Tensor | None) -> Tensor:
    return table_ND if rows_B is None else F.embedding(rows_B, table_ND)
