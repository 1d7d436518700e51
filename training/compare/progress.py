"""What a comparison tells while it works: a line for each run that has ended, and how many are left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from training.compare.one_run import Job
from training.compare.records import RunRecord


class Teller(Protocol):
    """Hears of runs."""

    def __call__(self, line: str, *, done: int, total: int) -> None:
        """Take note: something has ended, and `done` of `total` runs are finished."""


@contextmanager
def telling(stream: TextIO | None = None) -> Iterator[Teller]:
    """Give a teller that writes to `stream` (standard error by default) while the block runs."""
    target = stream or sys.stderr
    if not target.isatty():
        yield _lines(target)
        return
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(file=target)) as progress:
        task = progress.add_task("runs")

        def tell(line: str, *, done: int, total: int) -> None:
            progress.console.print(line, highlight=False, markup=False)
            progress.update(task, completed=done, total=total)

        yield tell


def _lines(stream: TextIO) -> Teller:
    def tell(line: str, *, done: int, total: int) -> None:
        stream.write(f"{done:,} of {total:,} runs: {line}\n")
        stream.flush()

    return tell


def told(job: Job, record: RunRecord, *, monitor: str, left_s: float | None) -> str:
    """Return the line of a run that has ended. What a run got on test users is told when all are done, not before."""
    what = f"trial of {_settings(record)}" if job.is_trial else f"seed {record.seed} of {_settings(record)}"
    if record.failed is not None:
        found = f"failed: {record.failed}"
    else:
        found = f"validation {monitor} {record.metrics['valid'][monitor]:.4f}, {record.seconds:,.1f} s"
    left = "" if left_s is None else f"; about {_duration(left_s)} left"
    return f"{record.name}, {what}: {found}{left}"


def _settings(record: RunRecord) -> str:
    return ", ".join(f"{key}={value}" for key, value in record.settings.items()) or "its own settings"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:,.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
