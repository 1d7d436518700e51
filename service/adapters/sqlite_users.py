"""What users may do with what is kept of them, on SQLite: list it, erase it, merge a session into it, block items."""

import sqlite3
from functools import partial

from service.adapters import sqlite_schema as sql
from service.adapters.sqlite_file import SqliteFile, Turn
from service.recommend.errors import BlocksFull
from service.recommend.ports import NEWEST, Block, EventPlace, KeptEvent, Merged
from service.recommend.types import Event, ItemId, Subject


class SqliteUsers:
    """`UserStore` on one file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def events(self, subject: Subject, *, before: EventPlace = NEWEST, limit: int) -> tuple[KeptEvent, ...]:
        """Return the latest events before a place, newest first; see the port."""
        return await self._file.read(partial(_events, subject, before, limit))

    async def erase(self, subject: Subject) -> None:
        """Forget a subject, durably when this returns; see the port."""
        await self._file.write(partial(_erase, subject))

    async def merge(self, source: Subject, *, into: Subject) -> Merged:
        """Make what one subject did another's; see the port."""
        return await self._file.write(partial(_merge, source, into))

    async def block(self, subject: Subject, item_id: ItemId, *, at: float) -> None:
        """Never show an item to a subject again; see the port."""
        await self._file.write(partial(_block, subject, item_id, round(at * 1e6)))

    async def unblock(self, subject: Subject, item_id: ItemId) -> None:
        """Take a block back; see the port."""
        await self._file.write(partial(_unblock, subject, item_id))

    async def blocks(self, subject: Subject) -> tuple[Block, ...]:
        """Return what is blocked, the latest first; see the port."""
        return await self._file.read(partial(_blocks, subject))


def _events(subject: Subject, before: EventPlace, limit: int, connection: sqlite3.Connection) -> tuple[KeptEvent, ...]:
    rows = connection.execute(sql.LIST_EVENTS, (subject, *before, limit)).fetchall()
    return tuple(
        KeptEvent(
            Event(event_id, subject, item_id, type_, occurred_us / 1e6, value, recommendation_id),
            EventPlace(occurred_us, seq),
        )
        for occurred_us, seq, event_id, item_id, type_, value, recommendation_id in rows
    )


def _erase(subject: Subject, turn: Turn) -> None:
    turn.forget(subject)
    turn.scrub = True


def _merge(source: Subject, into: Subject, turn: Turn) -> Merged:
    old = turn.find(source)
    if old is None or source == into:
        return Merged()
    connection = turn.connection
    new = turn.find(into)
    new_id = None if new is None else new.id
    (num_blocks,) = connection.execute(sql.COUNT_NEW_BLOCKS, (old.id, new_id)).fetchone()
    if num_blocks:
        (num_there,) = connection.execute(sql.COUNT_BLOCKS, (new_id,)).fetchone()
        _check_room(num_there + num_blocks, turn)
    new = turn.find_or_add(into)
    connection.execute(sql.MOVE_EVENTS, (old.id, new.id, new.next_seq))
    connection.execute(sql.MOVE_BLOCKS, (old.id, new.id))
    new.num_events += old.num_events
    new.next_seq += old.next_seq
    num_events = old.num_events
    turn.forget(source)
    return Merged(num_events, num_blocks)


def _block(subject: Subject, item_id: ItemId, at_us: int, turn: Turn) -> None:
    connection = turn.connection
    row = turn.find(subject)
    if row is not None:
        (is_blocked,) = connection.execute(sql.HAS_BLOCK, (row.id, item_id)).fetchone()
        if is_blocked:
            return
        (num_blocks,) = connection.execute(sql.COUNT_BLOCKS, (row.id,)).fetchone()
        _check_room(num_blocks + 1, turn)
    row = turn.find_or_add(subject)
    connection.execute(sql.ADD_BLOCK, (row.id, item_id, at_us))


def _check_room(num_blocks: int, turn: Turn) -> None:
    limit = turn.limits.max_blocks_per_subject
    if num_blocks > limit:
        raise BlocksFull(limit)


def _unblock(subject: Subject, item_id: ItemId, turn: Turn) -> None:
    row = turn.find(subject)
    if row is not None:
        turn.connection.execute(sql.REMOVE_BLOCK, (row.id, item_id))


def _blocks(subject: Subject, connection: sqlite3.Connection) -> tuple[Block, ...]:
    rows = connection.execute(sql.LIST_BLOCKS, (subject,)).fetchall()
    return tuple(Block(item_id, blocked_us / 1e6) for item_id, blocked_us in rows)
