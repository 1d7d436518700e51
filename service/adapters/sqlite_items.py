"""Changes of the catalogue, in the SQLite file that keeps the events, but not by the threads of these.

A bulk of items, with their vectors, must hold up neither a history nor an event.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from service.adapters import sqlite_schema as sql
from service.adapters.batch_thread import BatchThread
from service.adapters.sqlite_connection import HealingConnection
from service.recommend.errors import ChangesFull
from service.recommend.items import ItemChange, ItemRecord, ItemRecords
from service.recommend.types import ItemId

_Work = Callable[[sqlite3.Connection], object]


class SqliteItems:
    """`ItemChanges` on one file."""

    def __init__(
        self, path: Path, *, max_items: int, read_timeout_s: float, write_timeout_s: float, max_waiting: int = 1_000
    ) -> None:
        """Open or make the file.

        Raises:
            StoreFileError: It is not a database of ours, or can not be opened or made.
        """
        sql.prepare(path, busy_timeout_s=write_timeout_s)
        self._max_items = max_items
        self._read_timeout_s, self._write_timeout_s = read_timeout_s, write_timeout_s
        self._reads = HealingConnection(path, busy_timeout_s=read_timeout_s)
        self._writes = HealingConnection(path, busy_timeout_s=write_timeout_s)
        self._reader = BatchThread[_Work, Any](
            self._read, name="sqlite-items-reader", max_batch=256, max_waiting=max_waiting
        )
        self._writer = BatchThread[_Work, Any](
            self._write, name="sqlite-items-writer", max_batch=16, max_waiting=max_waiting
        )

    async def change(self, changes: Sequence[ItemChange]) -> tuple[int | None, ...]:
        """Keep the changes, durable when this returns; see the port."""
        if not changes:
            return ()
        work = tuple(changes)
        done = await self._writer(lambda connection: self._change(connection, work), timeout_s=self._write_timeout_s)
        return cast("tuple[int | None, ...]", done)

    async def changed_since(self, seq: int, *, limit: int) -> ItemRecords:
        """Return the records after `seq`; see the port."""
        found = await self._reader(lambda connection: _since(connection, seq, limit), timeout_s=self._write_timeout_s)
        return cast("ItemRecords", found)

    async def changes_seq(self) -> int:
        """Return the number of the latest change."""
        return cast("int", await self._reader(_last_seq, timeout_s=self._read_timeout_s))

    async def trim_changes(self, *, up_to: int) -> int:
        """Forget what is folded in; see the port."""
        return cast(
            "int", await self._writer(lambda connection: _trim(connection, up_to), timeout_s=self._write_timeout_s)
        )

    async def close(self) -> None:
        """Finish what was begun and close the file; idempotent."""
        await self._reader.close()
        await self._writer.close()
        self._reads.close()
        self._writes.close()

    # --- in the reader's thread ---

    def _read(self, jobs: Sequence[_Work]) -> list[object]:
        with self._reads as connection:
            return [work(connection) for work in jobs]

    # --- in the writer's thread ---

    def _write(self, jobs: Sequence[_Work]) -> list[object]:
        """Commit all jobs together; one that is refused, or fails, leaves the others as they are."""
        results: list[object] = []
        with self._writes as connection:
            connection.execute("BEGIN IMMEDIATE")
            for work in jobs:
                connection.execute("SAVEPOINT job")
                try:
                    results.append(work(connection))
                except (ChangesFull, ValueError) as error:
                    connection.execute("ROLLBACK TO job")
                    results.append(error)
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
        return results

    def _change(self, connection: sqlite3.Connection, changes: Sequence[ItemChange]) -> tuple[int | None, ...]:
        last_seq = _last_seq(connection)
        seqs: list[int | None] = []
        for change in changes:
            kind, fields = change.kind, dict(change.fields)
            found = connection.execute(sql.FIND_ITEM, (change.item_id,)).fetchone()
            if found is not None:
                old_seq, old_kind, old_fields = found
                if kind == "patch":
                    if old_kind == "delete":
                        seqs.append(None)
                        continue
                    kind, fields = old_kind, json.loads(old_fields) | fields
                connection.execute(sql.FORGET_ITEM, (old_seq,))
            last_seq += 1
            seqs.append(last_seq)
            text = json.dumps(fields, ensure_ascii=False)
            connection.execute(sql.ADD_ITEM, (last_seq, change.item_id, kind, text))
        (num_items,) = connection.execute(sql.COUNT_ITEMS).fetchone()
        if num_items > self._max_items:
            raise ChangesFull(self._max_items)
        connection.execute(sql.NOTE_CHANGES, (last_seq,))
        return tuple(seqs)


def _last_seq(connection: sqlite3.Connection) -> int:
    last_seq: int = connection.execute(sql.ITEM_LOG).fetchone()[0]
    return last_seq


def _since(connection: sqlite3.Connection, seq: int, limit: int) -> ItemRecords:
    connection.execute("BEGIN")  # one moment for all three
    try:
        rows = connection.execute(sql.CHANGED_SINCE, (seq, limit)).fetchall()
        last_seq, trimmed_to = connection.execute(sql.ITEM_LOG).fetchone()
        (num_records,) = connection.execute(sql.COUNT_ITEMS).fetchone()
    finally:
        connection.execute("COMMIT")
    records = tuple(
        ItemRecord(ItemId(item_id), record_seq, kind, json.loads(fields)) for record_seq, item_id, kind, fields in rows
    )
    return ItemRecords(records, last_seq, trimmed_to, num_records)


def _trim(connection: sqlite3.Connection, up_to: int) -> int:
    if up_to > (last_seq := _last_seq(connection)):
        raise ValueError(f"up_to: {up_to} is after the latest change, {last_seq}")
    for seq, fields in connection.execute(sql.FIND_FOLDED, (up_to,)).fetchall():
        if json.loads(fields).get("available") == "false":
            connection.execute(sql.STRIP_ITEM, (json.dumps({"available": "false"}), seq))
        else:
            connection.execute(sql.FORGET_ITEM, (seq,))
    connection.execute(sql.NOTE_TRIMMED, (up_to,))
    (left,) = connection.execute(sql.COUNT_ITEMS).fetchone()
    return int(left)
