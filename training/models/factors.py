"""What all id-based families share: a user's vector times an item's vector, each learned for itself or from content.

A vector has up to three pieces, side by side: ids (F), content (C) and one number of bias. An item's content piece is
W (m * x) + b, where x is its modalities' vectors one after another and m a mask that only InvRL learns. As the score is
linear in all of it, an item is the sum of its parts: each modality, `id` and `bias` (see `training.factors.served`).

Legend: `U` users, `I` items, `R` width of all modalities together, `F` ids, `C` content, `D` = F + C (+ 1), `X` items
asked for.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import ModalityName
from training.models.id_model import IdsAndBias
from training.models.servable import FeatureSpec
from training.settings import Settings


@dataclass(frozen=True, slots=True)
class Layout:
    """Which pieces a family has."""

    ids: bool = True
    content: bool = True
    projection_bias: bool = False
    """b of the content piece, the same for all items."""
    item_bias: bool = False
    content_bias: bool = False
    """A linear function of content in the bias piece (VBPR's visual bias)."""


class FactorSettings(Settings):
    """What every id-based family can be told."""

    layout: ClassVar[Layout] = Layout()
    has_exact_fold_in: ClassVar[bool] = False
    """Whether the family reads users from histories by itself."""

    dim: int = Field(64, ge=1, le=1024, description="Width of the ids' piece of a vector, and of the content's piece.")
    history_length: int = Field(100, ge=1, le=500, description="L: live histories are cut to the last L items.")
    modalities: tuple[ModalityName, ...] | None = Field(
        None, description="Modalities that enter the score. Unset: all. Empty: none, ids alone."
    )
    init_std: float = Field(0.1, gt=0, le=10, description="Deviation of the normal law that all weights start from.")

    def pieces(self) -> Layout:
        """Return what this run's vectors are made of: the family's, unless it is told otherwise."""
        return self.layout

    def build(self, features: FeatureSpec, *, num_users: int, num_items: int) -> IdsAndBias:
        """Return freshly initialised tables for these users, items and modalities.

        Raises:
            ValueError: `modalities` names one that the data set lacks, or leaves an id-less family with nothing.
        """
        return FactorModel(self, features, num_users=num_users, num_items=num_items)


class FactorModel(IdsAndBias):
    """Tables of users and items, and the projection of content."""

    mask_R: Tensor

    def __init__(self, config: FactorSettings, features: FeatureSpec, *, num_users: int, num_items: int) -> None:
        super().__init__()
        layout, std = config.pieces(), config.init_std
        self.modalities = features.modalities
        self.num_items = num_items
        used_R = _used_columns(features, config.modalities)
        self.ids_dim = config.dim if layout.ids else 0
        self.content_dim = config.dim if layout.content and bool(used_R.any()) else 0
        if self.ids_dim + self.content_dim == 0:
            raise ValueError("model.modalities: is empty, and this family has no ids to go by")
        self.users_UD = nn.Parameter(torch.randn(num_users, self.ids_dim + self.content_dim) * std)
        self.ids_IF = nn.Parameter(torch.randn(num_items, self.ids_dim) * std) if layout.ids else None
        self.weight_CR: nn.Parameter | None = None
        self.bias_C: nn.Parameter | None = None
        self.content_bias_R: nn.Parameter | None = None
        if self.content_dim > 0:
            self.weight_CR = nn.Parameter(torch.randn(self.content_dim, len(used_R)) * std)
            self.bias_C = nn.Parameter(torch.zeros(self.content_dim)) if layout.projection_bias else None
            self.content_bias_R = nn.Parameter(torch.zeros(len(used_R))) if layout.content_bias else None
        self.item_bias_I = nn.Parameter(torch.zeros(num_items)) if layout.item_bias else None
        self.register_buffer("mask_R", used_R.float())

    @property
    def bias_dim(self) -> int:
        """Return 1 where there is a piece of bias, else 0."""
        return int(self.item_bias_I is not None or self.content_bias_R is not None)

    @property
    def dim(self) -> int:
        """Return D."""
        return self.ids_dim + self.content_dim + self.bias_dim

    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:
        """Return the vectors `[X, D]` of items with this content; `rows_X` is None for the whole catalogue in order."""
        pieces = []
        if self.ids_IF is not None:
            pieces.append(self.ids_IF if rows_X is None else F.embedding(rows_X, self.ids_IF))
        if self.weight_CR is not None:
            # W (m * x) = (W diag(m)) x: masks the small matrix instead of the catalogue.
            pieces.append(F.linear(content_XR, self.weight_CR * self.mask_R, self.bias_C))
        if self.bias_dim:
            bias_X = content_XR.new_zeros(len(content_XR))
            if self.item_bias_I is not None:
                bias_X = bias_X + (self.item_bias_I if rows_X is None else self.item_bias_I[rows_X])
            if self.content_bias_R is not None:
                bias_X = bias_X + content_XR @ (self.content_bias_R * self.mask_R)
            pieces.append(bias_X.unsqueeze(-1))
        return torch.cat(pieces, dim=-1)


def _used_columns(features: FeatureSpec, names: tuple[str, ...] | None) -> Tensor:
    used = features.used(names)
    return torch.cat(
        [torch.full((modality.dim,), m in used, dtype=torch.bool) for m, modality in enumerate(features.modalities)]
    )
