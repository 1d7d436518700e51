"""Which runs are to be done, in one queue for all models: trials, then the winner's seeds.

What comes next follows from the records alone, so going on and starting are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from index.dataset import Dataset
from training.compare.one_run import Job
from training.compare.progress import Teller, told
from training.compare.records import Records, RunRecord
from training.compare.space import Entrant, Settings
from training.compare.workers import Workers
from training.trainer import run_digest

_SECONDS_BETWEEN_LOOKS = 0.5
"""At signals, while runs are running."""


class Stopped(Exception):
    """The comparison was asked to stop; what is done is kept."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a model."""

    entrant: Entrant
    trials: tuple[tuple[Job, RunRecord | None], ...]
    """On the first seed, with what is known of each."""
    winner: RunRecord | None
    """The trial with the best figure on validation, when all are done; None too when all have failed."""
    seeds: tuple[tuple[Job, RunRecord | None], ...]
    """The winner's runs, with what is known of each."""

    @property
    def to_do(self) -> list[Job]:
        """Return the runs that can be done now."""
        if open_trials := [job for job, record in self.trials if record is None]:
            return open_trials
        return [job for job, record in self.seeds if not _is_done(record)]

    @property
    def records(self) -> list[RunRecord]:
        """Return all that is known, each run once."""
        tried = [record for _, record in self.trials if record is not None]
        return tried + [record for _, record in self.seeds[1:] if record is not None and _is_done(record)]


class Tournament:
    """The runs of all models."""

    def __init__(
        self,
        entrants: Sequence[Entrant],
        dataset: Dataset,
        *,
        seeds: Sequence[int],
        monitor: str,
        out: Path,
    ) -> None:
        """Take the models; nothing is run yet."""
        self.records = Records(out)
        self._entrants, self._dataset, self._seeds = entrants, dataset, seeds
        self._monitor, self._out = monitor, out
        self._trials = {
            entrant.name: [self._job(entrant, settings, seed=seeds[0], is_trial=True) for settings in entrant.trials]
            for entrant in entrants
        }

    def standings(self) -> list[Standing]:
        """Return where each model is."""
        return [self._standing(entrant) for entrant in self._entrants]

    def play(self, workers: Workers, *, tell: Teller, should_stop: Callable[[], bool]) -> None:
        """Do what is missing.

        Raises:
            Stopped: `should_stop` said so; runs that were going on have left checkpoints.
            RunError: A run could not be done for a reason that is not its own.
        """
        running: dict[str, Job] = {}
        is_stopping = False
        while True:
            if should_stop() and not is_stopping:
                is_stopping = True
                workers.stop()
            standings = self.standings()
            if not is_stopping:
                waiting = [job for standing in standings for job in standing.to_do if job.run not in running]
                for job in waiting[: workers.num - len(running)]:
                    workers.give(job)
                    running[job.run] = job
            if not running:
                break
            for job, record in workers.wait(_SECONDS_BETWEEN_LOOKS):
                del running[job.run]
                if record is None:
                    continue
                self.records.note(record)
                if job.is_trial or job.config.seed != self._seeds[0]:  # else it was told as a trial
                    self._tell(tell, job, record, num_workers=workers.num)
        if is_stopping and any(standing.to_do for standing in self.standings()):
            raise Stopped(self._done_of_total())

    def _tell(self, tell: Teller, job: Job, record: RunRecord, *, num_workers: int) -> None:
        done, total, left_s = self._progress()
        left_s = None if left_s is None else left_s / num_workers
        tell(told(job, record, monitor=self._monitor, left_s=left_s), done=done, total=total)

    def _done_of_total(self) -> str:
        done, total, _ = self._progress()
        return f"stopped with {done:,} of {total:,} runs done"

    def _progress(self) -> tuple[int, int, float | None]:
        """Return runs that are done, all, and the seconds that the others would take on one worker, if known."""
        standings = self.standings()
        all_seconds = [record.seconds for one in standings for record in one.records if record.failed is None]
        done, total, left_s = 0, 0, 0.0
        for one in standings:
            is_lost = one.winner is None and all(record is not None for _, record in one.trials)
            expected = len(one.trials) + (0 if is_lost else len(self._seeds) - 1)
            seconds = [record.seconds for record in one.records if record.failed is None] or all_seconds
            done += len(one.records)
            total += expected
            left_s += (expected - len(one.records)) * (sum(seconds) / len(seconds) if seconds else 0.0)
        return done, total, left_s if all_seconds and done < total else None

    def _standing(self, entrant: Entrant) -> Standing:
        trials = tuple((job, self.records.find(job.run)) for job in self._trials[entrant.name])
        if any(record is None for _, record in trials):
            return Standing(entrant, trials, None, ())
        winner = best([record for _, record in trials if record is not None], monitor=self._monitor)
        for _, record in trials:
            if record is not None and record is not winner:
                self.records.forget_test(record)
                self.records.forget_checkpoint(record.run)
        if winner is None:
            return Standing(entrant, trials, None, ())
        jobs = [self._job(entrant, winner.settings, seed=seed, is_trial=False) for seed in self._seeds]
        return Standing(entrant, trials, winner, tuple((job, self.records.find(job.run)) for job in jobs))

    def _job(self, entrant: Entrant, settings: Settings, *, seed: int, is_trial: bool) -> Job:
        config = entrant.run(settings, seed=seed)
        digest = run_digest(config, self._dataset)
        return Job(digest, config, settings, self._dataset.path, self._out, is_trial)


def best(trials: Sequence[RunRecord], *, monitor: str) -> RunRecord | None:
    """Return the trial with the best figure on validation, the first of equals; None when all have failed."""
    finished = [record for record in trials if record.failed is None]
    return max(finished, key=lambda record: record.metrics["valid"][monitor], default=None)


def _is_done(record: RunRecord | None) -> bool:
    return record is not None and (record.is_judged or record.failed is not None)
