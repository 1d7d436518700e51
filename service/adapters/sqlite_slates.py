"""What was shown, in an SQLite file beside that of the events.

A file of its own, because nothing in it is worth a sync to disk or a wait of those who acknowledge events: a power cut
may lose the last moments of it, and the file may be deleted while the service is down.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from service.adapters.batch_thread import BatchThread
from service.adapters.slate_json import MAX_CHARS, read_slate, write_slate
from service.adapters.sqlite_schema import StoreFileError
from service.recommend.errors import StoreUnavailable
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

_Work = Callable[[sqlite3.Connection], object]


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
        self._path = path
        self._clock = clock
        self._reads = self._open()
        self._writes = self._open()
        self._reader = BatchThread[_Work, object](
            partial(_run, self._reads), name="slates-reader", max_batch=64, max_waiting=self.limits.max_waiting
        )
        self._writer = BatchThread[_Work, object](
            partial(_run, self._writes), name="slates-writer", max_batch=64, max_waiting=self.limits.max_waiting
        )

    async def keep(self, slates: Sequence[ShownSlate]) -> int:
        """Keep slates; see the port."""
        kept = await self._writer(partial(self._keep, slates), timeout_s=self.limits.write_timeout_s)
        assert isinstance(kept, int)
        return kept

    async def find(self, recommendation_id: str) -> ShownSlate | None:
        """Return a slate; see the port."""
        key = (recommendation_id, self._clock())
        row = await self._reader(
            lambda connection: connection.execute(_FIND, key).fetchone(), timeout_s=self.limits.read_timeout_s
        )
        return read_slate(row[0]) if isinstance(row, tuple) else None

    async def forget(self, subject: Subject) -> None:
        """Forget slates; see the port."""
        await self._writer(
            lambda connection: _committed(connection, [(_FORGET, (subject,))]), timeout_s=self.limits.write_timeout_s
        )

    async def count(self) -> int:
        """Forget what is too old; return how many are left."""
        now = self._clock()
        await self._writer(
            lambda connection: _committed(connection, [(_EXPIRE, (now,))]), timeout_s=self.limits.write_timeout_s
        )
        row = await self._reader(
            lambda connection: connection.execute(_COUNT, (now,)).fetchone(), timeout_s=self.limits.write_timeout_s
        )
        assert isinstance(row, tuple)
        return int(row[0])

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._reader.close()
        await self._writer.close()
        self._reads.close()
        self._writes.close()

    def _keep(self, slates: Sequence[ShownSlate], connection: sqlite3.Connection) -> int:
        now = self._clock()
        until = now + self.limits.ttl_s
        rows = [(one.recommendation_id, one.subject, until, write_slate(one)) for one in slates]
        small = [row for row in rows if len(row[3]) <= MAX_CHARS]
        _committed(
            connection,
            [*[(_KEEP, row) for row in small], (_EXPIRE, (now,)), (_TRIM, (self.limits.max_slates,))],
        )
        return len(small)

    def _open(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = sqlite3.connect(
                self._path, timeout=self.limits.write_timeout_s, isolation_level=None, check_same_thread=False
            )
            # secure_delete: what an erased user was shown does not stay in free pages
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}")
            connection.executescript(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise StoreFileError(f"{self._path}: {error}") from error
        return connection


def _run(connection: sqlite3.Connection, works: Sequence[_Work]) -> list[object]:
    results: list[object] = []
    for work in works:
        try:
            results.append(work(connection))
        except sqlite3.Error as error:
            results.append(StoreUnavailable(str(error)))
        except Exception as error:  # noqa: BLE001 - told to the caller whose work it is
            results.append(error)
    return results


def _committed(connection: sqlite3.Connection, statements: Sequence[tuple[str, tuple[object, ...]]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, values in statements:
            connection.execute(statement, values)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
