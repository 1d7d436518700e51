"""`POST /v1/recommendations` and `POST /v1/explanations`."""

from api_schemas.explain import ExplanationAnswer, ExplanationRequest
from api_schemas.recommend import RecommendationAnswer, RecommendationRequest
from service.api.parts import PartsSource
from service.api.routing import Border, Direct, Trace, parse
from service.api.translate import explanation_answer, query_of, recommendation_answer
from service.observability.metrics import Metrics
from service.recommend.types import ItemId, Slate


def recommendation_routes(parts: PartsSource, border: Border, metrics: Metrics) -> list[Direct]:
    """Return the two endpoints."""

    def note(trace: Trace, slate: Slate) -> None:
        trace.timings_ms = slate.timings_ms
        for reason in slate.degraded:
            metrics.degraded.labels(reason).inc()
        if slate.assignment is not None:
            metrics.arms.labels(slate.assignment.experiment, slate.assignment.arm).inc()

    async def recommend(body: RecommendationRequest, trace: Trace) -> RecommendationAnswer:
        """Recommend items to a user, a session or a history that comes with the request.

        An unknown user is no error: without any history the answer is what is popular, and says so.
        """
        deadline = border.deadline(body.timeout_ms)
        slate = await parts().recommender.recommend(query_of(body, unit=trace.request_id), deadline=deadline)
        note(trace, slate)
        return recommendation_answer(slate, level=body.explain, took_ms=trace.took_ms())

    async def explain(body: ExplanationRequest, trace: Trace) -> ExplanationAnswer:
        """Say which modality of which past item drove the scores, by which method, and how far to trust it."""
        deadline = border.deadline(body.timeout_ms)
        item_ids = None if body.item_ids is None else tuple(map(ItemId, body.item_ids))
        slate, explanation = await parts().recommender.explain(
            query_of(body, unit=trace.request_id), item_ids=item_ids, deadline=deadline
        )
        note(trace, slate)
        return explanation_answer(slate, explanation, level=body.explain, took_ms=trace.took_ms())

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
        ),
    ]
