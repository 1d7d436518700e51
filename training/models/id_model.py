"""What the trainer and the serving kit ask of a model that learns numbers of single items, and mostly of single users.

Legend: `U` users, `I` items, `R` width of all modalities together, `X` items asked for, `P` parts of an item, `F`
numbers that are known of trained items alone, `D` width, `B` users.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from api_schemas.manifest import Scorer


class IdModel(nn.Module, ABC):
    """Items are a table when training is over."""

    scorer: ClassVar[Scorer] = "max"
    """What the inner products of a user's queries with an item make together."""
    ids_IF: nn.Parameter | None
    """What is learned for each item alone."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Return D."""

    @abstractmethod
    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:
        """Return the vectors `[X, D]` of items with this content; `rows_X` is None for the whole catalogue in order."""

    @abstractmethod
    def tables(self) -> list[nn.Parameter]:
        """Return what is learned for single users and items; all other parameters are shared."""

    def shared(self) -> list[nn.Parameter]:
        """Return what is learned for all users or items together."""
        own = {id(one) for one in self.tables()}
        return [one for one in self.parameters() if id(one) not in own]

    @abstractmethod
    def learned(self) -> Tensor:
        """Return what is known of trained items alone `[I, F]`, and has to be predicted for others."""

    @abstractmethod
    def as_items(self, learned_F: Tensor) -> Tensor:
        """Return what such numbers `[..., F]` add to an item's vector `[..., D]`."""

    @abstractmethod
    def as_learned(self, vector_D: Tensor) -> Tensor:
        """Return numbers `[F]` that add a vector `[D]` to an item, as far as they can."""

    @abstractmethod
    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:
        """Return the summed squares of what is learned for some users, so many times each, and of some items."""


class LearnedUsers(IdModel):
    """Users are a table, too: the score is the inner product."""

    users_UD: nn.Parameter
    """What is learned for each user alone."""

    @property
    def num_users(self) -> int:
        """Return U."""
        return self.users_UD.shape[0]

    @property
    def bias_dim(self) -> int:
        """Return 1 where the last number of an item's vector is a bias, and that of a user's 1; else 0."""
        return 0

    @abstractmethod
    def users(self, rows_B: Tensor) -> Tensor:
        """Return the vectors `[B, D]` of some users."""

    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:
        """Return the summed squares of what is learned for some users, so many times each, and of some items."""
        total = (F.embedding(users_B, self.users_UD).square().sum(dim=-1) * times_B).sum()
        if self.ids_IF is not None:
            times_I = items_X.bincount(minlength=len(self.ids_IF)).float()
            total = total + (self.ids_IF.square().sum(dim=-1) * times_I).sum()
        return total
