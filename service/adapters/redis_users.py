"""What users may do with what is kept of them, on Redis: list it, erase it, merge a session into it, block items."""

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from service.adapters import redis_scripts as scripts
from service.adapters.batcher import Batcher
from service.adapters.redis_client import Answer, Script
from service.adapters.redis_keys import EventKeys, subject_ms
from service.recommend.errors import BlocksFull
from service.recommend.ports import NEWEST, Block, EventLimits, EventPlace, KeptEvent, Merged
from service.recommend.types import Event, ItemId, Subject

if TYPE_CHECKING:
    import redis.asyncio as redis

_Call = tuple[Script, Sequence[str], Sequence[str | int]]


class RedisUsers:
    """`UserStore` on one Redis server."""

    def __init__(self, *, reads: "redis.Redis", writes: "redis.Redis", keys: EventKeys, limits: EventLimits) -> None:
        self._keys = keys
        self._limits = limits
        reader = Batcher[_Call, Answer](_run, max_batch=1, max_waiting=limits.max_waiting)
        writer = Batcher[_Call, Answer](_run, max_batch=1, max_waiting=limits.max_waiting)
        self._batchers = (reader, writer)
        self._list_events = partial(_call, reader, Script(reads, scripts.EVENTS))
        self._list_blocks = partial(_call, reader, Script(reads, scripts.BLOCKS))
        self._erase = partial(_call, writer, Script(writes, scripts.ERASE))
        self._merge = partial(_call, writer, Script(writes, scripts.MERGE))
        self._block = partial(_call, writer, Script(writes, scripts.BLOCK))
        self._unblock = partial(_call, writer, Script(writes, scripts.UNBLOCK))

    async def events(self, subject: Subject, *, before: EventPlace = NEWEST, limit: int) -> tuple[KeptEvent, ...]:
        """Return the latest events before a place, newest first; see the port."""
        keys = [self._keys.history_key(subject)]
        members = await self._list_events(keys, [before.occurred_us, f"{before.seq:016x}", limit])
        return tuple([_event(subject, cast("str", member)) for member in members])

    async def erase(self, subject: Subject) -> None:
        """Forget a subject; see the port."""
        await self._erase(self._keys.subject_keys(subject), [self._keys.event_id_prefix])

    async def merge(self, source: Subject, *, into: Subject) -> Merged:
        """Make what one subject did another's; see the port."""
        keys, limits = self._keys, self._limits
        if source == into:
            return Merged()
        moved = await self._merge(
            [keys.seq_key, keys.history_key(into), keys.blocks_key(into), *keys.subject_keys(source)],
            [limits.max_events_per_subject, limits.max_blocks_per_subject, subject_ms(limits), keys.event_id_prefix],
        )
        if not moved:
            raise BlocksFull(limits.max_blocks_per_subject)
        return Merged(*cast("Sequence[int]", moved))

    async def block(self, subject: Subject, item_id: ItemId, *, at: float) -> None:
        """Never show an item to a subject again; see the port."""
        limits = self._limits
        done = await self._block(
            [self._keys.history_key(subject), self._keys.blocks_key(subject)],
            [item_id, round(at * 1e6), limits.max_blocks_per_subject, subject_ms(limits)],
        )
        if not done:
            raise BlocksFull(limits.max_blocks_per_subject)

    async def unblock(self, subject: Subject, item_id: ItemId) -> None:
        """Take a block back; see the port."""
        await self._unblock([self._keys.blocks_key(subject)], [item_id])

    async def blocks(self, subject: Subject) -> tuple[Block, ...]:
        """Return what is blocked, the latest first; see the port."""
        found = cast("Sequence[str]", await self._list_blocks([self._keys.blocks_key(subject)], []))
        return tuple([Block(ItemId(item), int(us) / 1e6) for item, us in zip(found[::2], found[1::2], strict=True)])

    async def close(self) -> None:
        """Finish what was begun; idempotent."""
        for batcher in self._batchers:
            await batcher.close()


async def _call(
    batcher: Batcher[_Call, Answer], script: Script, keys: Sequence[str], arguments: Sequence[str | int]
) -> Answer:
    """Run a script by the batcher's task, so that a caller who gives up does not cut off the server's reply."""
    return await batcher((script, keys, arguments))


async def _run(calls: Sequence[_Call]) -> list[Answer]:
    return [await script(keys, arguments) for script, keys, arguments in calls]


def _event(subject: Subject, member: str) -> KeptEvent:
    item_id, occurred_us, event_id, type_, value, recommendation_id = json.loads(
        "[" + member[16:].replace("\x1f", ",") + "]"
    )
    return KeptEvent(
        Event(event_id, subject, item_id, type_, occurred_us / 1e6, value, recommendation_id),
        EventPlace(occurred_us, int(member[:16], 16)),
    )
