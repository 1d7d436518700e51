"""Reloader: follows the store's `CURRENT`. A new version is loaded and verified off the loop, then swapped in.

While a version is refused, the one before it goes on answering. When it is tried again: `service.runtime.loading`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from index.store import ArtefactError, ArtifactStore
from service.recommend.deadline import Clock
from service.recommend.servable import Servable
from service.runtime.loading import Attempt, Load, Refusal, load_in_thread
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
        self._attempt: Attempt[_Seen] | None = None

    def status(self) -> ReloaderStatus:
        """Return what is loaded, what is being loaded and what was refused."""
        current, previous = self._registry.current, self._registry.previous
        return ReloaderStatus(
            current=current.version.index_version if current else None,
            previous=previous.version.index_version if previous else None,
            loading=self._loading,
            refused=None if self._attempt is None else self._attempt.refusal,
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
        if self._attempt is None or self._attempt.stamp != seen:
            self._attempt = Attempt(seen, clock=self._clock, before=self._attempt)
        if self._attempt.is_due:
            await self._follow(seen, self._attempt)

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

    async def _follow(self, seen: _Seen, attempt: Attempt[_Seen]) -> None:
        """Make the registry follow."""
        if seen.problem is not None:
            self._refused(attempt.refuse(None, seen.problem))
            return
        current, previous = self._registry.current, self._registry.previous
        if seen.version is None or (current is not None and current.version.index_version == seen.version):
            attempt.succeed()
            return
        started = self._clock()
        if previous is not None and previous.version.index_version == seen.version:
            self._registry.roll_back()
        else:
            held = self._registry.find(seen.version)
            if held is None or not held.retain():  # no scenario has it
                try:
                    held = await self._load_version(seen.version)
                except Exception as error:  # noqa: BLE001 - whatever it is, the version that answers goes on
                    if isinstance(error, MemoryError):
                        self._registry.forget_previous()  # the next attempt has its room
                    self._refused(attempt.fail(seen.version, error))
                    return
            self._registry.swap(held)
        attempt.succeed()
        seconds = self._clock() - started
        _log.info(SERVABLE_SWAPPED, index_version=seen.version, seconds=round(seconds, 3))
        self._on_swapped(seen.version, seconds)

    async def _load_version(self, version: str) -> Servable:
        self._loading = version
        try:
            return await load_in_thread(self._load, version)
        finally:
            self._loading = None

    def _refused(self, refusal: Refusal) -> None:
        _log.error(SERVABLE_REFUSED, index_version=refusal.version, reason=refusal.reason, final=refusal.final)
        self._on_refused(refusal.version, refusal.reason)
