"""How a run tells how it goes: a bar with loss and recall on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0

_TOLD = ("softmax", "view_softmax", "contrast", "bpr", "positive", "negative", "masked", "variance", "squared_error")
"""Losses that a line has room for."""


class Observer(Protocol):
    """Hears how a run goes."""

    def started(self, *, step: int, total_steps: int, batch_size: int) -> None:
        """The run begins, or goes on after `step` steps."""

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        """Some steps are done; the losses are those of the last."""

    def validated(self, step: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """A validation is done; it is counted as time in which nothing was trained."""


class Unwatched:
    """Hears of a run and tells nobody: for one of many, of which only the end is told."""

    def started(self, *, step: int, total_steps: int, batch_size: int) -> None:
        """Nothing."""

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        """Nothing."""

    def validated(self, step: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Nothing."""


@contextmanager
def watching(stream: TextIO | None = None, *, monitor: str) -> Iterator[Observer]:
    """Give an observer that writes to `stream` (standard error by default) while the block runs."""
    target = stream or sys.stderr
    if not target.isatty():
        yield _Lines(target, monitor=monitor)
        return
    console = Console(file=target)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, monitor=monitor)


class _Speed:
    """Samples a second since the start or the last validation, which is not training and does not count."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

        self._batch_size = 0
        self._from = (0, 0.0)

    def start(self, step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        self._from = (step, self._clock())

    def __call__(self, step: int) -> float:
        first, since = self._from
        return (step - first) * self._batch_size / max(self._clock() - since, 1e-9)


class _Lines:
    """A line every few seconds, and one for each validation."""

    def __init__(self, stream: TextIO, *, monitor: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._monitor = monitor
        self._clock = clock
        self._speed = _Speed(clock)
        self._next_line_s = 0.0
        self._total_steps = 0

    def started(self, *, step: int, total_steps: int, batch_size: int) -> None:
        self._total_steps = total_steps
        self._speed.start(step, batch_size)
        self._write(f"training: step {step:,} of {total_steps:,}")

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        now = self._clock()
        if now < self._next_line_s and step < self._total_steps:
            return
        self._next_line_s = now + _SECONDS_BETWEEN_LINES
        self._write(
            f"training: step {step:,} of {self._total_steps:,}, {_told(losses)}, {self._speed(step):,.0f} samples/s"
        )

    def validated(self, step: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        self._speed.restart(step)
        best = ", the best so far" if is_best else ""
        self._write(f"validation: step {step:,}, {self._monitor} {metrics[self._monitor]:.4f}{best}")

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class _Bar:
    def __init__(self, progress: Progress, *, monitor: str) -> None:
        self._progress = progress
        self._monitor = monitor
        self._task = progress.add_task("training")
        self._speed = _Speed(time.monotonic)
        self._best = ""

    def started(self, *, step: int, total_steps: int, batch_size: int) -> None:
        self._speed.start(step, batch_size)
        self._progress.update(self._task, completed=step, total=total_steps)

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        description = f"{_told(losses)} {self._speed(step):,.0f}/s{self._best}"
        self._progress.update(self._task, completed=step, description=description)

    def validated(self, step: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        self._speed.restart(step)
        value = f"{self._monitor} {metrics[self._monitor]:.4f}"
        self._progress.console.print(f"step {step:,}: {value}{' (best)' if is_best else ''}")
        if is_best:
            self._best = f", best {value}"


def _told(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {losses[name]:.3f}" for name in _TOLD if name in losses)
