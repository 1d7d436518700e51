"""What a user was interested in over time: the modality shares of the recommendations at the end of each window."""

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from service.recommend.admission import Admission
from service.recommend.answer import answer_jobs
from service.recommend.compute import Compute
from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded
from service.recommend.explain import explain_answer
from service.recommend.history import check_query
from service.recommend.inputs import MAX_SEEN
from service.recommend.items import Catalogue
from service.recommend.job import Answer, Job
from service.recommend.listing import held
from service.recommend.ports import HistoryStore, StoredHistory
from service.recommend.recommender import RERANK_FAILED
from service.recommend.rerank import Reranking, rerank
from service.recommend.servable import CURRENT, Servable, ServableSource
from service.recommend.types import (
    DEFAULT_SCENARIO,
    Assignment,
    Explanation,
    Method,
    ModalityShare,
    Query,
    ServedVersion,
    Subject,
)

FIRST_MONDAY_S = 4 * 86_400
"""The epoch was a Thursday; counted from here, windows of weeks begin on Mondays."""

WINDOWS_AT_ONCE = 16
"""Answered together; bounds memory, and the time between two looks at the deadline."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time of a history, `starts_at <= t < ends_at`."""

    starts_at: float
    """Seconds since the epoch, UTC."""
    ends_at: float
    num_events: int
    num_events_until_end: int
    """Of this window and all before it."""


@dataclass(frozen=True, slots=True)
class WindowInterest:
    """What a user was interested in at the end of a window."""

    window: Window
    events_used: int = 0
    """Past items that were encoded."""
    modality_interest: tuple[ModalityShare, ...] = ()
    method: Method | None = None
    """None: there are no shares."""


@dataclass(frozen=True, slots=True)
class Interests:
    """A history by windows, and by what they were read."""

    windows: tuple[WindowInterest, ...]
    """Oldest first; empty for a subject without events."""
    version: ServedVersion
    ranker: ServedVersion | None = None
    """The ranker whose shares some windows have; None: all are the retriever's."""
    faithfulness: Mapping[str, float] = field(default_factory=dict)
    """Of the latest window with shares: measured for its model and method at release."""
    caveats: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    assignment: Assignment | None = None
    """None: the scenario is no experiment."""


class InterestTimeline:
    """Answers what a user was interested in over time. Built once; used on the event loop, which it never blocks."""

    def __init__(
        self,
        *,
        servables: ServableSource,
        history: HistoryStore,
        compute: Compute,
        admission: Admission,
        catalogue: Catalogue | None = None,
    ) -> None:
        """Put the parts together; without a `catalogue`, what was loaded is what there is."""
        self._servables = servables
        self._catalogue = catalogue
        self._history = history
        self._compute = compute
        self._admission = admission

    async def of(
        self,
        subject: Subject,
        *,
        window_s: int,
        limit: int,
        method: Method | None = None,
        scenario: str = DEFAULT_SCENARIO,
        deadline: Deadline,
    ) -> Interests:
        """Return the latest `limit` windows of what recommendations read of a subject's history.

        A window without events says so and no more; windows end with that of the latest event.

        Raises:
            InvalidQuery: The loaded version does not offer the method.
            ScenarioNotFound: There is no such scenario.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            StoreUnavailable: The history can not be read; without it there is nothing to say.
            DeadlineExceeded: The time is up.
        """
        query = Query(subject=subject, explain="summary", method=method, scenario=scenario)
        choice = CURRENT if scenario == DEFAULT_SCENARIO else self._servables.choose(query)
        with self._admission, self._servables.acquire(choice) as servable:
            check_query(query, servable)
            stored = await self._stored(subject, deadline)
            windows = windows_of(stored.occurred_at, window_s=window_s, limit=limit)
            if not windows:
                return Interests((), servable.version, assignment=choice.assignment)
            view = servable if self._catalogue is None else self._catalogue.latest(servable)
            work = partial(_interests, view, query, stored, windows, deadline)
            found = await self._compute.alone(partial(held, servable, work), deadline=deadline)
            return replace(found, assignment=choice.assignment)

    async def _stored(self, subject: Subject, deadline: Deadline) -> StoredHistory:
        deadline.check()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await self._history.history(subject, limit=MAX_SEEN)
        except TimeoutError:
            raise DeadlineExceeded("the time given for this request is over") from None


def windows_of(occurred_at: Sequence[float], *, window_s: int, limit: int) -> list[Window]:
    """Return the latest windows that a history spans, oldest first; none for an empty one.

    Args:
        occurred_at: Of each event, oldest first.
        window_s: How long a window is.
        limit: How many windows at most.
    """
    if not occurred_at:
        return []
    numbers = [math.floor((moment - FIRST_MONDAY_S) / window_s) for moment in occurred_at]
    windows: list[Window] = []
    for number in range(max(numbers[0], numbers[-1] - limit + 1), numbers[-1] + 1):
        starts_at = float(FIRST_MONDAY_S + number * window_s)
        num_until_end = bisect_right(numbers, number)
        num_events = num_until_end - bisect_left(numbers, number)
        windows.append(Window(starts_at, starts_at + window_s, num_events, num_until_end))
    return windows


@dataclass(frozen=True, slots=True)
class _Explained:
    """The recommendation at the end of a window, and its explanation."""

    answer: Answer
    explanation: Explanation
    degraded: tuple[str, ...]


def _interests(
    servable: Servable, query: Query, stored: StoredHistory, windows: Sequence[Window], deadline: Deadline
) -> Interests:
    """Recommend and explain at the end of every window with events, as if it were now."""
    jobs = [
        Job(servable, query, deadline, _until(stored, window.num_events_until_end))
        for window in windows
        if window.num_events
    ]
    explained = list(_explain(servable, jobs, deadline))
    found = iter(explained)
    lines = [_line(window, next(found)) if window.num_events else WindowInterest(window) for window in windows]
    with_shares = [one for one in explained if one.explanation.modality_interest]
    rankers = [one.answer.ranker.card.version for one in explained if one.answer.ranker is not None]
    return Interests(
        windows=tuple(lines),
        version=servable.version,
        ranker=rankers[-1] if rankers else None,
        faithfulness=with_shares[-1].explanation.faithfulness if with_shares else {},
        caveats=tuple(dict.fromkeys(chain.from_iterable(one.explanation.caveats for one in with_shares))),
        degraded=tuple(dict.fromkeys(chain.from_iterable(one.degraded for one in explained))),
    )


def _until(stored: StoredHistory, num_events: int) -> StoredHistory:
    return StoredHistory(stored.item_ids[:num_events], stored.occurred_at[:num_events], stored.blocked_item_ids)


def _explain(servable: Servable, jobs: Sequence[Job], deadline: Deadline) -> Iterator[_Explained]:
    for start in range(0, len(jobs), WINDOWS_AT_ONCE):
        deadline.check()
        together = jobs[start : start + WINDOWS_AT_ONCE]
        for job, answer, degraded in _recommend(servable, together, deadline):
            explanation = explain_answer(job, answer, deadline=deadline)
            yield _Explained(answer, explanation, (*degraded, *answer.degraded))


def _recommend(
    servable: Servable, jobs: Sequence[Job], deadline: Deadline
) -> Iterator[tuple[Job, Answer, tuple[str, ...]]]:
    """Return each job's answer in the order that a recommendation shows, and what is missing from it."""
    for job, answer in zip(jobs, answer_jobs(jobs), strict=True):
        if isinstance(answer, Exception):
            raise answer
        if servable.ranker is None or answer.candidates is None:
            yield job, answer, ()
            continue
        (ordered,) = rerank([Reranking(job, answer, answer.candidates, deadline)])
        if isinstance(ordered, DeadlineExceeded):  # shares of two models are no course of time
            raise ordered
        if isinstance(ordered, Exception):
            yield job, answer, (RERANK_FAILED,)
        else:
            yield job, ordered, ()


def _line(window: Window, explained: _Explained) -> WindowInterest:
    shares = explained.explanation.modality_interest
    return WindowInterest(
        window=window,
        events_used=len(explained.answer.basis.history),
        modality_interest=shares,
        method=explained.explanation.method if shares else None,
    )
