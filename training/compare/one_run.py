"""One run of a comparison, from its configuration to its record. No bundle is made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from index.artefacts import ArtefactError
from index.dataset import Dataset
from training.checkpoint import CheckpointError, StageReport
from training.compare.records import Records, RunRecord
from training.compare.space import Settings
from training.config import AnyRun, FactorRun
from training.data.split import HeldOut
from training.evaluate import Judged
from training.factors.stages import STEPS_PER_EPOCH
from training.factors.trainer import train_factors
from training.progress import Unwatched
from training.trainer import Interrupted, train


class RunError(RuntimeError):
    """A run can not be done for a reason that is not its own, such as a full disk."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run to do."""

    run: str
    """Digest of configuration and data."""
    config: AnyRun
    settings: Settings
    data: Path
    out: Path
    is_trial: bool
    """Whether test users stay unseen, as it has not won yet; its checkpoint is kept for when it does."""


@dataclass(frozen=True, slots=True)
class _Made:
    metrics: dict[str, dict[str, float]]
    tested: dict[str, Judged]
    test: HeldOut
    seconds: float
    stages: list[StageReport]
    num_parameters: int


def run_one(job: Job, *, should_stop: Callable[[], bool]) -> RunRecord | None:
    """Do a run, go on with it, or judge it when all of it is trained, and keep its record.

    Returns:
        The record; None when it was asked to stop and has left a checkpoint.

    Raises:
        RunError: Not the run failed, but what it stands on.
    """
    records = Records(job.out)
    record = RunRecord(
        run=job.run,
        name=job.config.name,
        seed=job.config.seed,
        settings=dict(job.settings),
        threads=torch.get_num_threads(),
    )
    try:
        made = _train(job, records.checkpoints(job.run), should_stop)
    except Interrupted:
        return None
    except (OSError, ArtefactError, CheckpointError) as error:
        raise RunError(f"{job.config.name}: {error}") from error
    except (ValueError, ArithmeticError, RuntimeError) as error:
        # What a model does to its numbers has many names: TrainingError, LinAlgError, RuntimeError of torch.
        record = record.model_copy(update={"failed": " ".join(str(error).split())})
        records.keep(record)
        records.forget_checkpoint(job.run)
        return record
    epochs = sum(stage.steps / _steps_per_epoch(stage) for stage in made.stages if STEPS_PER_EPOCH in stage.facts)
    fit_seconds = sum(stage.seconds for stage in made.stages if STEPS_PER_EPOCH in stage.facts)
    record = record.model_copy(
        update={
            "metrics": made.metrics,
            "seconds": made.seconds,
            "epochs": epochs,
            "seconds_per_epoch": fit_seconds / epochs if epochs > 0 else None,
            "num_parameters": made.num_parameters,
            "stages": made.stages,
        }
    )
    if job.is_trial:
        record = record.without_test()
        records.keep(record)
    else:
        records.keep_judged(record, made.test.users_B, made.tested)
        records.forget_checkpoint(job.run)
    return record


def _train(job: Job, checkpoints: Path, should_stop: Callable[[], bool]) -> _Made:
    dataset = _opened(job.data)
    if isinstance(job.config, FactorRun):
        made = train_factors(
            job.config, dataset, checkpoints=checkpoints, observer=Unwatched(), resume=True, should_stop=should_stop
        )
        state = made.state
        tested = {part: values for part, values in made.judged.items() if part.startswith("test")}
        return _Made(made.metrics, tested, made.split.test, state.elapsed_s, state.reports, made.num_parameters)
    trained = train(
        job.config, dataset, checkpoints=checkpoints, observer=Unwatched(), resume=True, should_stop=should_stop
    )
    state = trained.state
    facts: dict[str, float | list[float]] = {STEPS_PER_EPOCH: trained.steps_per_epoch}
    stage = StageReport(name="fit", steps=state.step, seconds=state.elapsed_s, facts=facts)
    num_parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    metrics = {"valid": trained.valid_metrics, "test": trained.test_metrics}
    return _Made(metrics, {"test": trained.test}, trained.split.test, state.elapsed_s, [stage], num_parameters)


@lru_cache(maxsize=1)
def _opened(data: Path) -> Dataset:
    """Return the data set; its hashes are not made anew for each run of a process."""
    return Dataset.open(data)


def _steps_per_epoch(stage: StageReport) -> float:
    value = stage.facts[STEPS_PER_EPOCH]
    assert isinstance(value, float | int)
    return value
