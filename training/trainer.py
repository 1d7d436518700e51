"""One training run of a content model, readable from top to bottom.

All chance of a step is a function of the run's seed and the step's number, so a run that is stopped and resumed goes
exactly the way of one that is not: bit by bit on a CPU with the same number of threads. A GPU adds in no fixed order.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index.dataset import Dataset, DatasetError
from training.checkpoint import RunState, load_checkpoint, save_checkpoint
from training.config import ConfigError, ContentRun, RunConfig, to_toml
from training.data.batches import PairSampler
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions, read_interactions, read_timed_interactions
from training.data.split import HeldOut, Split, make_split
from training.evaluate import Judged, judge_model, means
from training.models import ContentModel
from training.models.beside import Beside
from training.objective import Objective
from training.pretraining.features import prepare
from training.progress import Observer
from training.schedule import Schedule, augment_of
from training.transitions import with_transitions

_REPORT_EVERY_STEPS = 10
"""Reading a loss waits for the device; on every step it would cost a GPU more than the step."""


class TrainingError(RuntimeError):
    """The run can not go on."""


class Interrupted(Exception):
    """The run was asked to stop and has left a checkpoint to resume from."""

    def __init__(self, *, step: int, folder: Path) -> None:
        super().__init__(f"stopped after step {step}; the checkpoint is in {folder}")
        self.step = step
        self.folder = folder


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run made, with what it was made from."""

    model: ContentModel | Beside
    """In evaluation mode, on the CPU, with the parameters of the best validation."""
    interactions: Interactions
    split: Split
    state: RunState
    steps_per_epoch: int
    valid_metrics: dict[str, float]
    """Of the model as it is: those of the best validation, or of what stands beside it as well."""
    test: Judged
    """Of each test user; empty when the split has none."""

    @property
    def test_metrics(self) -> dict[str, float]:
        """Return the mean metrics of the test users; empty when the split has none."""
        return means(self.test)


def train(
    config: ContentRun,
    dataset: Dataset,
    *,
    checkpoints: Path,
    observer: Observer,
    device: torch.device | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a model as the configuration says and return it with its best parameters.

    Args:
        config: The run.
        dataset: Opened folder.
        checkpoints: Folder of this run's checkpoint.
        observer: Hears of progress.
        device: Where to compute; the CPU by default.
        resume: Go on from the checkpoint in the folder, if it holds one.
        should_stop: Asked after every step; True leaves a checkpoint and raises.

    Raises:
        Interrupted: `should_stop` said so.
        TrainingError: The loss is no longer finite.
        ValueError: The data can not be learned from, or the checkpoint is damaged or another run's.
    """
    device = device or torch.device("cpu")
    parts = _Parts.make(config, dataset, device=device)
    model, optimiser = parts.model, parts.optimiser
    schedule = Schedule.of(config, steps_per_epoch=parts.sampler.steps_per_epoch)
    run = run_digest(config, dataset)
    state, best = RunState.start(run), _parameters(model)
    if resume and (loaded := load_checkpoint(checkpoints, run=run, model=model, optimiser=optimiser)):
        state, best = loaded
    observer.started(step=state.step, total_steps=schedule.total_steps, batch_size=config.optim.batch_size)

    generator = torch.Generator(device=device)
    started = time.monotonic() - state.elapsed_s
    model.train()
    while state.step < schedule.total_steps and state.misses < config.eval.patience:
        step = state.step
        generator.manual_seed(_step_seed(config.seed, step))
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.optim.precision == "bfloat16"):
            losses = parts.objective(
                parts.sampler.batch(step), generator=generator, with_views=step >= schedule.views_from_step
            )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["total"])
        if config.optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimiser.step()
        step += 1
        state = state.model_copy(update={"step": step, "elapsed_s": time.monotonic() - started})

        is_last = step == schedule.total_steps
        if step % _REPORT_EVERY_STEPS == 0 or is_last:
            observer.stepped(step, _finite(losses, step=step))
        if step % schedule.validate_every_steps == 0 or is_last:
            metrics = means(parts.judge(model, parts.split.valid))
            state = state.after_validation(metrics, monitor=config.eval.monitor)
            is_best = state.best_step == step
            best = _parameters(model) if is_best else best
            observer.validated(step, metrics, is_best=is_best)
            save_checkpoint(checkpoints, state, model=model, optimiser=optimiser, best=best)
        if should_stop() and not is_last:
            save_checkpoint(checkpoints, state, model=model, optimiser=optimiser, best=best)
            raise Interrupted(step=step, folder=checkpoints)

    model.load_state_dict(best)
    valid = next(one.metrics for one in state.validations if one.step == state.best_step)
    made: ContentModel | Beside = model.eval()
    if config.beside is not None:
        made, valid = with_transitions(
            model, config.beside, parts.split, judge=parts.judge, monitor=config.eval.monitor, start=valid
        )
    test = parts.judge(made, parts.split.test) if len(parts.split.test) > 0 else {}
    made.absorb([(one.mean_D, one.basis_DR) for one in parts.catalogue.maps])
    return Trained(made.cpu(), parts.interactions, parts.split, state, parts.sampler.steps_per_epoch, valid, test)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a run works with."""

    config: ContentRun
    interactions: Interactions
    split: Split
    catalogue: Catalogue
    model: ContentModel
    optimiser: torch.optim.Optimizer
    sampler: PairSampler
    objective: Objective
    device: torch.device

    @classmethod
    def make(cls, config: ContentRun, dataset: Dataset, *, device: torch.device) -> "_Parts":
        interactions = _interactions(config, dataset)
        split = make_split(
            interactions, config.split, seed=config.seed, seen=config.eval.seen, sampled=config.eval.sampled
        )
        catalogue = Catalogue(dataset, device=device)
        prepare(catalogue, config.conditioning, config.features, seed=config.seed)
        trained_I = torch.from_numpy(split.train.popularity(split.train_users) > 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = config.model.build(replace(catalogue.features, trained_I=trained_I)).to(device)
        optim = config.optim
        optimiser = torch.optim.Adam(
            model.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        sampler = PairSampler(
            split.train,
            split.train_users,
            config.pairs,
            history_length=model.history_length,
            batch_size=optim.batch_size,
            seed=config.seed,
        )
        objective = Objective(
            model,
            catalogue,
            split.train,
            train_users=split.train_users,
            negatives=config.negatives,
            augment=augment_of(config),
            device=device,
        )
        return cls(config, interactions, split, catalogue, model, optimiser, sampler, objective, device)

    def judge(self, model: ContentModel | Beside, users: HeldOut) -> Judged:
        return judge_model(
            model,
            self.catalogue,
            users,
            cutoffs=self.config.eval.cutoffs,
            seen=self.config.eval.seen,
            device=self.device,
        )


def _interactions(config: ContentRun, dataset: Dataset) -> Interactions:
    """Read what the model learns from, with times where it reads these."""
    if not config.model.reads_ages:
        return read_interactions(dataset)
    try:
        return read_timed_interactions(dataset)
    except DatasetError as error:
        if error.problem.column != "timestamp":
            raise
        raise ConfigError(f"model.kind: {config.model.kind} reads how old behaviour is, and {error}") from error


def run_digest(config: RunConfig, dataset: Dataset) -> str:
    """Return what a checkpoint must agree with: the resolved configuration and the data, as SHA-256."""
    return hashlib.sha256(f"{to_toml(config)}\0{dataset.fingerprint()}".encode()).hexdigest()


def _parameters(model: ContentModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _step_seed(seed: int, step: int) -> int:
    (state,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return int(state >> np.uint64(1))


def _finite(losses: Mapping[str, Tensor], *, step: int) -> dict[str, float]:
    values = {name: loss.item() for name, loss in losses.items()}
    if not math.isfinite(values["total"]):
        raise TrainingError(f"the loss is {values['total']} at step {step}: lower optim.lr, or check the features")
    return values
