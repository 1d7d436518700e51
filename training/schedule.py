"""When what happens in a run, in steps."""

import math
from dataclasses import dataclass

from training.augment import AugmentConfig
from training.config import ContentRun
from training.models import DemureConfig
from training.sections import OptimConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """A run's epochs turned into steps, and the learning rate of each."""

    total_steps: int
    validate_every_steps: int
    views_from_step: int
    optim: OptimConfig

    @classmethod
    def of(cls, config: ContentRun, *, steps_per_epoch: int) -> "Schedule":
        """Turn epochs into steps."""
        total_steps = config.optim.epochs * steps_per_epoch
        augment = augment_of(config)
        return cls(
            total_steps=min(total_steps, config.optim.max_steps or total_steps),
            validate_every_steps=max(1, round(config.eval.every_epochs * steps_per_epoch)),
            views_from_step=0 if augment is None else round(augment.warmup_epochs * steps_per_epoch),
            optim=config.optim,
        )

    def lr(self, step: int) -> float:
        """Return the learning rate of a step: a linear rise over the warm-up, then constant, linear or cosine to 0."""
        return self.optim.lr * factor(self.optim, step=step, total_steps=self.total_steps)


def factor(optim: OptimConfig, *, step: int, total_steps: int) -> float:
    """Return what a step's learning rate is of `optim.lr`."""
    warmup = optim.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if optim.schedule == "linear":
        return 1 - done
    if optim.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0


def augment_of(config: ContentRun) -> AugmentConfig | None:
    """Return how the family augments, or None for a family that does not."""
    return config.model.augment if isinstance(config.model, DemureConfig) else None
