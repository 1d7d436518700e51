"""What was shown, on Redis: a key a slate, with a life of its own, and two kinds of lists of keys.

`r:` and an id is the slate; `rs` is the ids of all by the end of their life, for the bound; `rs:` and a subject the ids
of what was shown to it, so that erasing it finds them.

Nothing of it is written to the append-only file, as a server that syncs each write would make all others wait for it:
what was shown is gone when the server is started again. Forgetting is written, as a rewritten file may hold some.
"""

import time
from collections.abc import Callable, Sequence
from typing import cast

from service.adapters.batcher import Batcher
from service.adapters.redis_client import Answer, Script, connect
from service.adapters.slate_json import MAX_CHARS, read_slate, write_slate
from service.recommend.ports import ShownSlate, SlateLimits
from service.recommend.types import Subject

# KEYS: list of all. ARGV: life in ms, bound, now in ms, prefix, then (id, subject or '', slate) of each.
_KEEP = """#!lua
local life_ms, most, now, prefix = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local all, ends = KEYS[1], tonumber(ARGV[3]) + tonumber(ARGV[1])
redis.set_repl(redis.REPL_REPLICA)
local new = {}
for i = 5, #ARGV, 3 do
  local id, subject = ARGV[i], ARGV[i + 1]
  redis.call('SET', prefix .. 'r:' .. id, ARGV[i + 2], 'PX', life_ms)
  new[#new + 1] = ends
  new[#new + 1] = id
  if subject ~= '' then
    local own = prefix .. 'rs:' .. subject
    redis.call('ZREMRANGEBYSCORE', own, '-inf', now)
    redis.call('ZADD', own, ends, id)
    redis.call('PEXPIRE', own, life_ms)
  end
end
if #new > 0 then
  redis.call('ZADD', all, unpack(new))
end
redis.call('ZREMRANGEBYSCORE', all, '-inf', now)
local over = redis.call('ZCARD', all) - most
if over > 0 then
  local gone = redis.call('ZPOPMIN', all, over)
  for j = 1, #gone, 2 do
    redis.call('UNLINK', prefix .. 'r:' .. gone[j])
  end
end
redis.call('PEXPIRE', all, life_ms)
return {}
"""

# KEYS: slate.
_FIND = """#!lua flags=no-writes
return {redis.call('GET', KEYS[1])}
"""

# KEYS: list of all, list of the subject. ARGV: prefix.
_FORGET = """#!lua
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  redis.call('UNLINK', ARGV[1] .. 'r:' .. id)
  redis.call('ZREM', KEYS[1], id)
end
redis.call('UNLINK', KEYS[2])
return {}
"""

# KEYS: list of all. ARGV: now in ms.
_COUNT = """#!lua flags=no-writes
return {redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[1], '+inf')}
"""

_Call = tuple[Script, Sequence[str], Sequence[str | int]]


class RedisSlates:
    """`SlateStore` on one Redis server, over connections of its own: events never wait for a slate."""

    def __init__(
        self,
        url: str,
        *,
        limits: SlateLimits | None = None,
        prefix: str = "prismrec:",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare connections; the first call opens them.

        Raises:
            ValueError: The URL is none that redis-py reads.
        """
        self.limits = limits or SlateLimits()
        self._prefix = prefix
        self._clock = clock
        self._reads = connect(url, timeout_s=self.limits.read_timeout_s)
        self._writes = connect(url, timeout_s=self.limits.write_timeout_s)
        self._reader = Batcher[_Call, Answer](_run, max_batch=1, max_waiting=self.limits.max_waiting)
        self._writer = Batcher[_Call, Answer](_run, max_batch=1, max_waiting=self.limits.max_waiting)
        self._keep = Script(self._writes, _KEEP)
        self._find = Script(self._reads, _FIND)
        self._forget = Script(self._writes, _FORGET)
        self._count = Script(self._reads, _COUNT)

    async def keep(self, slates: Sequence[ShownSlate]) -> int:
        """Keep slates; see the port."""
        arguments: list[str | int] = [
            round(self.limits.ttl_s * 1e3),
            self.limits.max_slates,
            self._now_ms(),
            self._prefix,
        ]
        num_kept = 0
        for one in slates:
            text = write_slate(one)
            if len(text) <= MAX_CHARS:
                arguments += (one.recommendation_id, one.subject or "", text)
                num_kept += 1
        await self._writer((self._keep, [f"{self._prefix}rs"], arguments))
        return num_kept

    async def find(self, recommendation_id: str) -> ShownSlate | None:
        """Return a slate; see the port."""
        found = await self._reader((self._find, [f"{self._prefix}r:{recommendation_id}"], []))
        return read_slate(cast("str", found[0])) if found and found[0] else None

    async def forget(self, subject: Subject) -> None:
        """Forget slates; see the port."""
        keys = [f"{self._prefix}rs", f"{self._prefix}rs:{subject}"]
        await self._writer((self._forget, keys, [self._prefix]))

    async def count(self) -> int:
        """Return how many are kept."""
        (count,) = await self._reader((self._count, [f"{self._prefix}rs"], [self._now_ms()]))
        return cast("int", count)

    async def close(self) -> None:
        """Finish what was begun and close the connections; idempotent."""
        await self._reader.close()
        await self._writer.close()
        await self._reads.aclose()
        await self._writes.aclose()

    def _now_ms(self) -> int:
        return round(self._clock() * 1e3)


async def _run(calls: Sequence[_Call]) -> list[Answer]:
    return [await script(keys, arguments) for script, keys, arguments in calls]
