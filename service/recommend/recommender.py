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
from service.recommend.errors import (
    DeadlineExceeded,
    InvalidQuery,
    ModelNotFound,
    Overloaded,
)
from service.recommend.explain import explain_answer
from service.recommend.explain_shown import shown_answer, shown_query, with_caveats
from service.recommend.history import check_query
from service.recommend.inputs import CATALOGUE_STALE, STORE_UNAVAILABLE, Inputs, since_ms
from service.recommend.items import Catalogue
from service.recommend.job import Answer, Job
from service.recommend.listing import held, named_answer, popular_listing, similar_listing
from service.recommend.ports import HistoryStore
from service.recommend.random_ids import random_id
from service.recommend.rerank import Reranking, has_time
from service.recommend.servable import CURRENT, ServableSource, find_model
from service.recommend.shown import ShownSlates
from service.recommend.slate import slate_of
from service.recommend.types import (
    DEFAULT_SCENARIO,
    Choice,
    ExplainLevel,
    Explanation,
    Filter,
    ItemId,
    Listing,
    Method,
    ModelCard,
    Query,
    Slate,
)
from service.recommend.what_if import WhatIf, compare

RESERVE_S = 0.01
"""A re-ranking or an explanation that is not there this long before the deadline is left out, so that the answer itself
is in time."""

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
        shown: ShownSlates | None = None,
    ) -> None:
        """Put the parts together.

        Without a `catalogue`, what was loaded is what there is; without `shown`, nothing is kept of what was shown.
        """
        self._servables = servables
        self._compute = compute
        self._admission = admission
        self._inputs = Inputs(history=history, catalogue=catalogue, shown=shown, store_timeout_s=store_timeout_s)
        self._shown = shown
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
            job, degraded, timings_ms = await self._inputs.job(servable, query, deadline)
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
            key = random_id(16)
            slate = slate_of(
                servable,
                answer,
                degraded,
                timings_ms,
                explanation,
                assignment=choice.assignment,
                recommendation_id=key,
            )
            if query.store and self._shown is not None:
                self._shown.keep(job, answer, slate)
            return slate

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
            job, degraded, timings_ms = await self._inputs.job(servable, query, deadline)
            if item_ids is None:
                answer = await self._answer(job)
            else:
                work = partial(held, job.servable, partial(named_answer, job, tuple(item_ids)))
                answer = await self._compute.alone(work, deadline=deadline)
            answer = await self._rerank(job, answer, degraded, timings_ms)
            explanation = await self._explain(job, answer, deadline, timings_ms)
            return slate_of(
                servable, answer, degraded, timings_ms, explanation, assignment=choice.assignment
            ), explanation

    async def explain_shown(
        self,
        recommendation_id: str,
        *,
        item_ids: Sequence[ItemId] | None = None,
        level: ExplainLevel = "full",
        method: Method | None = None,
        deadline: Deadline,
    ) -> tuple[Slate, Explanation]:
        """Return what was shown under an id and its explanation, from the history that it was made from.

        The model that made it explains it as long as it is open; after that the current one does, and a caveat says so.

        Raises:
            RecommendationNotFound: Nothing is kept under this id.
            InvalidQuery: The model has no such method, or an item that is named was not shown.
            StoreUnavailable: What was shown can not be looked up now.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """
        with self._admission:
            started = time.perf_counter()
            shown = await self._inputs.looked_up(recommendation_id, deadline, ShownSlates.find)
            timings_ms = {"store": since_ms(started)}
            with self._servables.acquire(self._servables.like(shown.version)) as servable:
                view, degraded = await self._inputs.view(servable, None, deadline)
                query = shown_query(shown, servable, level=level, method=method)
                check_query(query, servable)
                job = Job(view, query, deadline)
                work = partial(held, view, partial(shown_answer, job, shown, item_ids))
                answer = await self._compute.alone(work, deadline=deadline)
                explanation = await self._explain(job, answer, deadline, timings_ms)
                num_wanted = len(shown.items) if item_ids is None else len(set(item_ids))
                slate = slate_of(servable, answer, degraded, timings_ms, explanation)
                return slate, with_caveats(explanation, shown, slate, num_wanted=num_wanted)

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
            return slate_of(servable, answer, missing, times_ms, None, assignment=choice.assignment)

        choice = self._choose(query)
        with self._admission, self._servables.acquire(choice) as servable:
            altered, degraded, timings_ms = await self._inputs.job(servable, query, deadline)
            whole = replace(altered, query=replace(altered.query, without=None))
            return compare(*await asyncio.gather(slate(whole), slate(altered)))

    async def similar(
        self,
        item_id: ItemId,
        *,
        k: int,
        modality: str | None = None,
        restriction: Filter = _ANY,
        scenario: str = DEFAULT_SCENARIO,
        unit: str = "",
        deadline: Deadline,
    ) -> Listing:
        """Return what is most like an item, by its fused vector or by one part of it; never the item itself.

        Where the scenario is an experiment, `unit` draws the arm.

        Raises:
            ItemNotFound: The catalogue has no such item.
            ScenarioNotFound: There is no such scenario.
            InvalidQuery: The model has no such modality.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """
        choice = self._choose(Query(scenario=scenario, unit=unit))
        with self._admission, self._servables.acquire(choice) as servable:
            view, degraded = await self._inputs.view(servable, None, deadline)
            if modality is not None and modality not in servable.parts:
                known = ", ".join(servable.parts)
                raise InvalidQuery("/modality", f"{modality!r} is not a modality of this model; it has {known}")
            started = time.perf_counter()
            work = partial(similar_listing, view, item_id, k=k, modality=modality, restriction=restriction)
            items = await self._compute.alone(partial(held, view, work), deadline=deadline)
            return Listing(items, servable.version, {"search": since_ms(started)}, degraded, choice.assignment)

    async def popular(
        self,
        *,
        k: int,
        restriction: Filter = _ANY,
        scenario: str = DEFAULT_SCENARIO,
        unit: str = "",
        deadline: Deadline,
    ) -> Listing:
        """Return what is most popular in the catalogue; `scenario` and `unit` as for `similar`.

        Raises:
            ScenarioNotFound: There is no such scenario.
            NoServable: No version is loaded.
            Overloaded: Too many requests are in flight.
            DeadlineExceeded: The time is up.
        """
        choice = self._choose(Query(scenario=scenario, unit=unit))
        with self._admission, self._servables.acquire(choice) as servable:
            view, degraded = await self._inputs.view(servable, None, deadline)
            started = time.perf_counter()
            work = partial(popular_listing, view, k=k, restriction=restriction)
            items = await self._compute.alone(partial(held, view, work), deadline=deadline)
            return Listing(items, servable.version, {"search": since_ms(started)}, degraded, choice.assignment)

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
        timings_ms["rerank"] = since_ms(started)
        return answer

    async def _explain(self, job: Job, answer: Answer, deadline: Deadline, timings_ms: dict[str, float]) -> Explanation:
        started = time.perf_counter()
        work = partial(explain_answer, job, answer, deadline=deadline)
        try:
            return await self._compute.alone(partial(held, job.servable, work), deadline=deadline)
        finally:
            timings_ms["explain"] = since_ms(started)


def _early(deadline: Deadline) -> Deadline:
    return Deadline(deadline.at - RESERVE_S, deadline.clock)
