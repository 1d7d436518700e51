"""One SQLite file behind two threads: reads that never wait for a writer, and writes that share a commit.

What is read and written is the business of the modules beside this one: each hands in functions, which run in the
thread. Writes that wait together are one transaction with one fsync, and a call returns after that.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from service.adapters import sqlite_schema as sql
from service.adapters.batch_thread import BatchThread
from service.adapters.sqlite_connection import HealingConnection
from service.recommend.errors import Conflict, StoreUnavailable
from service.recommend.ports import EventLimits
from service.recommend.types import Subject

Y = TypeVar("Y")
_DAY_S = 86_400


@dataclass(slots=True)
class SubjectRow:
    """A subject's row while a transaction works on it."""

    id: int
    num_events: int
    next_seq: int


class Turn:
    """One transaction, which all writes of a turn share; knows the subjects that it has touched."""

    def __init__(self, connection: sqlite3.Connection, *, day: int, limits: EventLimits, is_scrubbed: bool) -> None:
        self.connection = connection
        self.day = day
        """Days since the epoch, now."""
        self.limits = limits
        self.is_scrubbed = is_scrubbed
        """Whether what was deleted in earlier turns has left the log, too."""
        self.scrub = False
        """Set where what was deleted shall leave the log after this turn."""
        self._touched: dict[Subject, SubjectRow] = {}

    def find(self, subject: Subject) -> SubjectRow | None:
        """Return the row of a subject of which something is kept."""
        row = self._touched.get(subject)
        if row is None:
            found = self.connection.execute(sql.FIND_SUBJECT, (subject,)).fetchone()
            if found is None:
                return None
            row = self._touched[subject] = SubjectRow(*found)
        return row

    def find_or_add(self, subject: Subject) -> SubjectRow:
        """Return the row of a subject of which something will be kept."""
        row = self.find(subject)
        if row is None:
            (subject_id,) = self.connection.execute(sql.ADD_SUBJECT, (subject, self.day)).fetchone()
            row = self._touched[subject] = SubjectRow(subject_id, 0, 0)
        return row

    def forget(self, subject: Subject) -> None:
        """Delete everything that is kept of a subject, and the subject."""
        row = self.find(subject)
        if row is not None:
            forget_rows(self.connection, row.id)
            del self._touched[subject]

    def settle(self) -> None:
        """Trim what is over the bound and write the rows of the subjects; the last step."""
        for row in self._touched.values():
            over = row.num_events - self.limits.max_events_per_subject
            if over > 0:
                self.connection.execute(sql.TRIM, (row.id, over))
                row.num_events -= over
            self.connection.execute(sql.UPDATE_SUBJECT, (row.num_events, row.next_seq, row.id))
            self.connection.execute(sql.TOUCH_SUBJECT, (self.day, row.id))


def forget_rows(connection: sqlite3.Connection, subject_id: int) -> None:
    """Delete a subject's rows of every table that has some."""
    for statement in sql.FORGET_SUBJECT:
        connection.execute(statement, (subject_id,))


_Read = Callable[[sqlite3.Connection], object]
_Write = Callable[[Turn], object]


class SqliteFile:
    """The file, shared by all that is kept in it."""

    def __init__(self, path: Path, *, limits: EventLimits, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file.

        Raises:
            StoreFileError: It is not a database of ours, or can not be opened or made.
        """
        self.limits = limits
        self.path = path
        self._clock = clock
        self._is_scrubbed = False
        sql.prepare(path, busy_timeout_s=limits.write_timeout_s)
        self._reads = HealingConnection(path, busy_timeout_s=limits.read_timeout_s)
        self._writes = HealingConnection(path, busy_timeout_s=limits.write_timeout_s)
        self._reader = BatchThread[_Read, Any](
            self._read, name="sqlite-reader", max_batch=256, max_waiting=limits.max_waiting
        )
        self._writer = BatchThread[_Write, Any](
            self._write, name="sqlite-writer", max_batch=256, max_waiting=limits.max_waiting
        )

    async def read(self, work: Callable[[sqlite3.Connection], Y]) -> Y:
        """Return what `work` reads.

        Raises:
            StoreUnavailable: The file can not be read now, or not in time.
        """
        return cast("Y", await self._reader(work, timeout_s=self.limits.read_timeout_s))

    async def write(self, work: Callable[[Turn], Y]) -> Y:
        """Return what `work` returns, once all that it wrote is on disk.

        It may raise `Conflict` before its first statement that writes; its neighbours in the transaction are then kept.

        Raises:
            StoreUnavailable: The file can not be written now, or not in time; the work may still be done.
            Conflict: Raised by `work`.
        """
        return cast("Y", await self._writer(work, timeout_s=self.limits.write_timeout_s))

    def size_bytes(self) -> int:
        """Return what the file and its journal take on disk."""
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._reader.close()
        await self._writer.close()
        self._reads.close()
        self._writes.close()

    # --- in the reader's thread ---

    def _read(self, jobs: Sequence[_Read]) -> list[object]:
        with self._reads as connection:
            return [work(connection) for work in jobs]

    # --- in the writer's thread ---

    def _write(self, jobs: Sequence[_Write]) -> list[object]:
        """Commit all jobs together. What no file is to blame for is tried job by job, so that it fails one alone."""
        try:
            return self._commit(jobs)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - told to the caller whose work it is
            if len(jobs) == 1:
                return [error]
            return [result for job in jobs for result in self._write([job])]

    def _commit(self, jobs: Sequence[_Write]) -> list[object]:
        with self._writes as connection:
            turn = Turn(connection, day=int(self._clock() // _DAY_S), limits=self.limits, is_scrubbed=self._is_scrubbed)
            connection.execute("BEGIN IMMEDIATE")
            results = [_outcome(work, turn) for work in jobs]
            turn.settle()
            connection.execute("COMMIT")
            if turn.scrub:
                self._is_scrubbed = sql.scrub(connection)
        return results


def _outcome(work: _Write, turn: Turn) -> object:
    try:
        return work(turn)
    except Conflict as error:
        return error
