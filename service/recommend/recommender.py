"""The recommender: the order of the stages, and what becomes of the answer when one of them fails.

history (awaited) → resolve, encode, search, filter, fall back → re-rank (each computed together with other jobs) →
explain → slate.
Every answer is made from one version, held from the first stage to the last.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import structlog

from service.recommend.admission import Admission
from service.recommend.compute import Compute
from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, InvalidQuery, ModelNotFound, Overloaded, StoreUnavailable
from service.recommend.explain import explain_answer
from service.recommend.history import check_query
from service.recommend.items import Catalogue
from service.recommend.job import NO_HISTORY, Answer, Job
from service.recommend.listing import held, named_answer, popular_listing, similar_listing
from service.recommend.ports import HistoryStore, StoredHistory
from service.recommend.rerank import Reranking, has_time
from service.recommend.servable import CURRENT, Servable, ServableSource, find_model
from service.recommend.types import (
    DEFAULT_SCENARIO,
    Assignment,
    Choice,
    Explanation,
    Filter,
    ItemId,
    Listing,
    ModelCard,
    Query,
    Slate,
    Subject,
)
from service.recommend.what_if import WhatIf, compare

MAX_SEEN = 1_000
"""So many of a subject's latest events are read: what they name is seen, the last L of it is encoded."""

STORE_SHARE = 0.5
"""The store gets at most this part of the time that is left, so that an answer without it still comes in time."""

RESERVE_S = 0.01
"""A re-ranking or an explanation that is not there this long before the deadline is left out, so that the answer itself
is in time."""

STORE_UNAVAILABLE = "store_unavailable"
CATALOGUE_STALE = "catalogue_stale"
EXPLANATION_FAILED = "explanation_failed"
EXPLANATION_LATE = "explanation_late"
EXPLANATION_OVERLOADED = "explanation_overloaded"
RERANK_FAILED = "rerank_failed"
RERANK_LATE = "rerank_late"
RERANK_OVERLOADED = "rerank_overloaded"

DEGRADED = (
    STORE_UNAVAILABLE,
    CATALOGUE_STALE,
    RERANK_LATE,
    RERANK_FAILED,
    RERANK_OVERLOADED,
    EXPLANATION_LATE,
    EXPLANATION_FAILED,
    EXPLANATION_OVERLOADED,
)
"""What an answer may lack, beside `MODEL_FAILED` of `service.recommend.answer`; docs/operations.md explains all."""

HISTORY_MISSED = "history_missed"
CHANGES_MISSED = "item_changes_missed"
MODEL_BROKE = "model_broke"
EXPLANATIONS_BROKE = "explanations_broke"
RANKER_BROKE = "ranker_broke"

_ANY = Filter()
_log = structlog.get_logger()


class Recommender:
    """Answers queries. Built once; used on the event loop, which it never blocks."""

    def __init__(
        self,
        *,
        servables: ServableSource,
        history: HistoryStore,
        compute: Compute,
        admission: Admission,
        store_timeout_s: float,
        catalogue: Catalogue | None = None,
    ) -> None:
        """Put the parts together; without a `catalogue`, what was loaded is what there is."""
        self._servables = servables
        self._catalogue = catalogue
        self._history = history
        self._compute = compute
        self._admission = admission
        self._store_timeout_s = store_timeout_s
        self.model_ok = True
        """The last call of the model succeeded; readiness looks at it."""
        self.ranker_ok = True
        """So did the last re-ranking."""
        self._explanations_ok = True

    async def recommend(self, query: Query, *, deadline: Deadline) -> Slate:
        """Return the slate for a query.

        A store that is away or late, a model that fails, and a re-ranking or an explanation that fails or is late are
        left out of the answer, and `degraded` names them.

        Raises:
            InvalidQuery: The loaded version can not answer this query; names the field.
            NotFound: There is no such scenario, or no such model is loaded.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """
        choice = self._choose(query)
        with self._admission, self._servables.acquire(choice) as servable:
            job, degraded, timings_ms = await self._job(servable, query, deadline)
            answer = await self._rerank(job, await self._answer(job), degraded, timings_ms)
            explanation: Explanation | None = None
            if query.explain != "none":
                try:
                    explanation = await self._explain(job, answer, _early(deadline), timings_ms)
                except DeadlineExceeded:
                    deadline.check()
                    degraded.append(EXPLANATION_LATE)
                except Overloaded:
                    degraded.append(EXPLANATION_OVERLOADED)
                except Exception as error:  # noqa: BLE001 - the slate is whole without it, whatever it was
                    if self._explanations_ok:
                        _log.error(EXPLANATIONS_BROKE, index_version=servable.version.index_version, exc_info=error)
                    self._explanations_ok = False
                    degraded.append(EXPLANATION_FAILED)
                else:
                    self._explanations_ok = True
            return _slate(servable, answer, degraded, timings_ms, explanation, assignment=choice.assignment)

    async def explain(
        self, query: Query, *, item_ids: Sequence[ItemId] | None = None, deadline: Deadline
    ) -> tuple[Slate, Explanation]:
        """Return a slate and its explanation: of the items named, or of what would be recommended.

        Items that are named are scored and explained whatever the query's filters say: nothing is recommended.

        Raises:
            InvalidQuery: As for `recommend`, or an item that is named is not in the catalogue.
            NotFound: As for `recommend`.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up; here the explanation is the answer and can not be left out.
        """
        if query.explain == "none":
            query = replace(query, explain="full")
        choice = self._choose(query)
        with self._admission, self._servables.acquire(choice) as servable:
            job, degraded, timings_ms = await self._job(servable, query, deadline)
            if item_ids is None:
                answer = await self._answer(job)
            else:
                work = partial(held, job.servable, partial(named_answer, job, tuple(item_ids)))
                answer = await self._compute.alone(work, deadline=deadline)
            answer = await self._rerank(job, answer, degraded, timings_ms)
            explanation = await self._explain(job, answer, deadline, timings_ms)
            return _slate(
                servable, answer, degraded, timings_ms, explanation, assignment=choice.assignment
            ), explanation

    async def what_if(self, query: Query, *, deadline: Deadline) -> WhatIf:
        """Return the slate of a query, that with something of the history switched off, and what moved.

        Args:
            query: Its `without` says what is switched off.
            deadline: For both.

        Raises:
            InvalidQuery: As for `recommend`, or the model has no such part.
            NotFound: As for `recommend`.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """

        async def slate(job: Job) -> Slate:
            missing, times_ms = list(degraded), dict(timings_ms)
            answer = await self._rerank(job, await self._answer(job), missing, times_ms)
            return _slate(servable, answer, missing, times_ms, None)

        with self._admission, self._servables.acquire(self._choose(query)) as servable:
            altered, degraded, timings_ms = await self._job(servable, query, deadline)
            whole = replace(altered, query=replace(altered.query, without=None))
            return compare(*await asyncio.gather(slate(whole), slate(altered)))

    async def similar(
        self,
        item_id: ItemId,
        *,
        k: int,
        modality: str | None = None,
        restriction: Filter = _ANY,
        deadline: Deadline,
    ) -> Listing:
        """Return what is most like an item, by its fused vector or by one part of it; never the item itself.

        Raises:
            ItemNotFound: The catalogue has no such item.
            InvalidQuery: The model has no such modality.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """
        with self._admission, self._servables.acquire() as servable:
            view, degraded = await self._view(servable, None, deadline)
            if modality is not None and modality not in servable.parts:
                known = ", ".join(servable.parts)
                raise InvalidQuery("/modality", f"{modality!r} is not a modality of this model; it has {known}")
            started = time.perf_counter()
            work = partial(similar_listing, view, item_id, k=k, modality=modality, restriction=restriction)
            items = await self._compute.alone(partial(held, view, work), deadline=deadline)
            return Listing(items, servable.version, {"search": _since_ms(started)}, degraded)

    async def popular(self, *, k: int, restriction: Filter = _ANY, deadline: Deadline) -> Listing:
        """Return what is most popular in the catalogue.

        Raises:
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """
        with self._admission, self._servables.acquire() as servable:
            view, degraded = await self._view(servable, None, deadline)
            started = time.perf_counter()
            work = partial(popular_listing, view, k=k, restriction=restriction)
            items = await self._compute.alone(partial(held, view, work), deadline=deadline)
            return Listing(items, servable.version, {"search": _since_ms(started)}, degraded)

    def model(self, name: str) -> ModelCard:
        """Return what a loaded model says of itself, by the name of its family or its version.

        Raises:
            ModelNotFound: The models that are loaded have other names and versions.
            NoServable: No version is loaded.
        """
        with self._servables.acquire(self._servables.choose(Query(model=name))) as servable:
            model = find_model(servable, name)
            if model is None:
                raise ModelNotFound(name)
            return model.card

    def _choose(self, query: Query) -> Choice:
        if query.model is None and query.scenario == DEFAULT_SCENARIO:
            return CURRENT
        return self._servables.choose(query)

    async def _job(
        self, servable: Servable, query: Query, deadline: Deadline
    ) -> tuple[Job, list[str], dict[str, float]]:
        """Check a query and await what it needs; return the job, what is missing from it, and the time it took."""
        check_query(query, servable)
        deadline.check()
        if query.subject is None and self._catalogue is None:
            return Job(servable, query, deadline), [], {}
        started = time.perf_counter()
        stored = NO_HISTORY if query.subject is None else await self._stored(query.subject, deadline)
        if stored is None:
            degraded, stored, view = [STORE_UNAVAILABLE], NO_HISTORY, self._latest(servable)
        else:
            seq = None if query.subject is None else stored.changes_seq
            view, missing = await self._view(servable, seq, deadline)
            degraded = [*missing]
        timings_ms = {"store": _since_ms(started)}
        deadline.check()
        return Job(view, query, deadline, stored), degraded, timings_ms

    def _latest(self, servable: Servable) -> Servable:
        return servable if self._catalogue is None else self._catalogue.latest(servable)

    async def _view(self, servable: Servable, seq: int | None, deadline: Deadline) -> tuple[Servable, tuple[str, ...]]:
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

    async def _stored(self, subject: Subject, deadline: Deadline) -> StoredHistory | None:
        """Return what the subject did, or None when the store is away or late."""
        limit_s = min(self._store_timeout_s, STORE_SHARE * deadline.remaining_s())
        try:
            async with asyncio.timeout(limit_s):
                return await self._history.history(subject, limit=MAX_SEEN)
        except (StoreUnavailable, TimeoutError) as error:
            _log.debug(HISTORY_MISSED, reason=str(error) or f"no answer in {limit_s:.3f} s")
            return None

    async def _answer(self, job: Job) -> Answer:
        answer = await self._compute.answer(job)
        if self.model_ok and answer.failure is not None:  # told once an outage, not once a request
            _log.error(MODEL_BROKE, index_version=job.servable.version.index_version, exc_info=answer.failure)
        self.model_ok = answer.failure is None
        return answer

    async def _rerank(self, job: Job, answer: Answer, degraded: list[str], timings_ms: dict[str, float]) -> Answer:
        """Return the answer in the ranker's order, if there is one; else as it is, and say why in `degraded`."""
        ranker, candidates = job.servable.ranker, answer.candidates
        if ranker is None or candidates is None:
            return answer
        deadline = _early(job.deadline)
        started = time.perf_counter()
        try:
            if not has_time(ranker, candidates, deadline):
                degraded.append(RERANK_LATE)
                return answer
            answer = await self._compute.rerank(Reranking(job, answer, candidates, deadline))
        except DeadlineExceeded:
            job.deadline.check()
            degraded.append(RERANK_LATE)
        except Overloaded:
            degraded.append(RERANK_OVERLOADED)
        except Exception as error:  # noqa: BLE001 - the slate is whole without it, whatever it was
            if self.ranker_ok:
                _log.error(RANKER_BROKE, index_version=job.servable.version.index_version, exc_info=error)
            self.ranker_ok = False
            degraded.append(RERANK_FAILED)
        else:
            self.ranker_ok = True
        timings_ms["rerank"] = _since_ms(started)
        return answer

    async def _explain(self, job: Job, answer: Answer, deadline: Deadline, timings_ms: dict[str, float]) -> Explanation:
        started = time.perf_counter()
        work = partial(explain_answer, job, answer, deadline=deadline)
        try:
            return await self._compute.alone(partial(held, job.servable, work), deadline=deadline)
        finally:
            timings_ms["explain"] = _since_ms(started)


def _early(deadline: Deadline) -> Deadline:
    return Deadline(deadline.at - RESERVE_S, deadline.clock)


def _since_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1e3


def _slate(
    servable: Servable,
    answer: Answer,
    degraded: Sequence[str],
    timings_ms: dict[str, float],
    explanation: Explanation | None,
    *,
    assignment: Assignment | None = None,
) -> Slate:
    items = answer.items
    if explanation is not None:
        items = tuple(item._replace(explanation=why) for item, why in zip(answer.items, explanation.items, strict=True))
    return Slate(
        items=items,
        user_state=answer.user_state,
        events_used=answer.basis.history.num_used,
        unknown_item_ids=answer.unknown_item_ids,
        version=servable.version,
        ranker=None if answer.ranker is None else answer.ranker.card.version,
        degraded=(*degraded, *answer.degraded),
        explanation=explanation,
        timings_ms={**timings_ms, **answer.timings_ms},
        assignment=assignment,
    )
