"""Builds: starts the jobs of the store, one process at a time, and says what became of them.

Any worker may take the next job; the lock that the process inherits keeps all others, on every machine that shares the
store, from starting another one. A process lives no longer than the worker that started it.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from api_schemas.jobs import IndexRequest, Job
from index.jobs import JobStore, NoSuchJob, Turn
from index.store import ArtefactError

BUILD_STARTED = "build_started"
BUILD_ENDED = "build_ended"
BUILDS_STALLED = "builds_stalled"

RETRY_S = 30.0
"""After so long a store that could not be written to is tried again."""

_log = structlog.get_logger()


def _ignore(job: Job) -> None: ...


class Builder:
    """The jobs of one store, and the loop that runs them. Used on the event loop."""

    def __init__(
        self,
        jobs: JobStore,
        *,
        store: Path,
        data: Path,
        config: Path | None,
        interval_s: float,
        on_ended: Callable[[Job], None] = _ignore,
    ) -> None:
        """Prepare; nothing runs before `serve`.

        Args:
            jobs: The queue.
            store: Root of the artefact store.
            data: Where the dataset folders lie that jobs name.
            config: How to rebuild; None: the defaults.
            interval_s: How often to look for jobs that other workers took in.
            on_ended: Hears of each job that ran here.
        """
        self.jobs = jobs
        self._store = store
        self._data = data
        self._config = config
        self._interval_s = interval_s
        self._on_ended = on_ended
        self._submitted = asyncio.Event()
        self._idle_stamp: int | None = None
        """Of the records when nothing waited: as long as it stays, nothing does."""

    def has_data(self, name: str) -> bool:
        """Tell whether there is a dataset folder of this name."""
        return (self._data / name / "dataset.json").is_file()

    async def submit(self, request: IndexRequest) -> Job:
        """Queue a build; it begins at once when none is running.

        Raises:
            JobConflict: As many wait as may.
            OSError: The store can not be written to.
        """
        job = await asyncio.to_thread(self.jobs.submit, request)
        self._submitted.set()
        return job

    async def serve(self) -> None:
        """Build what is queued, one after the other, for ever. Owned by the lifespan's task group."""
        while True:
            pause_s = self._interval_s
            self._submitted.clear()
            try:
                turn = await asyncio.to_thread(self._look)
                if turn is not None:
                    await self._build(turn)
                    continue
            except OSError as error:
                _log.error(BUILDS_STALLED, reason=str(error))
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._submitted.wait(), pause_s)

    def _look(self) -> Turn | None:
        stamp = self.jobs.stamp()
        if stamp == self._idle_stamp:
            return None
        turn = self.jobs.take_turn()
        if turn is None and all(job.is_over for job in self.jobs.all()):
            self._idle_stamp = stamp
        return turn

    async def _build(self, turn: Turn) -> None:
        """Run the process of a job to its end, or end it when this service ends."""
        job = turn.job
        dataset = self._data / job.request.data
        command = [sys.executable, "-m", "index.job_worker", str(self._store), job.id, str(dataset)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *([str(self._config)] if self._config else []),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[turn.lock],
                start_new_session=True,  # Ctrl-C is for the service, which ends its builds itself
            )
        finally:
            os.close(turn.lock)
        _log.info(BUILD_STARTED, job_id=job.id, pid=process.pid, **job.request.model_dump())
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await asyncio.to_thread(self._say_end, job.id, process.returncode)

    def _say_end(self, job_id: str, exit_code: int | None) -> None:
        try:
            job = self.jobs.get(job_id)  # which says so when the process could not
        except (NoSuchJob, ArtefactError) as error:
            _log.error(BUILD_ENDED, job_id=job_id, exit_code=exit_code, reason=str(error))
            return
        tell = _log.info if job.state == "succeeded" else _log.error
        tell(BUILD_ENDED, job_id=job.id, state=job.state, exit_code=exit_code, index_version=job.index, error=job.error)
        self._on_ended(job)
