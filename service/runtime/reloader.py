"""Reloader: follows the store's `CURRENT`. A new version is loaded and verified off the loop, then swapped in.

A version that is refused is tried once, not again and again, until `CURRENT` is written anew; the version before it
goes on answering. What may pass by itself (no memory, a disk that does not answer) is tried again, ever more rarely.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from index.store import ArtefactError, ArtifactStore
from service.recommend.deadline import Clock
from service.runtime.loading import FIRST_RETRY_S, LONGEST_RETRY_S, Load, Refusal, load_in_thread
from service.runtime.registry import ServableRegistry
from service.runtime.scenarios import ScenarioReloader

SERVABLE_SWAPPED = "servable_swapped"
SERVABLE_REFUSED = "servable_refused"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ReloaderStatus:
    """What readiness shows."""

    current: str | None
    previous: str | None
    loading: str | None
    refused: Refusal | None
    """The last refusal, as long as `CURRENT` still asks for it."""
    refused_scenarios: Mapping[str, Refusal]
    """By scenario: the last refusal, as long as its alias still asks for it."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What `CURRENT` said, and a stamp that tells one writing of it from the next."""

    version: str | None
    problem: str | None
    stamp: tuple[int, int]


def _ignore_swap(version: str, seconds: float) -> None: ...


def _ignore_refusal(version: str | None, reason: str) -> None: ...


class Reloader:
    """Keeps the registry at what `CURRENT` names. Used on the event loop; loads in a thread."""

    def __init__(
        self,
        *,
        store: ArtifactStore,
        registry: ServableRegistry,
        load: Load,
        interval_s: float,
        on_swapped: Callable[[str, float], None] = _ignore_swap,
        on_refused: Callable[[str | None, str], None] = _ignore_refusal,
        scenarios: ScenarioReloader | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s: {interval_s} is not above 0")
        self._store = store
        self._registry = registry
        self._load = load
        self._interval_s = interval_s
        self._on_swapped = on_swapped
        self._on_refused = on_refused
        self._scenarios = scenarios
        self._clock = clock
        self._loading: str | None = None
        self._refused: Refusal | None = None
        self._settled: _Seen | None = None
        """What `CURRENT` was when it was followed or refused for good."""
        self._trying: _Seen | None = None
        self._retry_at = 0.0
        self._retry_after_s = FIRST_RETRY_S

    def status(self) -> ReloaderStatus:
        """Return what is loaded, what is being loaded and what was refused."""
        current, previous = self._registry.current, self._registry.previous
        return ReloaderStatus(
            current=current.version.index_version if current else None,
            previous=previous.version.index_version if previous else None,
            loading=self._loading,
            refused=self._refused,
            refused_scenarios={} if self._scenarios is None else dict(self._scenarios.refused),
        )

    async def run(self) -> None:
        """Look at `CURRENT` again and again until cancelled. Owned by the lifespan's task group."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s)

    async def check(self) -> None:
        """Look at `CURRENT` and the aliases once and follow them; return when that is done or refused.

        Never raises for a bad version. One version is loaded at a time: what both name is loaded once.
        """
        await self._check_current()
        if self._scenarios is not None:
            await self._scenarios.check()

    async def _check_current(self) -> None:
        seen = await asyncio.to_thread(self._look)
        if seen == self._settled or (seen == self._trying and self._clock() < self._retry_at):
            return
        if seen != self._trying:
            self._trying, self._retry_after_s = seen, FIRST_RETRY_S
        if await self._follow(seen):
            self._settled = seen

    def _look(self) -> _Seen:
        try:
            written = (self._store.root / "CURRENT").stat()
            stamp = (written.st_ino, written.st_mtime_ns)
        except OSError:
            stamp = (0, 0)
        try:
            return _Seen(self._store.current(), None, stamp)
        except ArtefactError as error:
            return _Seen(None, str(error), stamp)

    async def _follow(self, seen: _Seen) -> bool:
        """Make the registry follow; return whether the matter is settled."""
        if seen.problem is not None:
            self._refuse(None, seen.problem, final=True)
            return True
        current, previous = self._registry.current, self._registry.previous
        if seen.version is None or (current is not None and current.version.index_version == seen.version):
            self._refused = None
            return True
        if previous is not None and previous.version.index_version == seen.version:
            self._registry.roll_back()
            self._swapped(seen.version, 0.0)
            return True
        held = self._registry.find(seen.version)
        if held is not None and held.retain():  # a scenario has it
            self._registry.swap(held)
            self._swapped(seen.version, 0.0)
            return True
        return await self._load_and_swap(seen.version)

    async def _load_and_swap(self, version: str) -> bool:
        started = self._clock()
        self._loading = version
        try:
            servable = await load_in_thread(self._load, version)
        except ArtefactError as error:
            self._refuse(version, str(error), final=True)
            return True
        except Exception as error:  # noqa: BLE001 - whatever it is, the version that answers goes on
            if isinstance(error, MemoryError):
                self._registry.forget_previous()  # the next attempt has its room
            self._refuse(version, f"{type(error).__name__}: {error}", final=False)
            self._retry_at = self._clock() + self._retry_after_s
            self._retry_after_s = min(2 * self._retry_after_s, LONGEST_RETRY_S)
            return False
        finally:
            self._loading = None
        self._registry.swap(servable)
        self._swapped(version, self._clock() - started)
        return True

    def _swapped(self, version: str, seconds: float) -> None:
        self._refused = None
        _log.info(SERVABLE_SWAPPED, index_version=version, seconds=round(seconds, 3))
        self._on_swapped(version, seconds)

    def _refuse(self, version: str | None, reason: str, *, final: bool) -> None:
        self._refused = Refusal(version, reason, datetime.now(UTC), final)
        _log.error(SERVABLE_REFUSED, index_version=version, reason=reason, final=final)
        self._on_refused(version, reason)
