"""The process that builds one job: `python -m index.job_worker STORE JOB DATASET [CONFIG]`.

Started by a service, from which it inherits the lock `STORE/jobs/.running` and a pipe on standard input, and which has
written down the changes of items for it to fold in. It ends when the pipe does, so that no build outlives the service
that started it, and when its job is cancelled. A rebuild may be ended at any moment: what it has not published is swept
away by the next one.
"""

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from api_schemas.jobs import MAX_ERROR, Job, JobProgress
from index.config import RebuildConfig
from index.dataset import Dataset
from index.folded import fold_in
from index.jobs import JobStore
from index.progress import Reporter
from index.rebuild import rebuild
from index.store import ArtefactError, ArtifactStore
from index.trimmed import folded_in_use, note_trimmed

NICENESS = 10
"""Whoever answers requests on the same cores comes first."""

_LOOK_EVERY_S = 0.5
_SAVE_EVERY_S = 1.0
_UNITS = {"count interactions": "interactions", "widen search": "steps"}
"""What stages count; all others count items."""


class JobReporter:
    """Writes the progress of a rebuild into its job's record: each new stage, and once a second in between."""

    def __init__(self, jobs: JobStore, job: Job, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        """As it was last written."""
        self._jobs = jobs
        self._clock = clock
        self._stage = ""
        self._stage_began = self._save_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of the progress.

        Raises:
            OSError: The record can not be written.
        """
        now = self._clock()
        if stage == self._stage and now < self._save_at and done < total:
            return
        if stage != self._stage:
            self._stage, self._stage_began = stage, now
        self._save_at = now + _SAVE_EVERY_S
        seconds = now - self._stage_began
        eta_s = round(seconds * (total - done) / done, 1) if seconds and 0 < done < total else None
        progress = JobProgress(stage=stage, done=done, total=total, unit=_UNITS.get(stage, "items"))
        self.save(progress=progress, eta_s=eta_s)

    def save(self, **changes: object) -> None:
        """Change fields of the record.

        Raises:
            OSError: It can not be written.
        """
        self.job = self.job.model_copy(update=changes)
        self._jobs.save(self.job)


def build(jobs: JobStore, job: Job, *, store: ArtifactStore, dataset: Path, config: Path | None) -> Job:
    """Build the index of a job, and return its record at the end: succeeded or failed.

    Raises:
        OSError: The record can not be written.
    """
    report = JobReporter(jobs, job)
    try:
        data, forgettable = Dataset.open(dataset), 0
        if job.request.fold_changes:
            data, forgettable = _with_changes(data, jobs, store=store, report=report)
        version = _rebuild(job, store=store, data=data, config=config, report=report)
    except (ArtefactError, ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        for folder in (dataset.parent, store.root):  # where they lie is nothing that callers must know
            reason = reason.replace(f"{folder}{os.sep}", "")
        report.save(state="failed", error=reason[:MAX_ERROR], eta_s=None, ended_at=datetime.now(UTC))
    else:
        with suppress(ArtefactError, OSError):  # the index is there all the same; the next one tries again
            note_trimmed(store, up_to=min(forgettable, folded_in_use(store)))
        report.save(state="succeeded", index=version, eta_s=None, ended_at=datetime.now(UTC))
    return report.job


def _with_changes(named: Dataset, jobs: JobStore, *, store: ArtifactStore, report: JobReporter) -> tuple[Dataset, int]:
    """Return the dataset that has all changes, and up to which one nobody needs them elsewhere; say so in the record.

    That is what was there before this build. It shows that the caller goes on from what is kept: who comes with new
    data each time needs the changes each time.
    """
    folded = fold_in(store.root, named, jobs.changes_file(report.job.id), report=report)
    data = None if folded.dataset is named else folded.dataset.path.relative_to(store.root).as_posix()
    report.save(folded_changes=folded.num_changes, folded_data=data)
    jobs.drop_changes(report.job.id)
    return folded.dataset, folded.seq_before


def _rebuild(job: Job, *, store: ArtifactStore, data: Dataset, config: Path | None, report: Reporter) -> str:
    made = rebuild(
        store,
        bundle_version=job.request.model,
        ranker_version=job.request.ranker,
        dataset=data,
        config=RebuildConfig.load(config) if config else RebuildConfig(),
        make_current=job.request.make_current,
        report=report,
    )
    return made.version


def _end_with(jobs: JobStore, job_id: str) -> None:
    """Watch the pipe and the wish to cancel; whoever started this process says in the record what became of it."""
    while not jobs.is_cancelled(job_id):
        if select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0] and not os.read(sys.stdin.fileno(), 1):
            break
    os._exit(1)


def main() -> int:
    """Build the job that the command line names; return the exit code."""
    root, job_id, dataset, *config = sys.argv[1:]
    store, jobs = ArtifactStore(Path(root)), JobStore(Path(root))
    threading.Thread(target=_end_with, args=(jobs, job_id), name="job-watch", daemon=True).start()
    os.nice(NICENESS)
    end = build(jobs, jobs.get(job_id), store=store, dataset=Path(dataset), config=Path(config[0]) if config else None)
    return 0 if end.state == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
