"""What an answer is made from and has to be awaited: a history, the catalogue's changes, what was shown before."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, RecommendationNotFound, StoreUnavailable
from service.recommend.history import check_query
from service.recommend.items import Catalogue
from service.recommend.job import NO_HISTORY, Job
from service.recommend.ports import HistoryStore, StoredHistory
from service.recommend.servable import Servable
from service.recommend.shown import ShownSlates
from service.recommend.types import ItemId, Query, Subject

MAX_SEEN = 1_000
"""So many of a subject's latest events are read: what they name is seen, the last L of it is encoded."""

STORE_SHARE = 0.5
"""The store gets at most this part of the time that is left, so that an answer without it still comes in time."""

STORE_UNAVAILABLE = "store_unavailable"
CATALOGUE_STALE = "catalogue_stale"

HISTORY_MISSED = "history_missed"
CHANGES_MISSED = "item_changes_missed"

Y = TypeVar("Y")
_log = structlog.get_logger()


class Inputs:
    """Awaits what jobs need, in the time that they have. Used on the event loop alone."""

    def __init__(
        self,
        *,
        history: HistoryStore,
        catalogue: Catalogue | None,
        shown: ShownSlates | None,
        store_timeout_s: float,
    ) -> None:
        self._history = history
        self._catalogue = catalogue
        self._shown = shown
        self.store_timeout_s = store_timeout_s

    async def job(
        self, servable: Servable, query: Query, deadline: Deadline
    ) -> tuple[Job, list[str], dict[str, float]]:
        """Check a query and await what it needs; return the job, what is missing from it, and the time it took."""
        check_query(query, servable)
        deadline.check()
        before: tuple[ItemId, ...] = ()
        if query.after is not None:
            before = await self.looked_up(query.after, deadline, ShownSlates.chain)
            query = replace(query, exclude_item_ids=query.exclude_item_ids.union(before))
        if query.subject is None and self._catalogue is None:
            return Job(servable, query, deadline, shown_before=before), [], {}
        started = time.perf_counter()
        stored = NO_HISTORY if query.subject is None else await self._stored(query.subject, deadline)
        if stored is None:
            degraded, stored, view = [STORE_UNAVAILABLE], NO_HISTORY, self._latest(servable)
        else:
            seq = None if query.subject is None else stored.changes_seq
            view, missing = await self.view(servable, seq, deadline)
            degraded = [*missing]
        timings_ms = {"store": since_ms(started)}
        deadline.check()
        return Job(view, query, deadline, stored, before), degraded, timings_ms

    def _latest(self, servable: Servable) -> Servable:
        return servable if self._catalogue is None else self._catalogue.latest(servable)

    async def view(self, servable: Servable, seq: int | None, deadline: Deadline) -> tuple[Servable, tuple[str, ...]]:
        """Return the version with all changes up to a number (None: the latest), and what is missing.

        With a history comes the number of the latest change, and this process mostly has it: then nothing is awaited.
        """
        if self._catalogue is None:
            return servable, ()
        if seq is not None:
            view = self._catalogue.at(servable, seq)
            if view is not None:
                return view, ()
        try:
            async with asyncio.timeout(STORE_SHARE * max(deadline.remaining_s(), 0.0)):
                return await self._catalogue.fresh(servable, seq), ()
        except (StoreUnavailable, TimeoutError) as error:
            _log.debug(CHANGES_MISSED, reason=str(error) or "no answer in time")
            return self._latest(servable), (CATALOGUE_STALE,)

    async def looked_up(
        self, recommendation_id: str, deadline: Deadline, look: Callable[[ShownSlates, str], Awaitable[Y]]
    ) -> Y:
        """Return what is known of a recommendation, in the time that is left."""
        if self._shown is None:
            raise RecommendationNotFound(recommendation_id)
        try:
            async with asyncio.timeout(max(deadline.remaining_s(), 0.0)):
                return await look(self._shown, recommendation_id)
        except TimeoutError:
            raise DeadlineExceeded("the store did not say in time what was shown") from None

    async def _stored(self, subject: Subject, deadline: Deadline) -> StoredHistory | None:
        """Return what the subject did, or None when the store is away or late."""
        limit_s = min(self.store_timeout_s, STORE_SHARE * deadline.remaining_s())
        try:
            async with asyncio.timeout(limit_s):
                return await self._history.history(subject, limit=MAX_SEEN)
        except (StoreUnavailable, TimeoutError) as error:
            _log.debug(HISTORY_MISSED, reason=str(error) or f"no answer in {limit_s:.3f} s")
            return None


def since_ms(started: float) -> float:
    """Return the milliseconds since a moment of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1e3
