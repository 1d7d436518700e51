"""EASE, SLIT, item-kNN and popularity: tables of items, solved and not trained. No user, no content.

Of the first three a user's score of an item is the sum over the history of what each past item says for it, B_ji. The
service scores by inner products, so B is kept as two tables of one width, B_ji = row_j . item_i for j other than i; how
they are made is in `training.factors.closed_form`. Popularity is one number of an item, and 1 of every user.

Legend: `X` items asked for, `I` items, `D` width of either table, `B` users.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.models.id_model import IdModel
from training.settings import Settings


class SolvedSettings(Settings):
    """What all can be told."""

    has_exact_fold_in: ClassVar[bool] = True
    """A rule of their own, and there is no other."""

    history_length: int = Field(
        200, ge=1, le=500, description="L: live histories are cut to the last L items; the solution reads all."
    )


class PopularityConfig(SolvedSettings):
    """The share of users that have an item, for everybody: what a model has to beat, and an experiment's control."""

    kind: Literal["popularity"] = "popularity"
    history_length: int = Field(
        20, ge=1, le=500, description="L: past items that an explanation names; none of them has any weight."
    )

    def build(self, *, num_items: int) -> "ItemItem":
        """Return tables of these items, still empty."""
        return ItemItem(num_items=num_items, dim=1)


class ItemItemSettings(SolvedSettings):
    """What models of pairs of items can be told."""

    dim: int = Field(
        512,
        ge=1,
        le=4096,
        description="Directions of the weights that are kept; nothing is lost with as many as there are items.",
    )

    def build(self, *, num_items: int) -> "ItemItem":
        """Return tables of these items, still empty."""
        return ItemItem(num_items=num_items, dim=min(self.dim, num_items))


class EaseConfig(ItemItemSettings):
    """EASE (Steck 2019): linear regression of every item on all others, in closed form."""

    kind: Literal["ease"] = "ease"
    ridge: float = Field(400.0, gt=0, le=1e9, description="lambda: of the regression; more for sparser data.")


class SlitSettings(Settings):
    """What the regression of SLIT can be told. Half-lives are in items, not in time."""

    ridge: float = Field(1000.0, gt=0, le=1e9, description="lambda: of the regression; more for sparser data.")
    past: float = Field(5.0, gt=0, le=500, description="Half-life of past items, here and when it is served.")
    future: float = Field(2.0, gt=0, le=500, description="Half-life of the items that are to be found.")


class SlitConfig(ItemItemSettings, SlitSettings):
    """SLIT (Choi et al., WWW 2021): linear regression of what comes next on what came last, in closed form."""

    kind: Literal["slit"] = "slit"
    history_length: int = Field(
        50, ge=1, le=500, description="L: live histories are cut to the last L items; the solution reads all."
    )


class ItemKnnConfig(ItemItemSettings):
    """Cosine similarity of items as sets of users, of each item's nearest neighbours."""

    kind: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(100, ge=1, le=100_000, description="Past items that can speak for an item: its nearest.")


class ItemItem(IdModel):
    """The two tables; of popularity each is one column, and its rows say nothing."""

    items_ID: nn.Parameter
    rows_ID: nn.Parameter

    def __init__(self, *, num_items: int, dim: int) -> None:
        super().__init__()
        self.items_ID = nn.Parameter(torch.zeros(num_items, dim))
        self.rows_ID = nn.Parameter(torch.zeros(num_items, dim))

    @property
    def dim(self) -> int:
        """Return D."""
        return self.items_ID.shape[1]

    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:  # noqa: ARG002  # it reads no content
        """Return the vectors of all items, or of some `[X, D]`."""
        return self.items_ID if rows_X is None else F.embedding(rows_X, self.items_ID)

    def history_rows(self, content_IR: Tensor) -> Tensor:  # noqa: ARG002  # it reads no content
        """Return what items say when they are in a history `[I, D]`."""
        return self.rows_ID

    def tables(self) -> list[nn.Parameter]:
        """Return both tables."""
        return [self.items_ID, self.rows_ID]

    def learned(self) -> Tensor:
        """Return vector and row side by side `[I, 2D]`."""
        return torch.cat([self.items_ID, self.rows_ID], dim=-1)

    def as_items(self, learned_F: Tensor) -> Tensor:
        """Return the vectors of such numbers `[..., D]`."""
        return learned_F[..., : self.dim]

    def as_learned(self, vector_D: Tensor) -> Tensor:
        """Return numbers that add the vector to an item, and nothing to its row."""
        return F.pad(vector_D, (0, self.dim))

    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:  # noqa: ARG002  # of no user
        """Return the summed squares of what is known of some items."""
        return F.embedding(items_X, self.learned()).square().sum()
