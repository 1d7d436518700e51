"""How Redis is talked to: a client that answers or fails in time, and scripts that the server is told once."""

from collections.abc import Sequence

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from service.recommend.errors import StoreUnavailable

Answer = Sequence[object]


def connect(url: str, *, timeout_s: float) -> "redis.Redis":
    """Make a client that answers or fails in time: no retries of its own, no pool that waits."""
    client: redis.Redis = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return client


class Script:
    """A script that the server is told once, and again after it has forgotten."""

    def __init__(self, client: "redis.Redis", text: str) -> None:
        self._client = client
        self._text = text
        self._sha = ""

    async def __call__(self, keys: Sequence[str], arguments: Sequence[str | int]) -> Answer:
        """Return what the script returns.

        Raises:
            StoreUnavailable: The server does not answer, or with an error.
        """
        try:
            if not self._sha:
                self._sha = await self._client.script_load(self._text)
            try:
                return await self._run(keys, arguments)
            except NoScriptError:
                await self._client.script_load(self._text)
                return await self._run(keys, arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(say(error)) from error

    async def _run(self, keys: Sequence[str], arguments: Sequence[str | int]) -> Answer:
        answer: Answer = await self._client.evalsha(self._sha, len(keys), *keys, *arguments)
        return answer


def say(error: Exception) -> str:
    """Name the error without the address: a URL may hold a password."""
    return f"{type(error).__name__}: {error}" if isinstance(error, RedisError) else type(error).__name__
