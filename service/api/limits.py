"""Rate limits of keys: a bucket of `burst` requests that fills again by `rate_per_s`.

Each worker has its own buckets and its share of both numbers, so that no request waits for another process. The
supervisor spreads connections evenly; a client that keeps a single one open gets the share of one worker.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.api import problems
from service.api.problems import ApiError


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a key may ask for, on the whole machine."""

    rate_per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a key's limit."""

    limit: int
    remaining: int
    reset_s: int
    """Until the bucket is full again."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that say so."""
        return [
            (b"ratelimit-limit", str(self.limit).encode()),
            (b"ratelimit-remaining", str(self.remaining).encode()),
            (b"ratelimit-reset", str(self.reset_s).encode()),
        ]


class RateLimiter:
    """The buckets of one worker. Used on the event loop; a look costs the same however many keys there are."""

    def __init__(self, *, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with full buckets.

        Args:
            workers: Among how many processes each limit is shared.
            clock: Seconds.
        """
        self._workers = workers
        self._clock = clock
        self._buckets: dict[bytes, tuple[float, float]] = {}
        """By key: what was left, and when."""

    def take(self, digest: bytes, limit: RateLimit) -> Allowance:
        """Count one request of a key and return what is left.

        Raises:
            ApiError: `rate-limited`, with `Retry-After`.
        """
        rate = limit.rate_per_s / self._workers
        burst = max(limit.burst / self._workers, 1.0)
        now = self._clock()
        left, since = self._buckets.get(digest, (burst, now))
        left = min(burst, left + (now - since) * rate)
        taken = left >= 1.0
        left -= taken
        self._buckets[digest] = (left, now)
        allowance = Allowance(int(burst), int(left), math.ceil((burst - left) / rate))
        if not taken:
            wait_s = max(math.ceil((1.0 - left) / rate), 1)
            raise ApiError(
                problems.RATE_LIMITED,
                f"The key may send {limit.rate_per_s:g} requests a second; try again in {wait_s} s.",
                headers=[(b"retry-after", str(wait_s).encode()), *allowance.headers()],
            )
        return allowance
