"""The stages that train factor models and rankers: pairs against random items, or UltraGCN's weighted cross-entropy.

Legend: `B` users or pairs of a step, `X` positives, `N` negatives of a step, `n` negatives of a pair, `Z` = 1 + n items
of a pair, `K` neighbours of an item, `D` width, `Q` width of a query, `I` items.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.factors.data import FactorBatch
from training.factors.fit import Fit, FitStage
from training.factors.losses import bpr, cross_entropy, item_neighbours
from training.factors.ultragcn import UltraGcnLoss, negatives_of
from training.models import (
    LearnedUsers,
    PairwiseSettings,
    PamdConfig,
    RankerModel,
    RankerSettings,
    ScoredPairs,
    UltraGcnSettings,
)


class FactorFit(FitStage):
    """What all share."""

    _model: LearnedUsers

    def _vectors(self, batch: FactorBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors of the users, of the positives, and of the negatives `[N, D]` or `[X, n, D]`."""
        data, model, negatives = self._data, self._model, batch.negatives
        assert negatives is not None
        users_BD = model.users(batch.users_B)
        if len(batch.items_X) + negatives.numel() >= data.num_items:
            items_ID = model.items(data.content_IR)
            return users_BD, F.embedding(batch.items_X, items_ID), F.embedding(negatives, items_ID)
        rows, places = torch.unique(torch.cat([batch.items_X, negatives.flatten()]), return_inverse=True)
        items_YD = model.items(data.content_IR[rows], rows)
        positives_XD = F.embedding(places[: len(batch.items_X)], items_YD)
        return users_BD, positives_XD, F.embedding(places[len(batch.items_X) :].view(negatives.shape), items_YD)


class PairwiseFit(FactorFit):
    """Each pair before some random items (BPR), or pairs and random items each by themselves (PAMD's option)."""

    def __init__(self, fit: Fit, family: PairwiseSettings) -> None:
        super().__init__(fit, rows=fit.data.num_pairs)
        self._num_negatives = family.negatives
        self._loss = cross_entropy if isinstance(family, PamdConfig) and family.loss == "bce" else bpr

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        batch = self._data.pair_batch(
            self._number, step, size=self._optim.batch_size, num_negatives=self._num_negatives
        )
        users_BD, positives_BD, negatives_BnD = self._vectors(batch)
        positive_B = (users_BD * positives_BD).sum(dim=-1)
        negative_Bn = (negatives_BnD @ users_BD.unsqueeze(-1)).squeeze(-1)
        loss = self._loss(positive_B, negative_Bn).mean()
        return loss, batch, {self._loss.__name__: loss.detach()}


class RankerFit(FactorFit):
    """Pairs against items that the user lacks: each for itself (BCE), or before these (BPR)."""

    _model: RankerModel

    def __init__(self, fit: Fit, family: RankerSettings) -> None:
        super().__init__(fit, rows=fit.data.num_pairs)
        self._num_negatives, self._loss = family.negatives, family.loss

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        data, size = self._data, self._optim.batch_size
        batch = data.lacking_batch(self._number, step, size=size, num_negatives=self._num_negatives)
        users_BQ, positives_BD, negatives_BnD = self._vectors(batch)
        compared_BZD = torch.cat([positives_BD.unsqueeze(1), negatives_BnD], dim=1)
        scores_BZ = self._model.ranker(users_BQ.unsqueeze(1), compared_BZD, data.chance(self._number, step))
        kind = cross_entropy if self._loss == "bce" else bpr
        loss = kind(scores_BZ[:, 0], scores_BZ[:, 1:]).mean()
        told: dict[str, Tensor] = {self._loss: loss.detach()}
        pairs = ScoredPairs(users_BQ, positives_BD, batch.items_X, data.content_IR[batch.items_X])
        auxiliary = self._model.auxiliary(pairs)
        if auxiliary is not None:
            told["auxiliary"] = auxiliary.detach()
            loss = loss + auxiliary
        return loss, batch, told


class UltraGcnFit(FactorFit):
    """UltraGCN's loss, and the item-item term where it has a weight."""

    def __init__(self, fit: Fit, family: UltraGcnSettings) -> None:
        data = fit.data
        self._kind = negatives_of(family, data.num_items)
        rows = data.num_pairs if self._kind == "sampled" else len(data.users)
        super().__init__(fit, rows=rows)
        self._family, self._loss = family, UltraGcnLoss(family, data)
        self._neighbours: tuple[Tensor, Tensor] | None = None
        if family.item_item > 0:
            found = item_neighbours(
                data.user_E.numpy(),
                data.item_E.numpy(),
                num_users=data.num_users,
                num_items=data.num_items,
                count=family.item_neighbours,
            )
            self._neighbours = torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        data, family, size = self._data, self._family, self._optim.batch_size
        if self._kind == "sampled":
            batch = data.pair_batch(self._number, step, size=size, num_negatives=family.num_negatives)
        else:
            shared = family.num_negatives if self._kind == "shared" else None
            batch = data.user_batch(self._number, step, size=size, num_negatives=shared)
        count = len(batch.items_X)
        total, positive = self._summed(batch)
        told = {"positive": positive / count, "negative": (total - positive).detach() / count}
        loss = total / count
        if self._neighbours is not None:
            term = self._item_item(batch, *self._neighbours) / count
            told["item_item"] = term.detach()
            loss = loss + family.item_item * term
        return loss, batch, told

    def _summed(self, batch: FactorBatch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the pairs, and the positives' share of it."""
        place_X, items_X, negatives = batch.place_X, batch.items_X, batch.negatives
        if negatives is None:
            users_BD, items_ID = self._model.users(batch.users_B), self._model.items(self._data.content_IR)
            return self._loss.over_catalogue(batch.users_B, users_BD, items_ID, place_X=place_X, items_X=items_X)
        users_BD, positives_XD, negatives_ND = self._vectors(batch)
        kind = self._loss.over_sample if negatives.dim() == 1 else self._loss.over_samples_of_pairs
        return kind(
            batch.users_B,
            users_BD,
            place_X=place_X,
            items_X=items_X,
            positives_XD=positives_XD,
            rows=negatives,
            negatives=negatives_ND,
        )

    def _item_item(self, batch: FactorBatch, neighbours_IK: Tensor, omega_IK: Tensor) -> Tensor:
        """Return the item-item term (Eq. 19), summed over the pairs."""
        users_XD = F.embedding(batch.place_X, self._model.users(batch.users_B))
        near_XKD = F.embedding(neighbours_IK[batch.items_X], self._model.items(self._data.content_IR))
        score_XK = (near_XKD @ users_XD.unsqueeze(-1)).squeeze(-1)
        return (omega_IK[batch.items_X] * F.softplus(-score_XK)).sum()
