"""What was shown: kept for a while, so that it can be explained and continued; written after the answer.

An answer only leaves a note here. A task of its own makes of all waiting notes what is kept, and hands it to the store
together; when more wait than there is room for, or the store is away, they are dropped and counted.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.recommend.errors import InvalidQuery, RecommendationNotFound, StoreUnavailable
from service.recommend.job import Answer, Job
from service.recommend.ports import ShownItem, ShownSlate, SlateStore
from service.recommend.types import ItemId, Slate, Subject

MAX_PENDING = 2_000
"""So many notes wait at most; more are dropped."""

MAX_AT_ONCE = 64
"""So many slates go to the store in one call."""

GATHER_S = 0.05
"""So long a first note waits for others: a store that syncs every write is written to 20 times a second, not for each
answer. Another process finds a slate so much later."""

MAX_CHAIN = 5_000
"""So many items are shown at most in one chain of pages."""

Dropped = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Note:
    """What an answer leaves behind: references alone, nothing is made of them before it has been sent."""

    job: Job
    answer: Answer
    slate: Slate
    served_at: float


class ShownSlates:
    """Keeps and finds what was shown. Used on the event loop alone."""

    def __init__(
        self,
        store: SlateStore,
        *,
        on_dropped: Dropped = lambda _count: None,
        max_pending: int = MAX_PENDING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._on_dropped = on_dropped
        self._max_pending = max_pending
        self._clock = clock
        self._pending: dict[str, _Note] = {}
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def keep(self, job: Job, answer: Answer, slate: Slate) -> None:
        """Note an answer; it is kept soon, or dropped and counted."""
        if len(self._pending) >= self._max_pending:
            self._on_dropped(1)
            return
        self._pending[slate.recommendation_id] = _Note(job, answer, slate, self._clock())
        self._wake.set()

    async def find(self, recommendation_id: str) -> ShownSlate:
        """Return what was shown under an id, at once for what this process has answered.

        Raises:
            RecommendationNotFound: Nothing is kept under it: it is unknown, too old, or was not to be kept.
            StoreUnavailable: The store does not answer.
        """
        note = self._pending.get(recommendation_id)
        slate = await self._store.find(recommendation_id) if note is None else _kept(note)
        if slate is None:
            raise RecommendationNotFound(recommendation_id)
        return slate

    async def chain(self, recommendation_id: str) -> tuple[ItemId, ...]:
        """Return all items shown in a recommendation and in those that it continues.

        Raises:
            RecommendationNotFound: As for `find`.
            InvalidQuery: The chain has become too long to be continued.
            StoreUnavailable: The store does not answer.
        """
        shown = (await self.find(recommendation_id)).chain
        if len(shown) > MAX_CHAIN:
            raise InvalidQuery("/after", f"{len(shown)} items have been shown in this chain; {MAX_CHAIN} is the bound")
        return shown

    async def forget(self, subject: Subject) -> None:
        """Forget what was shown to a subject, what waits to be kept included.

        Raises:
            StoreUnavailable: The store does not answer; the same call may be repeated.
        """
        for key in [key for key, note in self._pending.items() if note.job.query.subject == subject]:
            del self._pending[key]
        async with self._writing:  # what is under way must not come after this
            await self._store.forget(subject)

    async def serve(self) -> None:
        """Hand to the store what waits, for ever. Owned by the lifespan's task group."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Hand to the store all that waits now. What comes meanwhile waits for the next time: it gathers as well."""
        keys = list(self._pending)
        for start in range(0, len(keys), MAX_AT_ONCE):
            async with self._writing:
                await self._write(keys[start : start + MAX_AT_ONCE])

    async def _write(self, keys: Sequence[str]) -> None:
        notes = [self._pending[key] for key in keys if key in self._pending]  # some may have been forgotten
        if not notes:
            return
        try:
            num_kept = await self._store.keep([_kept(note) for note in notes])
        except StoreUnavailable:
            num_kept = 0
        if num_kept < len(notes):
            self._on_dropped(len(notes) - num_kept)
        for key in keys:
            self._pending.pop(key, None)


def _kept(note: _Note) -> ShownSlate:
    query, slate, history = note.job.query, note.slate, note.answer.basis.history
    vectors = {item.item_id: item.modalities for item in query.history or () if item.modalities}
    pairs = zip(history.item_ids, history.rows, strict=True)
    return ShownSlate(
        recommendation_id=slate.recommendation_id,
        subject=query.subject,
        served_at=note.served_at,
        history=history.item_ids,
        brought={item_id: vectors[item_id] for item_id, row in pairs if row < 0} if vectors else {},
        ages=() if history.ages_L is None else tuple(history.ages_L.tolist()),
        items=tuple([ShownItem(item.item_id, item.score, item.source) for item in slate.items]),
        version=slate.version,
        ranker=slate.ranker,
        k=query.k,
        filter=query.filter,
        shown_before=note.job.shown_before,
    )
