"""How a version is loaded for a reloader: in a thread, let go of if nobody waits for it any more.

And when it is tried again where that failed: what is wrong for good, once for each writing of what names the version;
what may pass by itself (no memory, a disk that does not answer), ever more rarely.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from index.artefacts import ArtefactError
from service.recommend.deadline import Clock
from service.recommend.servable import Servable

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0

Load = Callable[[str], Servable]
"""Opens and verifies a version; blocks; raises ArtefactError for one that must not be served."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that could not be made to answer, and why."""

    version: str | None
    """None: what names it can not be read."""
    reason: str
    at: datetime
    final: bool
    """It is not tried again until what names it is written anew."""


StampT = TypeVar("StampT")


class Attempt(Generic[StampT]):
    """What was done so far about one writing of what names a version."""

    def __init__(self, stamp: StampT, *, clock: Clock, before: "Attempt[StampT] | None" = None) -> None:
        """Begin.

        Args:
            stamp: Tells one writing from the next.
            clock: For the pauses.
            before: About the writing before: its refusal stands until this one has come to an end.
        """
        self.stamp = stamp
        self.refusal: Refusal | None = None if before is None else before.refusal
        """The last one."""
        self._clock = clock
        self._settled = False
        self._retry_at = 0.0
        self._retry_after_s = FIRST_RETRY_S

    @property
    def is_due(self) -> bool:
        """It is time to try, for the first time or again."""
        return not self._settled and self._clock() >= self._retry_at

    def succeed(self) -> None:
        """Note that what was written is followed."""
        self._settled, self.refusal = True, None

    def fail(self, version: str | None, error: Exception) -> Refusal:
        """Note why a version (None: what names it) can not be made to answer, and return that."""
        if isinstance(error, ArtefactError):
            return self.refuse(version, str(error))
        self._retry_at = self._clock() + self._retry_after_s
        self._retry_after_s = min(2 * self._retry_after_s, LONGEST_RETRY_S)
        self.refusal = Refusal(version, f"{type(error).__name__}: {error}", datetime.now(UTC), final=False)
        return self.refusal

    def refuse(self, version: str | None, reason: str) -> Refusal:
        """Note that it is wrong for good."""
        self._settled = True
        self.refusal = Refusal(version, reason, datetime.now(UTC), final=True)
        return self.refusal


async def load_in_thread(load: Load, version: str) -> Servable:
    """Return a version that is loaded; the caller holds it.

    Raises:
        ArtefactError: It must not be served. Whatever else `load` raises goes on, too.
    """
    loading = asyncio.get_running_loop().run_in_executor(None, load, version)
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_let_go)
        raise


def _let_go(loading: "asyncio.Future[Servable]") -> None:
    """Close a version that was loaded for a reloader that is gone."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().release()
