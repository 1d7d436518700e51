"""What all stages that train a model itself have in common; `training.factors.plan` knows which family has which.

Legend: `B` users or pairs of a step, `X` positives.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from training.config import FactorRun
from training.factors.data import FactorBatch, FactorData
from training.factors.stages import STEPS_PER_EPOCH, Carry, Facts, Stage
from training.models import IdModel
from training.schedule import factor

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Fit:
    """A model to be trained."""

    name: str
    number: int
    model: IdModel
    data: FactorData
    config: FactorRun
    prefix: str
    """Of the parameters that the stage hands on."""
    encoder: nn.Module | None = None
    """What of the model is pretrained, and learns at a rate of its own."""
    encoder_lr: float = 0.0


class FitStage(Stage):
    """Training with validation and early stop."""

    _model: IdModel

    def __init__(self, fit: Fit, *, rows: int) -> None:
        """Take what is to be trained; `rows` are the pairs or users of an epoch."""
        self.name, self.module, self._model = fit.name, fit.model, fit.model
        self._number, self._data, self._optim, self._prefix = fit.number, fit.data, fit.config.optim, fit.prefix
        self._encoder, self._encoder_lr = fit.encoder, fit.encoder_lr
        self._steps_per_epoch = per_epoch = fit.data.steps(rows, self._optim.batch_size)
        most = self._optim.epochs * per_epoch
        self.total_steps = min(most, self._optim.max_steps or most)
        self.validate_every = max(1, round(fit.config.eval.every_epochs * per_epoch))

    def groups(self) -> list[dict[str, object]]:
        """Return what is learned for single users and items, what is shared, and what was pretrained."""
        optim, model = self._optim, self._model
        # Adam's weight decay w adds w times the parameter to its gradient: the gradient of w / 2 times its square.
        decay = 2 * optim.l2_tables if optim.l2_scope == "tables" else 0.0
        pretrained = [] if self._encoder is None else list(self._encoder.parameters())
        known = {id(one) for one in pretrained}
        shared = [one for one in model.shared() if id(one) not in known]
        return [
            {"params": model.tables(), "lr": optim.lr, "weight_decay": decay},
            {"params": shared, "lr": optim.lr, "weight_decay": 2 * optim.l2_projection},
            {"params": pretrained, "lr": self._encoder_lr, "weight_decay": 2 * optim.l2_projection},
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

    def _squared_rows(self, batch: FactorBatch) -> Tensor:
        """Return the squared lengths of the own rows of the step's users and items, over the number of pairs."""
        times_B = torch.bincount(batch.place_X, minlength=len(batch.users_B)).float()
        items_X = batch.items_X
        if batch.negatives is not None and batch.negatives.dim() == 2:
            items_X = torch.cat([items_X, batch.negatives.flatten()])
        return self._model.own_squares(batch.users_B, times_B, items_X) / len(batch.items_X)


def loaded(model: ModelT, carry: Mapping[str, Tensor], *, prefix: str) -> ModelT:
    """Return the model with the parameters that a stage handed on."""
    model.load_state_dict(
        {name.removeprefix(f"{prefix}."): value for name, value in carry.items() if name.startswith(f"{prefix}.")}
    )
    return model
