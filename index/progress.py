"""Progress of long work: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0


class Reporter(Protocol):
    """Hears how far a piece of work is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note: of `stage`, `done` of `total` items are finished."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def reporting(stream: TextIO | None = None) -> Iterator[Reporter]:
    """Give a reporter that writes to `stream` (standard error by default) while the block runs."""
    target = stream or sys.stderr
    if not target.isatty():
        yield _Lines(target)
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=target)) as progress:
        yield _Bars(progress)


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)


class _Lines:
    """One line when a stage starts, one when it ends, and one every few seconds in between."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._stage = ""
        self._next_line = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage == self._stage and now < self._next_line and done < total:
            return
        self._stage, self._next_line = stage, now + _SECONDS_BETWEEN_LINES
        self._stream.write(f"{stage}: {done:,} of {total:,}\n")
        self._stream.flush()
