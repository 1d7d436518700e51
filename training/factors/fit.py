"""The stage that trains a model itself: pairs against random items (BPR), or UltraGCN's weighted cross-entropy.

Legend: `B` users or pairs of a step, `X` positives, `N` negatives of a step, `n` negatives of a pair, `K` neighbours of
an item, `D` width, `I` items.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import FactorRun
from training.factors.data import FactorBatch, FactorData
from training.factors.losses import bpr, item_neighbours
from training.factors.stages import STEPS_PER_EPOCH, Carry, Facts, Stage
from training.factors.ultragcn import UltraGcnLoss, negatives_of
from training.models import FactorModel, PairwiseSettings, UltraGcnSettings
from training.schedule import factor


@dataclass(frozen=True, slots=True)
class Fit:
    """A model to be trained."""

    name: str
    number: int
    model: FactorModel
    data: FactorData
    config: FactorRun
    prefix: str
    """Of the parameters that the stage hands on."""


def fit_stage(fit: Fit) -> "FitStage":
    """Return the stage that trains a family's model."""
    family = fit.config.model
    if isinstance(family, PairwiseSettings):
        return _PairwiseFit(fit, family)
    assert isinstance(family, UltraGcnSettings)
    return _UltraGcnFit(fit, family)


class FitStage(Stage):
    """Training with validation and early stop."""

    def __init__(self, fit: Fit, *, rows: int) -> None:
        """Take what is to be trained; `rows` are the pairs or users of an epoch."""
        self.name, self.module, self._model = fit.name, fit.model, fit.model
        self._number, self._data, self._optim, self._prefix = fit.number, fit.data, fit.config.optim, fit.prefix
        self._steps_per_epoch = per_epoch = fit.data.steps(rows, self._optim.batch_size)
        most = self._optim.epochs * per_epoch
        self.total_steps = min(most, self._optim.max_steps or most)
        self.validate_every = max(1, round(fit.config.eval.every_epochs * per_epoch))

    def groups(self) -> list[dict[str, object]]:
        """Return tables and projection apart: each has its L2."""
        optim, model = self._optim, self._model
        projection = [one for one in (model.weight_CR, model.bias_C, model.content_bias_R) if one is not None]
        tables = [one for one in (model.users_UD, model.ids_IF, model.item_bias_I) if one is not None]
        # Adam's weight decay w adds w times the parameter to its gradient: the gradient of w / 2 times its square.
        decay = 2 * optim.l2_tables if optim.l2_scope == "tables" else 0.0
        return [
            {"params": tables, "lr": optim.lr, "weight_decay": decay},
            {"params": projection, "lr": optim.lr, "weight_decay": 2 * optim.l2_projection},
        ]

    def lr_factor(self, step: int) -> float:
        """Return the schedule's factor."""
        return factor(self._optim, step=step, total_steps=self.total_steps)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the family's loss, with the L2 of the rows that the step touches."""
        loss, batch, told = self._step(step)
        if self._optim.l2_scope == "batch" and self._optim.l2_tables > 0:
            loss = loss + self._optim.l2_tables * 0.5 * self._squared_rows(batch)
        return {"total": loss, **told}

    @abstractmethod
    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        """Return a step's mean loss over its pairs, what they are, and what is told of it."""

    def finish(self) -> tuple[Carry, Facts]:
        """Hand on the parameters."""
        parameters = {f"{self._prefix}.{name}": value.clone() for name, value in self._model.state_dict().items()}
        return parameters, {STEPS_PER_EPOCH: self._steps_per_epoch}

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

    def _squared_rows(self, batch: FactorBatch) -> Tensor:
        """Return the squared lengths of the own rows of the step's users and items, over the number of pairs."""
        model = self._model
        pairs_B = torch.bincount(batch.place_X, minlength=len(batch.users_B)).float()
        total = (F.embedding(batch.users_B, model.users_UD).square().sum(dim=-1) * pairs_B).sum()
        if model.ids_IF is not None:
            rows = batch.items_X
            if batch.negatives is not None and batch.negatives.dim() == 2:
                rows = torch.cat([rows, batch.negatives.flatten()])
            times_I = torch.bincount(rows, minlength=self._data.num_items).float()
            total = total + (model.ids_IF.square().sum(dim=-1) * times_I).sum()
        return total / len(batch.items_X)


class _PairwiseFit(FitStage):
    """BPR: each pair before some random items."""

    def __init__(self, fit: Fit, family: PairwiseSettings) -> None:
        super().__init__(fit, rows=fit.data.num_pairs)
        self._num_negatives = family.negatives

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        batch = self._data.pair_batch(
            self._number, step, size=self._optim.batch_size, num_negatives=self._num_negatives
        )
        users_BD, positives_BD, negatives_BnD = self._vectors(batch)
        positive_B = (users_BD * positives_BD).sum(dim=-1)
        negative_Bn = (negatives_BnD @ users_BD.unsqueeze(-1)).squeeze(-1)
        loss = bpr(positive_B, negative_Bn).mean()
        return loss, batch, {"bpr": loss.detach()}


class _UltraGcnFit(FitStage):
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


def loaded(model: FactorModel, carry: Mapping[str, Tensor], *, prefix: str) -> FactorModel:
    """Return the model with the parameters that a stage handed on."""
    model.load_state_dict(
        {name.removeprefix(f"{prefix}."): value for name, value in carry.items() if name.startswith(f"{prefix}.")}
    )
    return model
