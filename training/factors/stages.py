"""A run of an id-based model is a plan of stages: what is trained, by what loss, for how long, and what it hands on.

Legend: `B` users or pairs of a step, `X` positives, `N` negatives, `D` width, `I` items.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import FactorRun
from training.factors.data import FactorBatch, FactorData
from training.factors.losses import bpr, item_factor, item_neighbours, user_factor, weighted_negatives
from training.models import FactorModel, PairwiseSettings, UltraGcnSettings
from training.schedule import factor

Carry = dict[str, Tensor]
"""What stages hand on, by name; it is part of every checkpoint."""

Facts = dict[str, float | list[float]]
"""What a stage has to tell of itself, for the report."""

STEPS_PER_EPOCH = "steps_per_epoch"
"""Fact of a stage whose steps make passes over the training pairs."""

FULL_UP_TO = 10_000
"""Items of a catalogue that `negatives = auto` compares with whole."""


class Stage(ABC):
    """One stage: the trainer takes its steps, validates it if asked to, and keeps its checkpoints."""

    name: str
    module: nn.Module
    total_steps: int
    validate_every: int | None = None
    """Steps between validations; None: never, and the last parameters count."""

    @abstractmethod
    def groups(self) -> list[dict[str, object]]:
        """Return the parameter groups of Adam, each with its `lr`."""

    @abstractmethod
    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the losses of a step by name, `total` among them."""

    def stepped(self) -> None:  # noqa: B027  # nothing to do for most
        """Do what has to follow a step, such as a projection."""

    def lr_factor(self, step: int) -> float:  # noqa: ARG002  # for those with a schedule
        """Return what the learning rates are multiplied by in a step."""
        return 1.0

    @abstractmethod
    def finish(self) -> tuple[Carry, Facts]:
        """Return what the stage hands on, to be added to what there is, and what it tells."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage to come: made when its turn is, from what the ones before handed on."""

    name: str
    make: Callable[[int, Carry], Stage]


class FitStage(Stage):
    """Train the model itself on observed pairs, with validation and early stop."""

    def __init__(
        self,
        name: str,
        number: int,
        model: FactorModel,
        data: FactorData,
        config: FactorRun,
        *,
        prefix: str,
    ) -> None:
        self.name, self.module, self._model = name, model, model
        self._number, self._data, self._config, self._prefix = number, data, config, prefix
        family, optim = config.model, config.optim
        self._pairwise = family if isinstance(family, PairwiseSettings) else None
        self._negatives = negatives_of(family, data.num_items) if isinstance(family, UltraGcnSettings) else "sampled"
        total = len(data.users) if self._negatives != "sampled" else data.num_pairs
        self._steps_per_epoch = per_epoch = data.steps(total, optim.batch_size)
        self.total_steps = min(optim.epochs * per_epoch, optim.max_steps or optim.epochs * per_epoch)
        self.validate_every = max(1, round(config.eval.every_epochs * per_epoch))
        self._neighbours: tuple[Tensor, Tensor] | None = None
        if isinstance(family, UltraGcnSettings) and family.item_item > 0:
            found = item_neighbours(
                data.user_E.numpy(),
                data.item_E.numpy(),
                num_users=data.num_users,
                num_items=data.num_items,
                count=family.item_neighbours,
            )
            self._neighbours = torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def groups(self) -> list[dict[str, object]]:
        """Return tables and projection apart: each has its L2."""
        optim, model = self._config.optim, self._model
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
        return factor(self._config.optim, step=step, total_steps=self.total_steps)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return BPR's or UltraGCN's loss, and what is added to it."""
        size = self._config.optim.batch_size
        if self._pairwise is not None:
            batch = self._data.pair_batch(self._number, step, size=size, num_negatives=self._pairwise.negatives)
            losses, rows = self._bpr(batch)
        else:
            family = self._config.model
            assert isinstance(family, UltraGcnSettings)
            if self._negatives == "sampled":
                batch = self._data.pair_batch(self._number, step, size=size, num_negatives=family.num_negatives)
            else:
                count = None if self._negatives == "full" else family.num_negatives
                batch = self._data.user_batch(self._number, step, size=size, num_negatives=count)
            losses, rows = self._ultragcn(batch, family)
        total = sum(losses.values(), torch.zeros(()))
        optim = self._config.optim
        if optim.l2_scope == "batch" and optim.l2_tables > 0:
            total = total + optim.l2_tables * 0.5 * rows
        return {"total": total, **{name: loss.detach() for name, loss in losses.items()}}

    def finish(self) -> tuple[Carry, Facts]:
        """Hand on the parameters."""
        parameters = {f"{self._prefix}.{name}": value.clone() for name, value in self._model.state_dict().items()}
        return parameters, {STEPS_PER_EPOCH: self._steps_per_epoch}

    def _vectors(self, batch: FactorBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return vectors of the users, of the positives, and of the negatives `[N, D]` or `[X, n, D]`."""
        data, model = self._data, self._model
        users_BD, negatives = model.users(batch.users_B), batch.negatives
        touched = len(batch.items_X) + (data.num_items if negatives is None else negatives.numel())
        if touched >= data.num_items:
            items_ID = model.items(data.content_IR)
            rest = items_ID if negatives is None else F.embedding(negatives, items_ID)
            return users_BD, F.embedding(batch.items_X, items_ID), rest
        assert negatives is not None
        rows, places = torch.unique(torch.cat([batch.items_X, negatives.flatten()]), return_inverse=True)
        items_YD = model.items(data.content_IR[rows], rows)
        positives_XD = F.embedding(places[: len(batch.items_X)], items_YD)
        rest = F.embedding(places[len(batch.items_X) :].view(negatives.shape), items_YD)
        return users_BD, positives_XD, rest

    def _bpr(self, batch: FactorBatch) -> tuple[dict[str, Tensor], Tensor]:
        users_BD, positives_BD, negatives_BnD = self._vectors(batch)
        assert negatives_BnD is not None
        positive_B = (users_BD * positives_BD).sum(dim=-1)
        negative_Bn = (negatives_BnD @ users_BD.unsqueeze(-1)).squeeze(-1)
        return {"bpr": bpr(positive_B, negative_Bn).mean()}, self._rows_l2(batch)

    def _ultragcn(self, batch: FactorBatch, family: UltraGcnSettings) -> tuple[dict[str, Tensor], Tensor]:
        data = self._data
        users_BD, positives_XD, negatives = self._vectors(batch)
        assert negatives is not None
        users_XD = F.embedding(batch.place_X, users_BD)
        factor_B, factor_I = user_factor(data.degree_U[batch.users_B]), item_factor(data.degree_I)
        factor_X = factor_B[batch.place_X]
        count = len(batch.items_X)
        score_X = (users_XD * positives_XD).sum(dim=-1)
        weight_X = family.positive_weight + family.positive_beta * factor_X * factor_I[batch.items_X]
        losses = {"positive": (weight_X * F.softplus(-score_X)).sum() / count}
        w3, w4 = family.negative_weight, family.negative_beta
        if negatives.dim() == 3:
            assert batch.negatives is not None
            score_Xn = (negatives @ users_XD.unsqueeze(-1)).squeeze(-1)
            weight_Xn = w3 + w4 * factor_X.unsqueeze(-1) * factor_I[batch.negatives]
            negative = (weight_Xn * F.softplus(score_Xn)).mean(dim=-1).sum()
        else:
            negative = weighted_negatives(
                users_BD,
                negatives,
                weight_B=torch.bincount(batch.place_X, minlength=len(batch.users_B)).float(),
                user_factor_B=factor_B,
                item_factor_N=factor_I if batch.negatives is None else factor_I[batch.negatives],
                w3=w3,
                w4=w4,
            )
        losses["negative"] = family.negative_factor * negative / count
        if self._neighbours is not None:
            neighbours_XK, omega_XK = (one[batch.items_X] for one in self._neighbours)
            near_XKD = self._model.items(data.content_IR)[neighbours_XK]
            score_XK = (near_XKD @ users_XD.unsqueeze(-1)).squeeze(-1)
            losses["item_item"] = family.item_item * (omega_XK * F.softplus(-score_XK)).sum() / count
        return losses, self._rows_l2(batch)

    def _rows_l2(self, batch: FactorBatch) -> Tensor:
        """Return the squared lengths of the own rows of the step's users and items, over the number of pairs."""
        if self._config.optim.l2_tables == 0 or self._config.optim.l2_scope == "tables":
            return torch.zeros(())
        model = self._model
        weight_B = torch.bincount(batch.place_X, minlength=len(batch.users_B)).float()
        total = (F.embedding(batch.users_B, model.users_UD).square().sum(dim=-1) * weight_B).sum()
        negatives = batch.negatives if batch.negatives is not None and batch.negatives.dim() == 2 else None
        rows = batch.items_X if negatives is None else torch.cat([batch.items_X, negatives.flatten()])
        if model.ids_IF is not None:
            total = total + F.embedding(rows, model.ids_IF).square().sum()
        return total / len(batch.items_X)


def negatives_of(family: UltraGcnSettings, num_items: int) -> str:
    """Return what `auto` means for a catalogue of this size."""
    if family.negatives == "auto":
        return "full" if num_items <= FULL_UP_TO else "shared"
    return family.negatives


def loaded(model: FactorModel, carry: Mapping[str, Tensor], *, prefix: str) -> FactorModel:
    """Return the model with the parameters that a stage handed on."""
    model.load_state_dict(
        {name.removeprefix(f"{prefix}."): value for name, value in carry.items() if name.startswith(f"{prefix}.")}
    )
    return model
