"""Who won, by how much, and at what cost: from the records of all runs to one document."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from api_schemas.base import OnDisk
from index.dataset import Dataset
from index.metrics import mean_and_deviation
from training.compare.bootstrap import RESAMPLES, Sample, paired_bootstrap
from training.compare.records import USERS, Records, RunRecord
from training.compare.tournament import Standing
from training.compare.workers import num_cores
from training.config import AnyRun, SearchValue
from training.data.candidates import SampledConfig


class Figure(OnDisk):
    """A number over seeds."""

    mean: float
    deviation: float = Field(description="Of the sample; 0 for one seed.")
    values: list[float] = Field(description="By seed.")


class TrialResult(OnDisk):
    """What a trial got on validation."""

    settings: dict[str, SearchValue]
    valid: float | None = Field(description="Of the monitored metric.")
    failed: str | None = None
    seconds: float


class Against(OnDisk):
    """A difference of the monitored metric on test users, by a paired bootstrap."""

    name: str
    seeds: list[int]
    difference: float
    interval: tuple[float, float]
    relative: float | None
    relative_interval: tuple[float, float] | None
    p: float = Field(description="Two-sided, of this comparison alone.")


class ModelResult(OnDisk):
    """One model."""

    name: str
    kind: str
    settings: dict[str, SearchValue] = Field(description="What won of what was searched.")
    trials: list[TrialResult]
    seeds: list[int] = Field(description="That have figures.")
    failed_seeds: dict[int, str]
    valid: float = Field(description="The winner's monitored metric on validation, first seed.")
    test: dict[str, Figure]
    test_from_history: dict[str, Figure] | None = Field(
        description="Users read from their histories, as users whom the model has not learned are."
    )
    seconds_per_epoch: float | None = Field(description="Mean over the seeds' runs, validations included.")
    epochs: float
    seconds: float = Field(description="Of one run, all stages: mean over the seeds.")
    seconds_of_all: float = Field(description="Of all trials and seeds.")
    num_parameters: int
    against: Against | None


class Unranked(OnDisk):
    """A model without figures."""

    name: str
    kind: str
    reasons: list[str]


class Leaderboard(OnDisk):
    """The comparison."""

    schema_version: Literal[1] = 1
    data: str
    fingerprint: str
    split: dict[str, object]
    seen: str
    monitor: str
    cutoffs: list[int]
    sampled: SampledConfig | None = Field(None, description="How candidates of sampled figures were drawn, if any.")
    seeds: list[int]
    num_trials: int
    num_test_users: list[int] = Field(description="By seed.")
    resamples: int = RESAMPLES
    cores: int
    threads: list[int] = Field(description="Of torch, in the runs.")
    models: list[ModelResult]
    unranked: list[Unranked]


def make_leaderboard(
    standings: Sequence[Standing],
    records: Records,
    dataset: Dataset,
    *,
    seeds: Sequence[int],
    num_trials: int,
    against: str | None,
) -> Leaderboard:
    """Return the document of a comparison whose runs are all done.

    Args:
        standings: Of all models.
        records: Where the figures of test users are.
        dataset: What all were judged on.
        seeds: Of the comparison.
        num_trials: As asked for.
        against: Model that the others are compared with; the best other one where it is None.
    """
    config = standings[0].entrant.config
    monitor = config.eval.monitor
    judged = {one.entrant.name: _by_seed(one) for one in standings}
    ranked = [one for one in standings if judged[one.entrant.name]]
    means = {
        name: mean_and_deviation([record.metrics["test"] for record in runs.values()])[monitor][0]
        for name, runs in judged.items()
        if runs
    }
    ranked.sort(key=lambda one: -means[one.entrant.name])
    names = [one.entrant.name for one in ranked]
    models = []
    for one in ranked:
        others = [name for name in names if name != one.entrant.name]
        other = against if against in others else None if against is not None else next(iter(others), None)
        difference = None
        if other is not None:
            difference = _against(other, judged[one.entrant.name], judged[other], records, monitor=monitor)
        models.append(_model(one, judged[one.entrant.name], monitor=monitor, against=difference))
    runs = [record for found in judged.values() for record in found.values()]
    return Leaderboard(
        data=dataset.manifest.name,
        fingerprint=dataset.fingerprint(),
        split=config.split.model_dump(mode="json"),
        seen=config.eval.seen,
        monitor=monitor,
        cutoffs=list(config.eval.cutoffs),
        sampled=config.eval.sampled,
        seeds=list(seeds),
        num_trials=num_trials,
        num_test_users=[_num_users(seed, runs, records) for seed in seeds],
        cores=num_cores(),
        threads=sorted({record.threads for record in runs}),
        models=models,
        unranked=[_unranked(one) for one in standings if not judged[one.entrant.name]],
    )


def _by_seed(standing: Standing) -> dict[int, RunRecord]:
    return {record.seed: record for _, record in standing.seeds if record is not None and record.is_judged}


def _model(standing: Standing, runs: Mapping[int, RunRecord], *, monitor: str, against: Against | None) -> ModelResult:
    winner = standing.winner
    assert winner is not None
    per_epoch = [run.seconds_per_epoch for run in runs.values() if run.seconds_per_epoch is not None]
    return ModelResult(
        name=standing.entrant.name,
        kind=_kind(standing.entrant.config),
        settings=winner.settings,
        trials=[_trial(record, monitor=monitor) for _, record in standing.trials if record is not None],
        seeds=list(runs),
        failed_seeds={
            record.seed: record.failed
            for _, record in standing.seeds
            if record is not None and record.failed is not None
        },
        valid=winner.metrics["valid"][monitor],
        test=_figures(runs, "test"),
        test_from_history=_figures(runs, "test_from_history") or None,
        seconds_per_epoch=_mean(per_epoch) if per_epoch else None,
        epochs=_mean([run.epochs for run in runs.values()]),
        seconds=_mean([run.seconds for run in runs.values()]),
        seconds_of_all=sum(record.seconds for record in standing.records),
        num_parameters=winner.num_parameters,
        against=against,
    )


def _trial(record: RunRecord, *, monitor: str) -> TrialResult:
    valid = None if record.failed is not None else record.metrics["valid"][monitor]
    return TrialResult(settings=record.settings, valid=valid, failed=record.failed, seconds=record.seconds)


def _figures(runs: Mapping[int, RunRecord], part: str) -> dict[str, Figure]:
    found = [record.metrics[part] for record in runs.values() if part in record.metrics]
    if not found:
        return {}
    return {
        name: Figure(mean=mean, deviation=deviation, values=[values[name] for values in found])
        for name, (mean, deviation) in mean_and_deviation(found).items()
    }


def _against(
    name: str, ours: Mapping[int, RunRecord], theirs: Mapping[int, RunRecord], records: Records, *, monitor: str
) -> Against | None:
    """Return the comparison over the seeds that both have; None without such a seed."""
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    found = paired_bootstrap(
        [_sample(ours[seed], records, monitor=monitor) for seed in seeds],
        [_sample(theirs[seed], records, monitor=monitor) for seed in seeds],
    )
    return Against(
        name=name,
        seeds=seeds,
        difference=found.difference,
        interval=found.interval,
        relative=found.relative,
        relative_interval=found.relative_interval,
        p=found.p,
    )


def _sample(record: RunRecord, records: Records, *, monitor: str) -> Sample:
    users_B, values_B = records.judged(record, USERS, f"test/{monitor}")
    return Sample(users_B.astype(np.int64), values_B)


def _num_users(seed: int, runs: Sequence[RunRecord], records: Records) -> int:
    return next((len(records.judged(record, USERS)[0]) for record in runs if record.seed == seed), 0)


def _unranked(standing: Standing) -> Unranked:
    failed = [record.failed for record in standing.records if record.failed is not None]
    return Unranked(
        name=standing.entrant.name, kind=_kind(standing.entrant.config), reasons=list(dict.fromkeys(failed))
    )


def _kind(config: AnyRun) -> str:
    return config.model.kind


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
