"""Answers by key, on Redis: a hash each, with a life of its own, and one list of all of them for the bound.

`i:` and a key has the fields `token` and, once the request was carried out, `answer`; `is` is the keys by when they
were claimed.
"""

import time
from collections.abc import Callable, Sequence
from typing import cast

from service.adapters.answer_json import read_answer, write_answer
from service.adapters.batcher import Batcher
from service.adapters.redis_client import Answer, Script, connect
from service.recommend.once import AnswerLimits, Claim, KeptAnswer

# KEYS: list of all, key. ARGV: token, id, life of a claim in ms, now in ms, life of an answer in ms, bound, prefix.
_CLAIM = """#!lua
local found = redis.call('HMGET', KEYS[2], 'token', 'answer')
if found[1] then
  return {found[2] or '', found[1]}
end
redis.call('HSET', KEYS[2], 'token', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[4], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[4] - ARGV[5])
local over = redis.call('ZCARD', KEYS[1]) - ARGV[6]
if over > 0 then
  local gone = redis.call('ZPOPMIN', KEYS[1], over)
  for i = 1, #gone, 2 do
    redis.call('UNLINK', ARGV[7] .. gone[i])
  end
end
return {'', ARGV[1]}
"""

# KEYS: list of all, key. ARGV: token, id, life of an answer in ms, now in ms, answer.
_KEEP = """#!lua
local token = redis.call('HGET', KEYS[2], 'token')
if token and token ~= ARGV[1] then
  return {0}
end
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'answer', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[1], 'NX', ARGV[4], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {1}
"""

# KEYS: list of all, key. ARGV: token, id.
_RELEASE = """#!lua flags=allow-oom
local found = redis.call('HMGET', KEYS[2], 'token', 'answer')
if found[1] == ARGV[1] and not found[2] then
  redis.call('UNLINK', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[2])
end
return {}
"""

# KEYS: list of all. ARGV: before when answers are too old, in ms.
_COUNT = """#!lua flags=no-writes
return {redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[1], '+inf')}
"""

_Call = tuple[Script, Sequence[str], Sequence[str | int]]


class RedisAnswers:
    """`AnswerStore` on one Redis server, over a connection of its own."""

    def __init__(
        self,
        url: str,
        *,
        limits: AnswerLimits | None = None,
        prefix: str = "prismrec:",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare the connection; the first call opens it.

        Raises:
            ValueError: The URL is none that redis-py reads.
        """
        self.limits = limits or AnswerLimits()
        self._all, self._prefix = f"{prefix}is", f"{prefix}i:"
        self._life_ms = round(self.limits.ttl_s * 1e3)
        self._clock = clock
        self._client = connect(url, timeout_s=self.limits.timeout_s)
        self._calls = Batcher[_Call, Answer](_run, max_batch=1, max_waiting=self.limits.max_waiting)
        self._claim, self._keep, self._release, self._count = (
            Script(self._client, text) for text in (_CLAIM, _KEEP, _RELEASE, _COUNT)
        )

    async def claim(self, key: str, *, token: str) -> Claim | KeptAnswer:
        """Claim a key; see the port."""
        lives = round(self.limits.claim_s * 1e3), self._now_ms(), self._life_ms
        arguments: list[str | int] = [token, key, *lives, self.limits.max_answers, self._prefix]
        answer, claimed_by = await self._calls((self._claim, self._keys(key), arguments))
        if answer:
            return read_answer(cast("str", answer))
        return Claim.OURS if claimed_by == token else Claim.TAKEN

    async def keep(self, key: str, answer: KeptAnswer, *, token: str) -> bool:
        """Keep an answer; see the port."""
        arguments: list[str | int] = [token, key, self._life_ms, self._now_ms(), write_answer(answer)]
        (kept,) = await self._calls((self._keep, self._keys(key), arguments))
        return kept == 1

    async def release(self, key: str, *, token: str) -> None:
        """Give a claim up; see the port."""
        await self._calls((self._release, self._keys(key), [token, key]))

    async def count(self) -> int:
        """Return how many keys are held; claims that ended by themselves are among them for a while."""
        (count,) = await self._calls((self._count, [self._all], [self._now_ms() - self._life_ms]))
        return cast("int", count)

    async def close(self) -> None:
        """Finish what was begun and close the connection; idempotent."""
        await self._calls.close()
        await self._client.aclose()

    def _keys(self, key: str) -> list[str]:
        return [self._all, f"{self._prefix}{key}"]

    def _now_ms(self) -> int:
        return round(self._clock() * 1e3)


async def _run(calls: Sequence[_Call]) -> list[Answer]:
    return [await script(keys, arguments) for script, keys, arguments in calls]
