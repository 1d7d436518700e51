"""Pretraining of content as a stage of an id-based model's run."""

import torch
from torch import Tensor

from training.factors.stages import Carry, Facts, Stage
from training.pretraining.pretraining import Disentangling


class PretrainingStage(Stage):
    """PAMD's first stage: its encoder, from items alone."""

    def __init__(self, name: str, number: int, task: Disentangling, *, length: float) -> None:
        """Take what is to be trained; `length` is that of the representations that are handed on, on average."""
        self.name, self._number, self._task, self._length = name, number, task, length
        self.module, self.total_steps = task.module, task.total_steps

    def groups(self) -> list[dict[str, object]]:
        """Return all weights."""
        settings = self._task.settings
        return [
            {"params": list(self.module.parameters()), "lr": settings.lr, "weight_decay": settings.weight_decay},
        ]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the losses of some items."""
        return self._task.losses(step)

    @torch.no_grad()
    def finish(self) -> tuple[Carry, Facts]:
        """Hand on the encoder, scaled, and tell of the items held out."""
        facts = self._task.facts()
        encoder = self._task.encoder
        length = self._task.mean_length()
        if length > 0:
            encoder.scale(self._length / length)
        return {f"pretrained.{name}": value.clone() for name, value in encoder.state_dict().items()}, {**facts}
