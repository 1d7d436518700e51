"""Answers by key, in an SQLite file beside that of the events, synced to disk."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from service.adapters.answer_json import read_answer, write_answer
from service.adapters.sqlite_side_file import SideFile
from service.recommend.once import AnswerLimits, Claim, KeptAnswer

_TABLE = """
CREATE TABLE IF NOT EXISTS answers_1 (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    token TEXT NOT NULL,
    expires_at REAL NOT NULL,
    answer TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS answers_1_by_expiry ON answers_1 (expires_at);
"""
_EXPIRE = "DELETE FROM answers_1 WHERE expires_at <= ?"
_TRIM = "DELETE FROM answers_1 WHERE number <= (SELECT max(number) FROM answers_1) - ?"
_FIND = "SELECT token, answer FROM answers_1 WHERE key = ?"
_CLAIM = "INSERT INTO answers_1 (key, token, expires_at) VALUES (?, ?, ?)"
_FULFIL = "UPDATE answers_1 SET expires_at = ?, answer = ? WHERE key = ? AND token = ?"
# A claim that has ended, and that nobody has taken since, is as good as one that has not.
_KEEP = "INSERT INTO answers_1 (expires_at, answer, key, token) VALUES (?, ?, ?, ?)"
_RELEASE = "DELETE FROM answers_1 WHERE key = ? AND token = ? AND answer IS NULL"
_COUNT = "SELECT count(*) FROM answers_1"


class SqliteAnswers:
    """`AnswerStore` on one file; shared by all workers of a machine."""

    def __init__(
        self, path: Path, *, limits: AnswerLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Open or make the file.

        Raises:
            StoreFileError: It can not be opened or made.
        """
        self.limits = limits or AnswerLimits()
        self._clock = clock
        self._file = SideFile(
            path,
            tables=_TABLE,
            name="answers",
            sync="FULL",
            busy_s=self.limits.timeout_s,
            max_waiting=self.limits.max_waiting,
        )

    async def claim(self, key: str, *, token: str) -> Claim | KeptAnswer:
        """Claim a key; see the port."""

        def work(connection: sqlite3.Connection) -> Claim | KeptAnswer:
            now = self._clock()
            connection.execute(_EXPIRE, (now,))
            row = connection.execute(_FIND, (key,)).fetchone()
            if row is None:
                connection.execute(_CLAIM, (key, token, now + self.limits.claim_s))
                connection.execute(_TRIM, (self.limits.max_answers,))
                return Claim.OURS
            claimed_by, answer = row
            if answer is not None:
                return read_answer(answer)
            return Claim.OURS if claimed_by == token else Claim.TAKEN

        return await self._file.write(work, timeout_s=self.limits.timeout_s)

    async def keep(self, key: str, answer: KeptAnswer, *, token: str) -> bool:
        """Keep an answer; see the port."""

        def work(connection: sqlite3.Connection) -> bool:
            row = (self._clock() + self.limits.ttl_s, write_answer(answer), key, token)
            if connection.execute(_FULFIL, row).rowcount:
                return True
            if connection.execute(_FIND, (key,)).fetchone() is not None:
                return False
            connection.execute(_KEEP, row)
            return True

        return await self._file.write(work, timeout_s=self.limits.timeout_s)

    async def release(self, key: str, *, token: str) -> None:
        """Give a claim up; see the port."""
        await self._file.write(
            lambda connection: connection.execute(_RELEASE, (key, token)), timeout_s=self.limits.timeout_s
        )

    async def count(self) -> int:
        """Forget what is too old; return how many are left."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_EXPIRE, (self._clock(),))
            (count,) = connection.execute(_COUNT).fetchone()
            return int(count)

        return await self._file.write(work, timeout_s=self.limits.timeout_s)

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._file.close()
