"""The store on Redis: shared by any number of machines.

Durable only when Redis is: `appendonly yes` and `appendfsync always`. Without them an acknowledged event can be lost
with the server, and `durable` says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from service.adapters import redis_scripts as scripts
from service.adapters.batcher import Batcher
from service.recommend.errors import StoreUnavailable
from service.recommend.ports import StoredHistory
from service.recommend.types import Event, Subject

_EMPTY = StoredHistory()
_Read = tuple[Subject, int]
_Append = tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisLimits:
    """How much is kept, and how long a call may take."""

    max_events_per_subject: int = 500
    keep_idle_days: int = 365
    """A subject without a new event for so many days is forgotten."""
    dedupe_days: int = 7
    """An event id is known for so long, or until its event is trimmed."""
    read_timeout_s: float = 0.05
    write_timeout_s: float = 2.0
    max_waiting: int = 10_000
    prefix: str = "prismrec:"


class RedisStore:
    """`HistoryStore` and `EventSink` on one Redis server."""

    def __init__(self, url: str, *, limits: RedisLimits | None = None) -> None:
        """Prepare connections; the first call opens them.

        Raises:
            ValueError: The URL is none that redis-py reads.
        """
        self.limits = limits or RedisLimits()
        self.durable: bool | None = None
        """Whether the server writes to disk before it answers; None while it is not known."""
        self._reads = _client(url, timeout_s=self.limits.read_timeout_s)
        self._writes = _client(url, timeout_s=self.limits.write_timeout_s)
        self._reader = Batcher[_Read, StoredHistory](self._read, max_batch=256, max_waiting=self.limits.max_waiting)
        self._writer = Batcher[_Append, tuple[bool, ...]](
            self._append, max_batch=16, max_waiting=self.limits.max_waiting
        )
        self._read_script = _Script(self._reads, scripts.READ)
        self._append_script = _Script(self._writes, scripts.APPEND)

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        """Return the last `limit` events; see the port."""
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
            raise StoreUnavailable(_say(error)) from error
        return int(memory["used_memory"])

    async def close(self) -> None:
        """Finish what was begun and close the connections; idempotent."""
        await self._reader.close()
        await self._writer.close()
        await self._reads.aclose()
        await self._writes.aclose()

    async def _ask_durability(self) -> bool | None:
        try:
            settings = await self._writes.config_get("append*")
        except redis.ResponseError:
            return None  # a managed server that does not tell its configuration
        return settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"

    async def _read(self, jobs: Sequence[_Read]) -> list[StoredHistory]:
        keys = [self._subject_key(subject) for subject, _ in jobs]
        answers = await self._read_script(keys, [limit for _, limit in jobs])
        return [_history(answer) for answer in answers]

    async def _append(self, jobs: Sequence[_Append]) -> list[tuple[bool, ...]]:
        """Write all jobs with one script: all or none of them is kept."""
        limits, prefix = self.limits, self.limits.prefix
        keys = [f"{prefix}seq"]
        arguments: list[str | int] = [
            limits.max_events_per_subject,
            limits.keep_idle_days * 86_400_000,
            limits.dedupe_days * 86_400_000,
            f"{prefix}e:",
        ]
        for event in (event for job in jobs for event in job):
            keys += (self._subject_key(event.subject), f"{prefix}e:{event.event_id}")
            occurred_us = round(event.occurred_at * 1e6)
            rest = [event.event_id, event.type, event.value, event.recommendation_id]
            arguments += (occurred_us, f"{_bare_json([event.item_id, occurred_us])}\x1f{_bare_json(rest)}")
        added = iter(await self._append_script(keys, arguments))
        return [tuple([next(added) == 1 for _ in job]) for job in jobs]

    def _subject_key(self, subject: Subject) -> str:
        return f"{self.limits.prefix}h:{subject}"


class _Script:
    """A script that the server is told once, and again after it has forgotten."""

    def __init__(self, client: "redis.Redis", text: str) -> None:
        self._client = client
        self._text = text
        self._sha = ""

    async def __call__(self, keys: Sequence[str], arguments: Sequence[str | int]) -> list[str | int]:
        try:
            if not self._sha:
                self._sha = await self._client.script_load(self._text)
            try:
                return await self._run(keys, arguments)
            except NoScriptError:
                await self._client.script_load(self._text)
                return await self._run(keys, arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(_say(error)) from error

    async def _run(self, keys: Sequence[str], arguments: Sequence[str | int]) -> list[str | int]:
        answer: list[str | int] = await self._client.evalsha(self._sha, len(keys), *keys, *arguments)
        return answer


def _client(url: str, *, timeout_s: float) -> "redis.Redis":
    """Make a client that answers or fails in time: no retries of its own, no pool that waits."""
    client: redis.Redis = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return client


def _history(answer: str | int) -> StoredHistory:
    assert isinstance(answer, str)
    if answer == "[]":
        return _EMPTY
    pairs = json.loads(answer)
    return StoredHistory(item_ids=tuple(pairs[::2]), occurred_at=tuple([us / 1e6 for us in pairs[1::2]]))


def _bare_json(values: Sequence[object]) -> str:
    """Return a list in JSON without its brackets."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))[1:-1]


def _say(error: Exception) -> str:
    """Name the error without the address: a URL may hold a password."""
    return f"{type(error).__name__}: {error}" if isinstance(error, RedisError) else type(error).__name__
