"""Jobs: builds of indexes, one at a time in a store, as files that every process of every machine reads.

Layout: `STORE/jobs/<id>.json` says what a job is and how far; `<id>.cancel` beside it that it is to end; in
`<id>.changes` are the changes of items that its process folds in. `.queue` is held while the queue changes; `.running`
by the process that builds, for as long as it lives. The kernel drops that lock with the process, so a record that says
`running` while nobody holds it tells of one that was killed.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from api_schemas.jobs import IndexRequest, Job, JobFile, JobId
from index.artefacts import ArtefactError, read_document, write_durably
from index.locks import exclusive

KEPT_JOBS = 100
"""Jobs that are over and still shown; the oldest are forgotten."""

PROCESS_ENDED = "the process that built it has ended: killed, out of memory, or stopped with the service"

_ID: TypeAdapter[str] = TypeAdapter(JobId)


class NoSuchJob(Exception):
    """There is no job of this id, or not any more."""


class JobConflict(Exception):
    """The queue or the job is not in a state that allows this; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A job that is to be built now, and the lock that says so."""

    job: Job
    lock: int
    """A descriptor: the process that builds inherits it, everybody else closes it."""


class JobStore:
    """The jobs of one artefact store. Reading makes no folder."""

    def __init__(self, root: Path, *, max_waiting: int = 8) -> None:
        """Use a store's jobs.

        Args:
            root: Of the artefact store.
            max_waiting: Jobs that may be queued beside the one that runs.
        """
        self._folder = root / "jobs"
        self._max_waiting = max_waiting

    def submit(self, request: IndexRequest) -> Job:
        """Queue a build.

        Raises:
            JobConflict: As many wait as may.
            OSError: The store can not be written to.
        """
        with exclusive(self._folder / ".queue"):
            jobs = self._read_all()
            waiting = sum(job.state == "queued" for job in jobs)
            if waiting >= self._max_waiting:
                raise JobConflict(f"{waiting} builds wait already; cancel one, or wait for one to end")
            for old in [job for job in jobs if job.is_over][:-KEPT_JOBS]:
                self._cancel_path(old.id).unlink(missing_ok=True)
                self._path(old.id).unlink(missing_ok=True)
            now = datetime.now(UTC)
            job = Job(
                id=f"job-{now:%Y%m%dt%H%M%S%f}z-{secrets.token_hex(3)}",
                state="queued",
                request=request,
                created_at=now,
            )
            self.save(job)
        return job

    def get(self, job_id: str) -> Job:
        """Return a job as it is: one whose process is gone has failed.

        Raises:
            NoSuchJob: There is none.
            ArtefactError: Its file can not be read.
        """
        job = self._read(job_id)
        if job.state == "running":
            self.settle()
            job = self._read(job_id)
        return job

    def all(self) -> list[Job]:
        """Return all jobs that can be read, newest first."""
        if any(job.state == "running" for job in self._read_all()):
            self.settle()
        return self._read_all()[::-1]

    def cancel(self, job_id: str) -> Job:
        """End a job: one that waits at once, one that runs as soon as its process looks.

        Raises:
            NoSuchJob: There is none.
            JobConflict: It is over.
            ArtefactError: Its file can not be read.
            OSError: The store can not be written to.
        """
        job = self.get(job_id)
        with exclusive(self._folder / ".queue"):
            job = self._read(job_id)
            if job.is_over:
                raise JobConflict(f"the job has ended before: it is {job.state}")
            if job.state == "queued":
                job = job.model_copy(update={"state": "cancelled", "ended_at": datetime.now(UTC)})
                self.save(job)
                return job
            self._cancel_path(job_id).touch()
        return self._read(job_id)

    def take_turn(self) -> Turn | None:
        """Begin the job that has waited longest; None: nothing waits, or another process builds.

        Raises:
            OSError: The store can not be written to.
        """
        if not self._folder.is_dir():
            return None
        lock = self._try_lock()
        if lock is None:
            return None
        try:
            self._end_orphans()
            with exclusive(self._folder / ".queue"):
                waiting = [job for job in self._read_all() if job.state == "queued"]
                if not waiting:
                    os.close(lock)
                    return None
                job = waiting[0].model_copy(update={"state": "running", "started_at": datetime.now(UTC)})
                self.save(job)
        except BaseException:
            os.close(lock)
            raise
        return Turn(job, lock)

    def settle(self) -> None:
        """Say of jobs whose process is gone that they are over. Where the store is read-only, nothing changes."""
        with suppress(OSError):
            lock = self._try_lock()
            if lock is None:
                return
            try:
                self._end_orphans()
            finally:
                os.close(lock)

    def save(self, job: Job) -> None:
        """Replace a job's record at once; only its process, and whoever changes the queue, does so.

        Raises:
            OSError: It can not be written; the record is as it was.
        """
        stored = job.model_copy(update={"cancel_requested": False})
        write_durably(self._path(job.id), JobFile(job=stored).model_dump_json(indent=2).encode() + b"\n")

    def is_cancelled(self, job_id: str) -> bool:
        """Tell whether a running job is to end."""
        return self._cancel_path(job_id).exists()

    def changes_file(self, job_id: str) -> Path:
        """Return where a job that runs finds the changes of items."""
        return self._folder / f"{job_id}.changes"

    def drop_changes(self, job_id: str = "job-*") -> None:
        """Remove what was written of the changes for a job that is over, whole or not; by default for all of them."""
        for left in self._folder.glob(f"{job_id}.changes*"):
            with suppress(OSError):  # the next one tries again
                left.unlink()

    def stamp(self) -> int:
        """Return what changes whenever a record does; 0: there never was a job."""
        try:
            return self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _end_orphans(self) -> None:
        """Mark what runs without a process; by whoever holds `.running`, so nothing else can be running."""
        self.drop_changes()
        for job in self._read_all():
            if job.state != "running":
                continue
            end = {"ended_at": datetime.now(UTC), "eta_s": None}
            if job.cancel_requested:
                self.save(job.model_copy(update={**end, "state": "cancelled"}))
            else:
                self.save(job.model_copy(update={**end, "state": "failed", "error": PROCESS_ENDED}))

    def _try_lock(self) -> int | None:
        lock = os.open(self._folder / ".running", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _read_all(self) -> list[Job]:
        """Return the jobs that can be read, oldest first."""
        jobs: list[Job] = []
        for path in sorted(self._folder.glob("job-*.json")):
            with suppress(NoSuchJob, ArtefactError):  # forgotten just now; or not of ours
                jobs.append(self._read(path.stem))
        return jobs

    def _read(self, job_id: str) -> Job:
        try:
            path = self._path(_ID.validate_python(job_id))
        except ValidationError:
            raise NoSuchJob(job_id) from None
        if not path.exists():
            raise NoSuchJob(job_id)
        job = read_document(path, JobFile).job
        if job.state == "running" and self.is_cancelled(job_id):
            return job.model_copy(update={"cancel_requested": True})
        return job

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _cancel_path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.cancel"
