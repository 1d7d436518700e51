"""Processes that do runs side by side, each with its share of the cores."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from typing import Protocol

import torch

from training.compare.one_run import Job, RunError, run_one
from training.compare.records import RunRecord

Done = tuple[Job, RunRecord | None]
"""A run and its record; None when it was stopped and has left a checkpoint."""


class Workers(Protocol):
    """Do one run each at a time."""

    num: int

    def give(self, job: Job) -> None:
        """Start a run; only while fewer than `num` are running."""

    def wait(self, timeout_s: float) -> Sequence[Done]:
        """Return runs that have ended, as soon as there is one; none when the time is over.

        Raises:
            RunError: A run could not be done for a reason that is not its own.
        """

    def stop(self) -> None:
        """Ask all runs to end with a checkpoint."""


@contextmanager
def processes(num: int) -> Iterator[Workers]:
    """Give worker processes, which are asked to stop and awaited when the block ends."""
    workers = _Processes(num)
    try:
        yield workers
    finally:
        workers.close()


class _Processes:
    def __init__(self, num: int) -> None:
        self.num = num
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._threads = max(1, num_cores() // num)
        self._idle: list[tuple[SpawnProcess, Connection]] = []
        self._busy: dict[Connection, tuple[SpawnProcess, Job]] = {}

    def give(self, job: Job) -> None:
        process, connection = self._idle.pop() if self._idle else self._started()
        connection.send(job)
        self._busy[connection] = process, job

    def wait(self, timeout_s: float) -> list[Done]:
        done: list[Done] = []
        for connection in wait(list(self._busy), timeout_s):
            assert isinstance(connection, Connection)
            process, job = self._busy.pop(connection)
            try:
                answer = connection.recv()
            except (EOFError, ConnectionError):
                process.join()
                raise RunError(f"{job.config.name}: its process ended with exit code {process.exitcode}") from None
            self._idle.append((process, connection))
            if isinstance(answer, str):
                raise RunError(answer)
            done.append((job, answer))
        return done

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        everyone = [*self._idle, *((process, connection) for connection, (process, _) in self._busy.items())]
        for process, connection in everyone:
            with suppress(OSError):  # it may have died
                connection.send(None)
            process.join()
            connection.close()

    def _started(self) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._stop, self._threads), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(connection: Connection, stop: Event, threads: int) -> None:
    """Do runs until there is nobody who gives any."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C goes to all of a terminal; the one that started us tells us
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = os.getppid()

    def should_stop() -> bool:
        return stop.is_set() or os.getppid() != parent

    while True:
        try:
            job: Job | None = connection.recv()
        except (EOFError, ConnectionError):  # the one that started us is gone
            return
        if job is None:
            return
        answer: RunRecord | str | None
        try:
            answer = run_one(job, should_stop=should_stop)
        except RunError as error:
            answer = str(error)
        with suppress(OSError):
            connection.send(answer)
