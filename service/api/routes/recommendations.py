"""`POST /v1/recommendations`, alone and in batches, `POST /v1/explanations` and `POST /v1/what-if`."""

import asyncio
from dataclasses import replace

import structlog

from api_schemas.explain import ExplanationAnswer, ExplanationRequest
from api_schemas.recommend import (
    BatchAnswer,
    BatchRequest,
    BatchResult,
    RecommendationAnswer,
    RecommendationRequest,
)
from api_schemas.what_if import WhatIfAnswer, WhatIfRequest
from service.api import problems
from service.api.lists import ReadList, below, read_list
from service.api.parts import PartsSource
from service.api.problems import ApiError, reply_to
from service.api.routing import Border, Direct, Trace, parse
from service.api.translate import explanation_answer, query_of, recommendation_answer, what_if_answer, what_if_query
from service.observability.logging import REQUEST_FAILED
from service.observability.metrics import Metrics
from service.recommend.deadline import Deadline
from service.recommend.errors import InvalidQuery
from service.recommend.types import ItemId, Slate

ReadBatch = ReadList[BatchRequest, RecommendationRequest]
_BATCH = "/v1/recommendations/batch"
_log = structlog.get_logger()


def read_batch(body: bytes) -> ReadBatch:
    """Read a body; a request that is wrong does not take its neighbours with it.

    Raises:
        ApiError: The body is not JSON, or wrong as a whole: no list, too many requests, an unknown field beside it.
    """
    return read_list(body, BatchRequest, RecommendationRequest, field="requests")


def recommendation_routes(parts: PartsSource, border: Border, metrics: Metrics) -> list[Direct]:
    """Return the four endpoints.

    All but the batch, whose requests are refused each by itself, are refused unread when too many are in flight.
    """

    def check_room() -> None:
        parts().admission.check()

    def note(trace: Trace, slate: Slate) -> None:
        trace.timings_ms = slate.timings_ms
        for reason in slate.degraded:
            metrics.degraded.labels(reason).inc()
        metrics.count_arm(slate.assignment)

    async def answer(
        body: RecommendationRequest, trace: Trace, deadline: Deadline, *, unit: str
    ) -> RecommendationAnswer:
        slate = await parts().recommender.recommend(query_of(body, unit=unit), deadline=deadline)
        note(trace, slate)
        return recommendation_answer(slate, level=body.explain, took_ms=trace.took_ms())

    async def recommend(body: RecommendationRequest, trace: Trace) -> RecommendationAnswer:
        """Recommend items to a user, a session or a history that comes with the request.

        An unknown user is no error: without any history the answer is what is popular, and says so.
        """
        return await answer(body, trace, border.deadline(body.timeout_ms), unit=trace.request_id)

    async def recommend_batch(read: ReadBatch, trace: Trace) -> BatchAnswer:
        """Answer up to a hundred requests together, for much less than so many calls cost.

        The order is kept. A request that is wrong, refused or late spoils no other: its result is the problem that it
        would have got alone, with pointers from the root of this body. Each counts as one request in flight.
        """
        latest = border.deadline(read.whole.timeout_ms)

        async def one(index: int, body: RecommendationRequest) -> tuple[int, BatchResult]:
            own = latest if body.timeout_ms is None else border.deadline(body.timeout_ms)
            deadline, unit = min(latest, own, key=_moment), f"{trace.request_id}/{index}"
            try:
                return index, {"status": 200, "body": await answer(body, trace, deadline, unit=unit)}
            except Exception as error:  # noqa: BLE001 - the border of this one request, as the envelope is of the whole
                return index, refused(index, error, trace)

        results = dict(await asyncio.gather(*[one(index, body) for index, body in read.entries]))
        for index, found in read.problems:
            error = ApiError(problems.VALIDATION_ERROR, f"{found[0].pointer}: {found[0].detail}", errors=found)
            results[index] = refused(index, error, trace)
        return {"results": [results[index] for index in range(len(results))], "took_ms": round(trace.took_ms(), 3)}

    def refused(index: int, error: Exception, trace: Trace) -> BatchResult:
        reply = reply_to(error, instance=_BATCH, request_id=trace.request_id)
        metrics.problems.labels(reply.kind.slug).inc()
        if reply.kind is problems.INTERNAL:
            _log.error(REQUEST_FAILED, route=_BATCH, exc_info=error)
        problem = reply.problem
        if isinstance(error, InvalidQuery):  # the core knows nothing of the batch that its query stands in
            problem = problem.model_copy(update={"errors": below(f"/requests/{index}", problem.errors)})
        return {"status": reply.kind.status, "problem": problem}

    async def explain(body: ExplanationRequest, trace: Trace) -> ExplanationAnswer:
        """Say which modality of which past item drove the scores, by which method, and how far to trust it."""
        deadline = border.deadline(body.timeout_ms)
        item_ids = None if body.item_ids is None else tuple(map(ItemId, body.item_ids))
        recommender = parts().recommender
        if body.recommendation_id is None:
            query = query_of(body, unit=trace.request_id)
            slate, explanation = await recommender.explain(query, item_ids=item_ids, deadline=deadline)
        else:
            slate, explanation = await recommender.explain_shown(
                body.recommendation_id, item_ids=item_ids, level=body.explain, method=body.method, deadline=deadline
            )
        note(trace, slate)
        return explanation_answer(slate, explanation, level=body.explain, took_ms=trace.took_ms())

    async def what_if(body: WhatIfRequest, trace: Trace) -> WhatIfAnswer:
        """Say what would be recommended if something of the history were not there, and what that moves.

        Modalities are switched off in all past items, past items as a whole. Both slates come from one version.
        """
        query = what_if_query(body, unit=trace.request_id)
        found = await parts().recommender.what_if(query, deadline=border.deadline(body.timeout_ms))
        note(trace, found.before)
        note(trace, replace(found.after, assignment=None))  # it is one answer
        return what_if_answer(found, took_ms=trace.took_ms())

    return [
        Direct(
            "/v1/recommendations",
            recommend,
            body=RecommendationRequest,
            answer=RecommendationAnswer,
            border=border,
            needs="serve",
            read=parse(RecommendationRequest),
            summary="Recommend items",
            tag="serving",
            check_room=check_room,
        ),
        Direct(
            _BATCH,
            recommend_batch,
            body=BatchRequest,
            answer=BatchAnswer,
            border=border,
            needs="serve",
            read=read_batch,
            summary="Recommend items to many",
            tag="serving",
        ),
        Direct(
            "/v1/explanations",
            explain,
            body=ExplanationRequest,
            answer=ExplanationAnswer,
            border=border,
            needs="explain",
            read=parse(ExplanationRequest),
            summary="Explain recommendations",
            tag="explanations",
            check_room=check_room,
        ),
        Direct(
            "/v1/what-if",
            what_if,
            body=WhatIfRequest,
            answer=WhatIfAnswer,
            border=border,
            needs="explain",
            read=parse(WhatIfRequest),
            summary="Switch something off in a history",
            tag="explanations",
            check_room=check_room,
        ),
    ]


def _moment(deadline: Deadline) -> float:
    return deadline.at
