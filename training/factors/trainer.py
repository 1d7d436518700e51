"""One run of an id-based model: the stages of its plan after each other, each resumable at any step.

All chance of a step is a function of the run's seed, the stage and the step, so a run that is stopped and resumed goes
exactly the way of one that is not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index.dataset import Dataset
from training.checkpoint import RunState, StageReport, read_checkpoint, save_checkpoint
from training.config import FactorRun
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions, read_interactions
from training.data.split import HeldOut, Split, make_split
from training.evaluate import Judged, means
from training.factors.data import FactorData
from training.factors.fit import FitStage
from training.factors.fold_in import FoldInMap, ItemTables
from training.factors.gate import gate_users, rank
from training.factors.new_users import fit_fold_in, item_tables
from training.factors.plan import Plan
from training.factors.serving import Served, make_served
from training.factors.stages import Carry, Stage
from training.models import IdModel, LearnedUsers
from training.pretraining.features import prepare
from training.progress import Observer
from training.sections import FactorOptimConfig
from training.trainer import Interrupted, TrainingError, run_digest

_REPORT_EVERY_STEPS = 10


@dataclass(frozen=True, slots=True)
class TrainedFactors:
    """What a run made, with what it was made from."""

    served: Served
    interactions: Interactions
    split: Split
    state: RunState
    num_parameters: int
    """Learned numbers of the model that ranks."""
    judged: dict[str, Judged]
    """Of each user, by part of the users: `valid`, `test`, and both read `from_history`."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Return mean figures by part of the users."""
        return {part: means(values) for part, values in self.judged.items()}


def train_factors(
    config: FactorRun,
    dataset: Dataset,
    *,
    checkpoints: Path,
    observer: Observer,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainedFactors:
    """Train an id-based model as the configuration says, and make it servable.

    Args:
        config: The run.
        dataset: Opened folder.
        checkpoints: Folder of this run's checkpoint.
        observer: Hears of progress.
        resume: Go on from the checkpoint in the folder, if it holds one.
        should_stop: Asked after every step; True leaves a checkpoint and raises.

    Raises:
        Interrupted: `should_stop` said so.
        TrainingError: The loss is no longer finite.
        ValueError: The data can not be learned from, or the checkpoint is damaged or another run's.
    """
    run = _Run.make(config, dataset)
    plan = Plan(config, run.data, run.catalogue.features)
    digest = run_digest(config, dataset)
    state, carry = RunState.start(digest), plan.first_carry
    found = read_checkpoint(checkpoints, run=digest) if resume else None
    if found is not None:
        state, carry = found.state, found.carry
    for number, planned in enumerate(plan.stages):
        if number < state.stage:
            continue
        stage = planned.make(number, carry)
        optimiser = make_adam(stage, config.optim)
        best = _parameters(stage)
        if found is not None and state.step > 0:
            found.restore(stage.module, optimiser)
            best = found.best or best
        found = None
        state = _run_stage(
            stage,
            state,
            optimiser=optimiser,
            best=best,
            carry=carry,
            run=run,
            checkpoints=checkpoints,
            observer=observer,
            should_stop=should_stop,
        )
        started = time.monotonic()
        handed_on, facts = stage.finish()
        state = state.model_copy(update={"elapsed_s": state.elapsed_s + time.monotonic() - started})
        carry = {**carry, **handed_on}
        seconds = state.elapsed_s - sum(report.seconds for report in state.reports)
        report = StageReport(name=stage.name, steps=state.step, seconds=seconds, facts=facts)
        state = state.next_stage(report)
        save_checkpoint(checkpoints, state, model=stage.module, optimiser=None, best={}, carry=carry)
    return run.result(plan, state, carry)


def make_adam(stage: Stage, optim: FactorOptimConfig) -> torch.optim.Adam:
    """Return Adam on a stage's parameter groups; fused: less than half the time of the plain loop, on CPU too."""
    return torch.optim.Adam(stage.groups(), betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def _run_stage(
    stage: Stage,
    state: RunState,
    *,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    carry: Carry,
    run: "_Run",
    checkpoints: Path,
    observer: Observer,
    should_stop: Callable[[], bool],
) -> RunState:
    """Take the steps of a stage, and leave its module with the parameters that count."""
    config = run.config
    rates = [group["lr"] for group in optimiser.param_groups]
    observer.started(step=state.step, total_steps=stage.total_steps, batch_size=config.optim.batch_size)
    started = time.monotonic() - state.elapsed_s
    while state.step < stage.total_steps and state.misses < config.eval.patience:
        step = state.step
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * stage.lr_factor(step)
        losses = stage.losses(step)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["total"])
        if config.optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(stage.module.parameters(), config.optim.clip_norm)
        optimiser.step()
        stage.stepped()
        step += 1
        state = state.model_copy(update={"step": step, "elapsed_s": time.monotonic() - started})
        is_last = step == stage.total_steps
        if step % _REPORT_EVERY_STEPS == 0 or is_last:
            values = {name: loss.item() for name, loss in losses.items()}
            if not math.isfinite(values["total"]):
                raise TrainingError(f"the loss is {values['total']} at step {step} of {stage.name}: lower optim.lr")
            observer.stepped(step, values)
        if stage.validate_every is not None and (step % stage.validate_every == 0 or is_last):
            assert isinstance(stage, FitStage)
            metrics = run.validate(stage.module)
            state = state.after_validation(metrics, monitor=config.eval.monitor)
            if state.best_step == step:
                best = _parameters(stage)
            observer.validated(step, metrics, is_best=state.best_step == step)
            save_checkpoint(checkpoints, state, model=stage.module, optimiser=optimiser, best=best, carry=carry)
        if should_stop() and not is_last:
            save_checkpoint(checkpoints, state, model=stage.module, optimiser=optimiser, best=best, carry=carry)
            raise Interrupted(step=step, folder=checkpoints)
    if stage.validate_every is not None:
        stage.module.load_state_dict(best)
    return state


def _parameters(stage: Stage) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in stage.module.state_dict().items()}


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run works with."""

    config: FactorRun
    interactions: Interactions
    split: Split
    catalogue: Catalogue
    data: FactorData
    item_ids: tuple[str, ...]
    gate: HeldOut
    """Training users with targets that nothing was learned from: the fold-in encoder is judged on them."""

    @classmethod
    def make(cls, config: FactorRun, dataset: Dataset) -> "_Run":
        interactions = read_interactions(dataset)
        split = make_split(
            interactions, config.split, seed=config.seed, seen=config.eval.seen, sampled=config.eval.sampled
        )
        train, gate = gate_users(split, seed=config.seed, seen=config.eval.seen)
        catalogue = Catalogue(dataset)
        prepare(catalogue, config.conditioning, config.features, seed=config.seed)
        data = FactorData(train, split.train_users, catalogue, seed=config.seed)
        return cls(config, interactions, split, catalogue, data, tuple(dataset.item_ids), gate)

    def queries(self, model: IdModel, tables: ItemTables, users: HeldOut, fold_in: FoldInMap | None) -> Tensor:
        """Return each user's learned vector as `[B, Q, D]`; of a user without one, what the history gives.

        It is read through a map if one is given.
        """

        def from_histories() -> Tensor:
            encoder = fold_in or fit_fold_in(model, self.data, self.config, tables, gate=self.gate)
            return encoder.queries(tables, users.histories)

        if not isinstance(model, LearnedUsers):
            return from_histories()
        known_B = torch.from_numpy(np.isin(users.users_B, self.data.users))
        learned_BQD = model.users(torch.from_numpy(users.users_B)).unsqueeze(1)
        return learned_BQD if known_B.all() else torch.where(known_B[:, None, None], learned_BQD, from_histories())

    @torch.inference_mode()
    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        assert isinstance(model, IdModel)
        return self._judge(model, self.split.valid)

    def _judge(self, model: IdModel, users: HeldOut) -> dict[str, float]:
        tables = item_tables(model, self.data)
        return means(self._ranked(model, tables, users, self.queries(model, tables, users, None)))

    def _ranked(self, model: IdModel, tables: ItemTables, users: HeldOut, queries_BQD: Tensor) -> Judged:
        evaluation = self.config.eval
        return rank(model.score, queries_BQD, tables.items_ID, users, cutoffs=evaluation.cutoffs, seen=evaluation.seen)

    @torch.inference_mode()
    def result(self, plan: Plan, state: RunState, carry: Carry) -> TrainedFactors:
        model = plan.final_model(carry)
        served = make_served(
            model,
            self.data,
            self.config,
            self.interactions,
            self.catalogue,
            item_ids=self.item_ids,
            plan=plan,
            carry=carry,
            gate=self.gate,
            reports=state.reports,
        )
        tables = served.tables
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        judged: dict[str, Judged] = {}
        for part, users in (("valid", self.split.valid), ("test", self.split.test)):
            if len(users) == 0:
                continue
            from_history_BQD = served.fold_in.queries(tables, users.histories)
            learned_BQD = self.queries(model, tables, users, served.fold_in)
            judged[part] = self._ranked(model, tables, users, learned_BQD)
            judged[f"{part}_from_history"] = self._ranked(model, tables, users, from_history_BQD)
        return TrainedFactors(served, self.interactions, self.split, state, num_parameters, judged)
