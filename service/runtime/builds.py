"""Builds: starts the jobs of the store, one process at a time, and says what became of them.

The changes of items are written to a file before, for the process to fold in: it knows no database.
Any worker may take the next job; the lock that the process inherits keeps all others, on every machine that shares the
store, from starting another one. A process lives no longer than the worker that started it.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from api_schemas.jobs import IndexRequest, Job
from index.jobs import JobStore, NoSuchJob, Turn
from index.store import ArtefactError
from service.recommend.errors import StoreUnavailable

BUILD_STARTED = "build_started"
BUILD_ENDED = "build_ended"
BUILDS_STALLED = "builds_stalled"
CHANGES_NOT_READ = "build_changes_not_read"
CHANGES_TRIMMED = "build_changes_trimmed"
CHANGES_NOT_TRIMMED = "build_changes_not_trimmed"

RETRY_S = 30.0
"""After so long a store that could not be written to is tried again."""

_log = structlog.get_logger()


Export = Callable[[Path, Callable[[], None]], object]
"""Writes all changes of items to a file, in pieces; before each it calls what may raise, to end it."""

Trim = Callable[[], tuple[int, int]]
"""Forgets the changes that are in all indexes in use; returns up to which one, and how many items are left."""


def _ignore(job: Job) -> None: ...


class _NotWanted(Exception):
    """The changes are not needed any more."""


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
        export: Export,
        trim: Trim,
        on_ended: Callable[[Job], None] = _ignore,
    ) -> None:
        """Prepare; nothing runs before `serve`.

        Args:
            jobs: The queue.
            store: Root of the artefact store.
            data: Where the dataset folders lie that jobs name.
            config: How to rebuild; None: the defaults.
            interval_s: How often to look for jobs that other workers took in.
            export: Used in a thread.
            trim: Used in a thread.
            on_ended: Hears of each job that ran here.
        """
        self.jobs = jobs
        self._store = store
        self._data = data
        self._config = config
        self._interval_s = interval_s
        self._export = export
        self._trim = trim
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
        job, process = turn.job, None
        try:
            try:
                if job.request.fold_changes and not await self._write_changes(job):
                    return
                process = await self._start(turn)
            finally:
                os.close(turn.lock)
            _log.info(BUILD_STARTED, job_id=job.id, pid=process.pid, **job.request.model_dump())
            await process.wait()
        finally:
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
            await asyncio.to_thread(self._end, job.id, None if process is None else process.returncode)

    async def _write_changes(self, job: Job) -> bool:
        """Write the changes of items down for the process of a job; False: it is to end, or has failed."""
        stopping = threading.Event()

        def check() -> None:
            if stopping.is_set() or self.jobs.is_cancelled(job.id):
                raise _NotWanted

        export = asyncio.ensure_future(asyncio.to_thread(self._export, self.jobs.changes_file(job.id), check))
        try:
            await asyncio.shield(export)
        except _NotWanted:
            return False
        except (StoreUnavailable, OSError, ValueError) as error:
            _log.error(CHANGES_NOT_READ, job_id=job.id, reason=str(error))
            reason = f"written: {error.strerror or error}" if isinstance(error, OSError) else "read; the log has more"
            end = {
                "state": "failed",
                "error": f"the changes of items can not be {reason}",
                "ended_at": datetime.now(UTC),
            }
            await asyncio.to_thread(self.jobs.drop_changes, job.id)
            await asyncio.to_thread(self.jobs.save, job.model_copy(update=end))
            return False
        finally:
            stopping.set()
            await asyncio.wait([export])
        return True

    async def _start(self, turn: Turn) -> asyncio.subprocess.Process:
        dataset = self._data / turn.job.request.data
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "index.job_worker", str(self._store), turn.job.id, str(dataset)),
            *([str(self._config)] if self._config else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[turn.lock],
            start_new_session=True,  # Ctrl-C is for the service, which ends its builds itself
        )

    def _end(self, job_id: str, exit_code: int | None) -> None:
        """Clear up after a job, and say what became of it."""
        self.jobs.drop_changes(job_id)
        try:
            job = self.jobs.get(job_id)  # which says so when the process could not
        except (NoSuchJob, ArtefactError) as error:
            _log.error(BUILD_ENDED, job_id=job_id, exit_code=exit_code, reason=str(error))
            return
        tell = _log.info if job.state == "succeeded" else _log.error
        tell(BUILD_ENDED, job_id=job.id, state=job.state, exit_code=exit_code, index_version=job.index, error=job.error)
        self._on_ended(job)
        if job.state == "succeeded" and job.request.fold_changes:
            try:
                up_to, left = self._trim()
            except (StoreUnavailable, ArtefactError, OSError, ValueError) as error:  # after the next one, then
                _log.error(CHANGES_NOT_TRIMMED, job_id=job.id, reason=str(error))
            else:
                _log.info(CHANGES_TRIMMED, job_id=job.id, changes_seq=up_to, changed_items=left)
