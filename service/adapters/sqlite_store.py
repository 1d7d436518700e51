"""The embedded store: one SQLite file in WAL mode, shared by all workers of a machine, no set-up.

Appends that wait together are committed together, with one fsync, in one writer thread; a call returns after that.
Reads have a thread and a connection of their own and never wait for a writer.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.adapters import sqlite_schema as sql
from service.adapters.batch_thread import BatchThread
from service.recommend.errors import StoreUnavailable
from service.recommend.ports import StoredHistory
from service.recommend.types import Event, Subject

_EMPTY = StoredHistory()
_DAY_S = 86_400
_Append = tuple[Event, ...]
_Read = tuple[Subject, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteLimits:
    """How much is kept, and how long a call may take."""

    max_events_per_subject: int = 500
    keep_idle_days: int = 365
    """A subject without a new event for so many days is forgotten."""
    read_timeout_s: float = 0.25
    write_timeout_s: float = 5.0
    max_waiting: int = 10_000


class SqliteStore:
    """`HistoryStore` and `EventSink` on one file."""

    durable = True

    def __init__(
        self, path: Path, *, limits: SqliteLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Open or make the file.

        Raises:
            StoreFileError: It is not a database of ours, or can not be opened or made.
        """
        self.limits = limits or SqliteLimits()
        self._path = path
        self._clock = clock
        sql.prepare(path, busy_timeout_s=self.limits.write_timeout_s)
        self._reads = _Connection(path, busy_timeout_s=self.limits.read_timeout_s)
        self._writes = _Connection(path, busy_timeout_s=self.limits.write_timeout_s)
        self._reader = BatchThread[_Read, StoredHistory](
            self._read, name="sqlite-reader", max_batch=256, max_waiting=self.limits.max_waiting
        )
        self._writer = BatchThread[_Append, tuple[bool, ...]](
            self._append, name="sqlite-writer", max_batch=256, max_waiting=self.limits.max_waiting
        )

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        """Return the last `limit` events; see the port."""
        if limit < 1:
            return _EMPTY
        return await self._reader((subject, limit), timeout_s=self.limits.read_timeout_s)

    async def append(self, events: Sequence[Event]) -> tuple[bool, ...]:
        """Keep the events, durable when this returns; see the port."""
        if not events:
            return ()
        return await self._writer(tuple(events), timeout_s=self.limits.write_timeout_s)

    async def ping(self) -> None:
        """Read once."""
        await self._reader((Subject(""), 1), timeout_s=self.limits.read_timeout_s)

    async def maintain(self) -> int:
        """Forget subjects that have been idle for too long; return the bytes on disk.

        Raises:
            StoreUnavailable: The file can not be written now.
        """
        await self._writer((), timeout_s=self.limits.write_timeout_s)
        return sum(
            file.stat().st_size
            for file in (self._path, self._path.with_name(f"{self._path.name}-wal"))
            if file.exists()
        )

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._reader.close()
        await self._writer.close()
        self._reads.close()
        self._writes.close()

    # --- in the reader's thread ---

    def _read(self, jobs: Sequence[_Read]) -> list[StoredHistory | Exception]:
        with self._reads as connection:
            return [_read_one(connection, subject, limit) for subject, limit in jobs]

    # --- in the writer's thread ---

    def _append(self, jobs: Sequence[_Append]) -> list[tuple[bool, ...] | Exception]:
        """Commit all jobs together. What no file is to blame for is tried job by job, so that it fails one alone."""
        try:
            return list(self._commit(jobs))
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - told to the caller whose events they are
            if len(jobs) == 1:
                return [error]
            return [result for job in jobs for result in self._append([job])]

    def _commit(self, jobs: Sequence[_Append]) -> list[tuple[bool, ...]]:
        """Write all jobs in one transaction; an empty job asks for the clean-up of idle subjects."""
        day = int(self._clock() // _DAY_S)
        subjects: dict[Subject, _SubjectState] = {}
        with self._writes as connection:
            connection.execute("BEGIN IMMEDIATE")
            results = [tuple([_add(connection, event, subjects, day) for event in events]) for events in jobs]
            for state in subjects.values():
                _settle(connection, state, day=day, max_events=self.limits.max_events_per_subject)
            if not all(jobs):
                _forget_idle(connection, before_day=day - self.limits.keep_idle_days)
            connection.execute("COMMIT")
        return results


@dataclass(slots=True)
class _SubjectState:
    """A subject's row while a transaction adds to it."""

    id: int
    num_events: int
    next_seq: int


def _read_one(connection: sqlite3.Connection, subject: Subject, limit: int) -> StoredHistory:
    item_ids, occurred_us = connection.execute(sql.READ, (subject, limit)).fetchone()
    if item_ids == "[]":
        return _EMPTY
    return StoredHistory(
        item_ids=tuple(reversed(json.loads(item_ids))),
        occurred_at=tuple([us / 1e6 for us in reversed(json.loads(occurred_us))]),
    )


def _add(connection: sqlite3.Connection, event: Event, subjects: dict[Subject, _SubjectState], day: int) -> bool:
    state = subjects.get(event.subject)
    if state is None:
        row = connection.execute(sql.FIND_SUBJECT, (event.subject,)).fetchone()
        if row is None:
            row = (connection.execute(sql.ADD_SUBJECT, (event.subject, day)).fetchone()[0], 0, 0)
        state = subjects[event.subject] = _SubjectState(*row)
    added = connection.execute(
        sql.ADD_EVENT,
        (
            state.id,
            round(event.occurred_at * 1e6),
            state.next_seq,
            event.event_id,
            event.item_id,
            event.type,
            event.value,
            event.recommendation_id,
        ),
    ).rowcount
    state.num_events += added
    state.next_seq += added
    return added == 1


def _settle(connection: sqlite3.Connection, state: _SubjectState, *, day: int, max_events: int) -> None:
    """Trim what is over the bound and write the subject's row."""
    over = state.num_events - max_events
    if over > 0:
        connection.execute(sql.TRIM, (state.id, over))
        state.num_events = max_events
    connection.execute(sql.UPDATE_SUBJECT, (state.num_events, state.next_seq, state.id))
    connection.execute(sql.TOUCH_SUBJECT, (day, state.id))


def _forget_idle(connection: sqlite3.Connection, *, before_day: int) -> None:
    """Forget a bounded number of idle subjects; the next call goes on."""
    for (subject_id,) in connection.execute(sql.FIND_IDLE, (before_day,)).fetchall():
        connection.execute(sql.FORGET_EVENTS, (subject_id,))
        connection.execute(sql.FORGET_SUBJECT, (subject_id,))


@dataclass(slots=True)
class _Connection:
    """A connection that heals: after an error, or when another file has taken the path, the next use opens it anew.

    An SQLite connection to a deleted file goes on working, and what it is given is lost with the last process that
    holds it: so every use looks whether the path still leads to the file that is open.
    """

    path: Path
    busy_timeout_s: float
    _connection: sqlite3.Connection | None = None
    _inode: tuple[int, int] = field(default=(0, 0))

    def __enter__(self) -> sqlite3.Connection:
        try:
            stat = os.stat(self.path)  # noqa: PTH116 - half the cost of Path.stat, on every read
            if self._connection is None or self._inode != (stat.st_dev, stat.st_ino):
                self.close()
                self._connection = sql.connect(self.path, busy_timeout_s=self.busy_timeout_s)
                self._inode = (stat.st_dev, stat.st_ino)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        self.close()  # rolls back what is open
        if isinstance(error, sqlite3.Error | OSError):
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                return  # a broken file can not even be closed in order; nothing of ours is open in it
