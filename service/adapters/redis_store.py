"""The store on Redis: shared by any number of machines.

Durable only when Redis is: `appendonly yes` and `appendfsync always`. Without them an acknowledged event can be lost
with the server, and `durable` says so.
"""

import json
from collections.abc import Sequence
from itertools import chain
from typing import cast

import redis.asyncio as redis
from redis.exceptions import RedisError

from service.adapters import redis_scripts as scripts
from service.adapters.batcher import Batcher
from service.adapters.redis_client import Script, connect, say
from service.adapters.redis_items import changes_seq_key
from service.adapters.redis_keys import EventKeys, event_id_ms, subject_ms
from service.adapters.redis_users import RedisUsers
from service.recommend.errors import StoreUnavailable
from service.recommend.ports import EventLimits, StoredHistory
from service.recommend.types import Event, Subject

_EMPTY = StoredHistory()
_Read = tuple[Subject, int]
_Append = tuple[Event, ...]


class RedisStore:
    """`HistoryStore` and `EventSink` on one Redis server; `users` is the `UserStore` on the same."""

    def __init__(self, url: str, *, limits: EventLimits | None = None) -> None:
        """Prepare connections; the first call opens them.

        Raises:
            ValueError: The URL is none that redis-py reads.
        """
        self.limits = limits or EventLimits()
        self._keys = EventKeys()
        self.durable: bool | None = None
        """Whether the server writes to disk before it answers; None while it is not known."""
        self._reads = connect(url, timeout_s=self.limits.read_timeout_s)
        self._writes = connect(url, timeout_s=self.limits.write_timeout_s)
        self._reader = Batcher[_Read, StoredHistory](self._read, max_batch=256, max_waiting=self.limits.max_waiting)
        self._writer = Batcher[_Append, tuple[bool, ...]](
            self._append, max_batch=16, max_waiting=self.limits.max_waiting
        )
        self._read_script = Script(self._reads, scripts.READ)
        self._append_script = Script(self._writes, scripts.APPEND)
        self.users = RedisUsers(reads=self._reads, writes=self._writes, keys=self._keys, limits=self.limits)

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        """Return the last `limit` events and all blocks; see the port."""
        return await self._reader((subject, limit)) if limit > 0 else _EMPTY

    async def append(self, events: Sequence[Event]) -> tuple[bool, ...]:
        """Keep the events; see the port."""
        return await self._writer(tuple(events)) if events else ()

    async def ping(self) -> None:
        """Read once."""
        await self._reader((Subject(""), 1))

    async def maintain(self) -> int:
        """Find out whether the server is durable; return the bytes that it holds in memory.

        Raises:
            StoreUnavailable: It does not answer.
        """
        try:
            self.durable = await self._ask_durability()
            memory = await self._writes.info("memory")
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(say(error)) from error
        return int(memory["used_memory"])

    async def close(self) -> None:
        """Finish what was begun and close the connections; idempotent."""
        await self._reader.close()
        await self._writer.close()
        await self.users.close()
        await self._reads.aclose()
        await self._writes.aclose()

    async def _ask_durability(self) -> bool | None:
        try:
            settings = await self._writes.config_get("append*")
        except redis.ResponseError:
            return None  # a managed server that does not tell its configuration
        return settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"

    async def _read(self, jobs: Sequence[_Read]) -> list[StoredHistory]:
        history_key, blocks_key = self._keys.history_key, self._keys.blocks_key
        keys = [changes_seq_key(self._keys.prefix)]
        keys += chain.from_iterable([(history_key(subject), blocks_key(subject)) for subject, _ in jobs])
        *answers, changes_seq = await self._read_script(keys, [limit for _, limit in jobs])
        seq = int(cast("str", changes_seq))
        return [_history(answer, seq) for answer in answers]

    async def _append(self, jobs: Sequence[_Append]) -> list[tuple[bool, ...]]:
        """Write all jobs with one script: all or none of them is kept."""
        names, id_prefix = self._keys, self._keys.event_id_prefix
        keys = [names.seq_key]
        arguments: list[str | int] = [
            self.limits.max_events_per_subject,
            subject_ms(self.limits),
            event_id_ms(self.limits),
            id_prefix,
        ]
        for event in (event for job in jobs for event in job):
            subject = event.subject
            keys += (names.history_key(subject), names.blocks_key(subject), id_prefix + event.event_id)
            occurred_us = round(event.occurred_at * 1e6)
            rest = [event.event_id, event.type, event.value, event.recommendation_id]
            arguments += (occurred_us, f"{_bare_json([event.item_id, occurred_us])}\x1f{_bare_json(rest)}")
        added = iter(await self._append_script(keys, arguments))
        return [tuple([next(added) == 1 for _ in job]) for job in jobs]


def _history(answer: object, changes_seq: int) -> StoredHistory:
    if answer == "[]":
        return StoredHistory(changes_seq=changes_seq) if changes_seq else _EMPTY
    if isinstance(answer, str):
        events, blocked_item_ids = answer, ()
    else:
        events, blocked = cast("Sequence[str]", answer)
        blocked_item_ids = tuple(json.loads(blocked))
    pairs = json.loads(events)
    return StoredHistory(
        tuple(pairs[::2]), tuple([us / 1e6 for us in pairs[1::2]]), blocked_item_ids, changes_seq=changes_seq
    )


def _bare_json(values: Sequence[object]) -> str:
    """Return a list in JSON without its brackets."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))[1:-1]
