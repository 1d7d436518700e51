"""What was shown, in an SQLite file beside that of the events.

A file of its own, because nothing in it is worth a sync to disk or a wait of those who acknowledge events: a power cut
may lose the last moments of it, and the file may be deleted while the service is down.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from service.adapters.slate_json import MAX_CHARS, read_slate, write_slate
from service.adapters.sqlite_side_file import SideFile
from service.recommend.ports import ShownSlate, SlateLimits
from service.recommend.types import Subject

_TABLE = """
CREATE TABLE IF NOT EXISTS slates_1 (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    subject TEXT,
    expires_at REAL NOT NULL,
    slate TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS slates_1_by_expiry ON slates_1 (expires_at);
CREATE INDEX IF NOT EXISTS slates_1_by_subject ON slates_1 (subject) WHERE subject IS NOT NULL;
"""
_KEEP = "INSERT INTO slates_1 (id, subject, expires_at, slate) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_EXPIRE = "DELETE FROM slates_1 WHERE expires_at <= ?"
_TRIM = "DELETE FROM slates_1 WHERE number <= (SELECT max(number) FROM slates_1) - ?"
_FIND = "SELECT slate FROM slates_1 WHERE id = ? AND expires_at > ?"
_FORGET = "DELETE FROM slates_1 WHERE subject = ?"
_COUNT = "SELECT count(*) FROM slates_1 WHERE expires_at > ?"


class SqliteSlates:
    """`SlateStore` on one file; shared by all workers of a machine."""

    def __init__(
        self, path: Path, *, limits: SlateLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Open or make the file.

        Raises:
            StoreFileError: It can not be opened or made.
        """
        self.limits = limits or SlateLimits()
        self._clock = clock
        self._file = SideFile(
            path,
            tables=_TABLE,
            name="slates",
            sync="NORMAL",
            busy_s=self.limits.write_timeout_s,
            max_waiting=self.limits.max_waiting,
        )

    async def keep(self, slates: Sequence[ShownSlate]) -> int:
        """Keep slates; see the port."""
        return await self._file.write(partial(self._keep, slates), timeout_s=self.limits.write_timeout_s)

    async def find(self, recommendation_id: str) -> ShownSlate | None:
        """Return a slate; see the port."""
        key = (recommendation_id, self._clock())
        row = await self._file.read(
            lambda connection: connection.execute(_FIND, key).fetchone(), timeout_s=self.limits.read_timeout_s
        )
        return read_slate(row[0]) if isinstance(row, tuple) else None

    async def forget(self, subject: Subject) -> None:
        """Forget slates; see the port."""
        await self._file.write(
            lambda connection: connection.execute(_FORGET, (subject,)), timeout_s=self.limits.write_timeout_s
        )

    async def count(self) -> int:
        """Forget what is too old; return how many are left."""
        now = self._clock()
        timeout_s = self.limits.write_timeout_s
        await self._file.write(lambda connection: connection.execute(_EXPIRE, (now,)), timeout_s=timeout_s)
        row = await self._file.read(
            lambda connection: connection.execute(_COUNT, (now,)).fetchone(), timeout_s=timeout_s
        )
        return int(row[0])

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._file.close()

    def _keep(self, slates: Sequence[ShownSlate], connection: sqlite3.Connection) -> int:
        now = self._clock()
        until = now + self.limits.ttl_s
        rows = [(one.recommendation_id, one.subject, until, write_slate(one)) for one in slates]
        small = [row for row in rows if len(row[3]) <= MAX_CHARS]
        connection.executemany(_KEEP, small)
        connection.execute(_EXPIRE, (now,))
        connection.execute(_TRIM, (self.limits.max_slates,))
        return len(small)
