"""Checkpoints of a run: tensors in safetensors, the rest in JSON beside them, replaced at once and never half-written.

`checkpoint.json` is written last and names the tensor file with its hash. A run that is killed at any moment leaves
either the old checkpoint or the new one. There is no state of random generators to keep: all chance of a step is a
function of the run's seed and the step's number.
"""

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from api_schemas.base import OnDisk
from index.artefacts import fsync_path, sha256_of, write_durably

_STATE_FILE = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that can not be resumed from: damaged, or of another run."""


class Validation(OnDisk):
    """What one validation found."""

    step: int
    metrics: dict[str, float]


class StageReport(OnDisk):
    """What a finished stage of a run took and told."""

    name: str
    steps: int
    seconds: float
    facts: dict[str, float | list[float]] = Field(default_factory=dict)


class RunState(OnDisk):
    """Where a run is, apart from its tensors."""

    run: str = Field(description="Digest of configuration and data: a checkpoint fits one run only.")
    stage: int = Field(default=0, ge=0, description="Stages done; content models have one.")
    reports: list[StageReport] = Field(default_factory=list, description="Of the stages done.")
    step: int = Field(ge=0, description="Steps done, of this stage.")
    best_step: int = Field(ge=0)
    best: float | None = Field(description="Best value of the monitored metric so far; None before any validation.")
    misses: int = Field(ge=0, description="Validations since then.")
    validations: list[Validation]
    elapsed_s: float = Field(ge=0, description="Training time so far, over all resumptions.")
    tensors: str = ""
    sha256: str = ""

    @classmethod
    def start(cls, run: str) -> Self:
        """Return the state before the first step."""
        return cls(run=run, step=0, best_step=0, best=None, misses=0, validations=[], elapsed_s=0.0)

    def next_stage(self, report: StageReport) -> Self:
        """Return the state before the first step of the next stage; the last best figures stay to be seen."""
        return self.model_copy(
            update={
                "stage": self.stage + 1,
                "reports": [*self.reports, report],
                "step": 0,
                "best_step": 0,
                "best": None,
                "misses": 0,
            }
        )

    def after_validation(self, metrics: Mapping[str, float], *, monitor: str) -> Self:
        """Return the state with a validation added; an equal value is no better."""
        is_best = self.best is None or metrics[monitor] > self.best
        return self.model_copy(
            update={
                "validations": [*self.validations, Validation(step=self.step, metrics=dict(metrics))],
                "best": metrics[monitor] if is_best else self.best,
                "best_step": self.step if is_best else self.best_step,
                "misses": 0 if is_best else self.misses + 1,
            }
        )


def save_checkpoint(
    folder: Path,
    state: RunState,
    *,
    model: nn.Module,
    optimiser: torch.optim.Optimizer | None,
    best: Mapping[str, Tensor],
    carry: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint and remove the one before.

    Args:
        folder: Of this run; made if missing.
        state: Its `tensors` and `sha256` are set here.
        model: Current parameters and buffers.
        optimiser: Its per-parameter tensors; None before the first step of a stage.
        best: Parameters of the best validation so far.
        carry: What the stages before handed on.

    Raises:
        OSError: The disk is full or fails; the old checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors |= {f"carry.{name}": value for name, value in (carry or {}).items()}
    for index, values in (optimiser.state_dict()["state"] if optimiser is not None else {}).items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    path = folder / f"stage-{state.stage:03d}-step-{state.step:09d}.safetensors"
    temporary = folder / f".tmp-{path.name}"
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    fsync_path(temporary)
    temporary.replace(path)
    final = state.model_copy(update={"tensors": path.name, "sha256": sha256_of(path)})
    write_durably(folder / _STATE_FILE, final.model_dump_json(indent=2).encode())
    for old in folder.glob("*.safetensors"):
        if old != path:
            old.unlink()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was read and fits its run; nothing is restored from it yet."""

    state: RunState
    tensors: dict[str, Tensor]

    @property
    def best(self) -> dict[str, Tensor]:
        """Return the parameters of the best validation so far."""
        return _below(self.tensors, "best.")

    @property
    def carry(self) -> dict[str, Tensor]:
        """Return what finished stages handed on."""
        return _below(self.tensors, "carry.")

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Put model and optimiser back where the checkpoint left them."""
        # Loading casts to the dtype of the parameter; a step count stays what it was.
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(self.tensors, "optimiser.").items():
            index, _, key = name.partition(".")
            entries.setdefault(int(index), {})[key] = value
        model.load_state_dict(_below(self.tensors, "model."))
        optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})


def read_checkpoint(folder: Path, *, run: str) -> Loaded | None:
    """Return the checkpoint in a folder; None when it holds none.

    Raises:
        CheckpointError: It is damaged or belongs to another configuration or data set.
    """
    path = folder / _STATE_FILE
    if not path.exists():
        return None
    try:
        state = RunState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: is damaged: {error.errors()[0]['msg']}") from error
    if state.run != run:
        raise CheckpointError(f"{path}: belongs to another configuration or data set")
    tensor_path = folder / Path(state.tensors).name
    if not tensor_path.is_file() or sha256_of(tensor_path) != state.sha256:
        raise CheckpointError(f"{tensor_path}: is missing or damaged")
    return Loaded(state, load_file(tensor_path))


def load_checkpoint(
    folder: Path, *, run: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[RunState, dict[str, Tensor]] | None:
    """Put model and optimiser back where the checkpoint left them.

    Returns:
        The state and the best parameters so far; None when the folder holds no checkpoint.

    Raises:
        CheckpointError: It is damaged or belongs to another configuration or data set; nothing was changed.
    """
    found = read_checkpoint(folder, run=run)
    if found is None:
        return None
    found.restore(model, optimiser)
    return found.state, found.best


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished run's checkpoint, and the folder around it when it was the last one there."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
