"""A connection to an SQLite file that heals."""

import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from service.adapters import sqlite_schema as sql
from service.recommend.errors import StoreUnavailable


@dataclass(slots=True)
class HealingConnection:
    """A connection that heals: after an error, or when another file has taken the path, the next use opens it anew.

    An SQLite connection to a deleted file goes on working, and what it is given is lost with the last process that
    holds it: so every use looks whether the path still leads to the file that is open.
    """

    path: Path
    busy_timeout_s: float
    _connection: sqlite3.Connection | None = None
    _inode: tuple[int, int] = field(default=(0, 0))

    def __enter__(self) -> sqlite3.Connection:
        """Return the connection, opened anew where that is needed."""
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
        """Roll back what failed, and name the file."""
        if error is None:
            return
        self.close()  # rolls back what is open
        if isinstance(error, sqlite3.Error | OSError):
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Close it; the next use opens it anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                return  # a broken file can not even be closed in order; nothing of ours is open in it
