"""What the trainer and the serving kit ask of a model that learns numbers of single items, and mostly of single users.

Legend: `U` users, `I` items, `R` width of all modalities together, `X` items asked for, `P` parts of an item, `F`
numbers that are known of trained items alone, `D` width, `H` width of a history row, `B` users, `Q` queries of a user.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from api_schemas.manifest import Scorer
from training.models.servable import score_catalogue


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

    def history_rows(self, content_IR: Tensor) -> Tensor | None:  # noqa: ARG002  # most have none
        """Return what users are read from in place of the catalogue's vectors `[I, H]`; None: from these."""
        return None

    def score(self, queries_BQD: Tensor, items_XD: Tensor) -> Tensor:
        """Return the scores `[B, X]` of users with these queries, each with every item; for whole catalogues, too."""
        return score_catalogue(queries_BQD, items_XD, scorer=self.scorer)

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

    def lift(self, queries_BQD: Tensor) -> Tensor:
        """Return the shortest learned numbers `[F]` that raise an item's score with the mean user by 1."""
        mean_F = self.as_learned(queries_BQD.mean(dim=(0, 1)))
        return mean_F / mean_F.square().sum().clamp_min(1e-12)

    @abstractmethod
    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:
        """Return the summed squares of what is learned for some users, so many times each, and of some items."""


class LearnedUsers(IdModel):
    """Users are a table, too, and have one query each."""

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
        """Return the queries `[B, D]` of some users: their vectors, unless a ranker makes another of them."""

    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:
        """Return the summed squares of what is learned for some users, so many times each, and of some items."""
        total = (F.embedding(users_B, self.users_UD).square().sum(dim=-1) * times_B).sum()
        if self.ids_IF is not None:
            times_I = items_X.bincount(minlength=len(self.ids_IF)).float()
            total = total + (self.ids_IF.square().sum(dim=-1) * times_I).sum()
        return total


class IdsAndBias(LearnedUsers):
    """A vector begins with what is the item's own, and ends with its bias, where items have one."""

    num_items: int
    """I."""
    ids_dim: int
    """F."""
    item_bias_I: nn.Parameter | None

    @property
    def bias_dim(self) -> int:
        """Return 1 where items have a bias, else 0."""
        return int(self.item_bias_I is not None)

    def users(self, rows_B: Tensor) -> Tensor:
        """Return the vectors `[B, D]` of some users."""
        vectors_BD = F.embedding(rows_B, self.users_UD)
        return F.pad(vectors_BD, (0, 1), value=1.0) if self.bias_dim else vectors_BD

    def tables(self) -> list[nn.Parameter]:
        """Return users, ids and the items' biases."""
        return [one for one in (self.users_UD, self.ids_IF, self.item_bias_I) if one is not None]

    def learned(self) -> Tensor:
        """Return ids and bias side by side `[I, F (+ 1)]`."""
        ids_IF = self.users_UD.new_zeros(self.num_items, 0) if self.ids_IF is None else self.ids_IF.detach()
        if self.item_bias_I is None:
            return ids_IF
        return torch.cat([ids_IF, self.item_bias_I.detach().unsqueeze(-1)], dim=-1)

    def as_items(self, learned_F: Tensor) -> Tensor:
        """Return learned numbers where items' vectors `[..., D]` have them, and zero elsewhere."""
        vectors_D = learned_F.new_zeros(*learned_F.shape[:-1], self.dim)
        vectors_D[..., : self.ids_dim] = learned_F[..., : self.ids_dim]
        if self.item_bias_I is not None:
            vectors_D[..., -1] = learned_F[..., -1]
        return vectors_D

    def as_learned(self, vector_D: Tensor) -> Tensor:
        """Return the vector's pieces of ids and bias."""
        pieces = [vector_D[: self.ids_dim]] + ([vector_D[-1:]] if self.item_bias_I is not None else [])
        return torch.cat(pieces)
