"""How long a request may still take. The clock is injected, so that tests need not wait."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from service.recommend.errors import DeadlineExceeded

Clock = Callable[[], float]
"""Seconds that only ever grow, such as `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on a clock, made once at the border and passed down through every stage."""

    at: float
    """In the clock's seconds."""
    clock: Clock = field(default=time.monotonic, repr=False, compare=False)

    @classmethod
    def after(cls, timeout_s: float, *, clock: Clock = time.monotonic) -> Self:
        """Return the deadline that lies `timeout_s` seconds from now."""
        return cls(clock() + timeout_s, clock)

    def remaining_s(self) -> float:
        """Return the seconds left; negative once the deadline has passed."""
        return self.at - self.clock()

    def check(self) -> None:
        """Return while there is time left.

        Raises:
            DeadlineExceeded: There is none.
        """
        if self.clock() >= self.at:
            raise DeadlineExceeded("the time given for this request is over")
