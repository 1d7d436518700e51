"""An SQLite file beside that of the events: one thread reads, one writes, and nobody who acknowledges events waits."""

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from service.adapters.batch_thread import BatchThread
from service.adapters.sqlite_schema import StoreFileError
from service.recommend.errors import StoreUnavailable

Y = TypeVar("Y")
_Work = Callable[[sqlite3.Connection], object]


def side_path(events: Path, *, name: str) -> Path:
    """Return where a file beside that of the events lies."""
    return events.with_name(f"{events.stem}-{name}{events.suffix}")


class SideFile:
    """Reads and writes one file, by pieces of work that get a connection; shared by all workers of a machine."""

    def __init__(
        self, path: Path, *, tables: str, name: str, sync: Literal["NORMAL", "FULL"], busy_s: float, max_waiting: int
    ) -> None:
        """Open or make the file.

        Args:
            path: Where it is.
            tables: SQL that makes its tables where they are not there.
            name: Of the threads.
            sync: FULL: what is written outlives a power cut.
            busy_s: How long to wait for another process.
            max_waiting: Pieces of work that may wait for a thread.

        Raises:
            StoreFileError: It can not be opened or made.
        """
        self._reads, self._writes = (_open(path, tables=tables, sync=sync, busy_s=busy_s) for _ in range(2))
        self._reader = BatchThread[_Work, Any](
            partial(_run, self._reads), name=f"{name}-reader", max_batch=64, max_waiting=max_waiting
        )
        self._writer = BatchThread[_Work, Any](
            partial(_run, self._writes), name=f"{name}-writer", max_batch=64, max_waiting=max_waiting
        )

    async def read(self, work: Callable[[sqlite3.Connection], Y], *, timeout_s: float) -> Y:
        """Return what the work returns.

        Raises:
            StoreUnavailable: The file does not answer in time, or with an error.
        """
        return cast("Y", await self._reader(work, timeout_s=timeout_s))

    async def write(self, work: Callable[[sqlite3.Connection], Y], *, timeout_s: float) -> Y:
        """Return what the work returns; all that it writes is kept, or nothing.

        Raises:
            StoreUnavailable: As `read`; the work may be done all the same when it was only late.
        """
        return cast("Y", await self._writer(partial(_whole, work), timeout_s=timeout_s))

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._reader.close()
        await self._writer.close()
        self._reads.close()
        self._writes.close()


def _open(path: Path, *, tables: str, sync: str, busy_s: float) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
        # secure_delete: what is deleted does not stay in free pages
        for pragma in ("journal_mode = WAL", f"synchronous = {sync}", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(tables)
    except (sqlite3.Error, OSError) as error:
        raise StoreFileError(f"{path}: {error}") from error
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


def _whole(work: _Work, connection: sqlite3.Connection) -> object:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return result
