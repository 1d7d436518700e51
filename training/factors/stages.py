"""A run of an id-based model is a plan of stages: what is trained, by what loss, for how long, and what it hands on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Carry = dict[str, Tensor]
"""What stages hand on, by name; it is part of every checkpoint."""

Facts = dict[str, float | list[float]]
"""What a stage has to tell of itself, for the report."""

STEPS_PER_EPOCH = "steps_per_epoch"
"""Fact of a stage whose steps make passes over the training pairs."""


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
