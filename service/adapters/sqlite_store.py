"""The embedded store: one SQLite file in WAL mode, shared by all workers of a machine, no set-up."""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from service.adapters import sqlite_schema as sql
from service.adapters.sqlite_file import SqliteFile, Turn, forget_rows
from service.adapters.sqlite_users import SqliteUsers
from service.recommend.ports import EventLimits, StoredHistory
from service.recommend.types import Event, Subject

_EMPTY = StoredHistory()


class SqliteStore:
    """`HistoryStore` and `EventSink` on one file; `users` is the `UserStore` on the same."""

    durable = True

    def __init__(
        self, path: Path, *, limits: EventLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Open or make the file.

        Raises:
            StoreFileError: It is not a database of ours, or can not be opened or made.
        """
        self._file = SqliteFile(path, limits=limits or EventLimits(), clock=clock)
        self.users = SqliteUsers(self._file)

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        """Return the last `limit` events and all blocks; see the port."""
        if limit < 1:
            return _EMPTY
        return await self._file.read(partial(_history, subject, limit))

    async def append(self, events: Sequence[Event]) -> tuple[bool, ...]:
        """Keep the events, durable when this returns; see the port."""
        if not events:
            return ()
        return await self._file.write(partial(_append, tuple(events)))

    async def ping(self) -> None:
        """Read once."""
        await self.history(Subject(""), limit=1)

    async def maintain(self) -> int:
        """Forget subjects that have been idle for too long; return the bytes on disk.

        Raises:
            StoreUnavailable: The file can not be written now.
        """
        await self._file.write(_forget_idle)
        return self._file.size_bytes()

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._file.close()


def _history(subject: Subject, limit: int, connection: sqlite3.Connection) -> StoredHistory:
    item_ids, occurred_us, blocked, changes_seq = connection.execute(sql.READ, (subject, limit)).fetchone()
    if item_ids == "[]" and blocked == "[]":
        return StoredHistory(changes_seq=changes_seq) if changes_seq else _EMPTY
    return StoredHistory(
        item_ids=tuple(reversed(json.loads(item_ids))),
        occurred_at=tuple([us / 1e6 for us in reversed(json.loads(occurred_us))]),
        blocked_item_ids=() if blocked == "[]" else tuple(json.loads(blocked)),
        changes_seq=changes_seq,
    )


def _append(events: Sequence[Event], turn: Turn) -> tuple[bool, ...]:
    return tuple([_add(event, turn) for event in events])


def _add(event: Event, turn: Turn) -> bool:
    row = turn.find_or_add(event.subject)
    added = turn.connection.execute(
        sql.ADD_EVENT,
        (
            row.id,
            round(event.occurred_at * 1e6),
            row.next_seq,
            event.event_id,
            event.item_id,
            event.type,
            event.value,
            event.recommendation_id,
        ),
    ).rowcount
    row.num_events += added
    row.next_seq += added
    return added == 1


def _forget_idle(turn: Turn) -> None:
    """Forget a bounded number of idle subjects; the next call goes on."""
    turn.settle()  # whoever this turn has touched is not idle
    before_day = turn.day - turn.limits.keep_idle_days
    idle = turn.connection.execute(sql.FIND_IDLE, (before_day,)).fetchall()
    for (subject_id,) in idle:
        forget_rows(turn.connection, subject_id)
    if idle or not turn.is_scrubbed:
        turn.scrub = True
