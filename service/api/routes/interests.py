"""`GET /v1/users/{user_id}/interests`."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.users import InterestsAnswer, InterestsQuery, InterestWindow
from service.api.parts import PartsSource
from service.api.routes.users import UserId
from service.api.routing import PROBLEM_RESPONSES, Border, SegmentRoute, secured, trace_of
from service.api.translate import experiment, index_version, modality_shares, model_version
from service.observability.metrics import Metrics
from service.recommend.errors import InvalidQuery
from service.recommend.interests import Interests, WindowInterest
from service.recommend.types import user_subject

_INTERESTS = "/v1/users/{user_id}/interests"
_UNITS_S = {"h": 3_600, "d": 86_400, "w": 604_800}


def interest_routes(parts: PartsSource, border: Border, metrics: Metrics) -> APIRouter:
    """Return the endpoint."""
    router = APIRouter(tags=["explanations"], responses=PROBLEM_RESPONSES, route_class=SegmentRoute)

    @router.get(
        _INTERESTS,
        response_model=InterestsAnswer,
        summary="Follow a user's interest over time",
        openapi_extra=secured("explain"),
        dependencies=[Depends(border.guard(_INTERESTS, needs="explain"))],
    )
    async def interests(request: Request, user_id: UserId, query: Annotated[InterestsQuery, Query()]) -> Response:
        """Say how a user's interest was shared among modalities at the end of each window of their history.

        The shares are those of `modality_interest` of a recommendation made at the window's end, by the model that
        answers now: from all events up to there, not from the window's alone.
        """
        trace = trace_of(request)
        try:
            found = await parts().interests.of(
                user_subject(user_id),
                window_s=int(query.window[:-1]) * _UNITS_S[query.window[-1]],
                limit=query.limit,
                method=query.method,
                scenario=query.scenario,
                deadline=border.deadline(query.timeout_ms),
            )
        except InvalidQuery as error:  # the core names fields as in a body; here they are in the query
            raise InvalidQuery(f"?{error.pointer.removeprefix('/')}", error.detail) from None
        for reason in found.degraded:
            metrics.degraded.labels(reason).inc()
        metrics.count_arm(found.assignment)
        return Response(to_json(_answer(found, took_ms=trace.took_ms())), media_type="application/json")

    return router


def _answer(found: Interests, *, took_ms: float) -> InterestsAnswer:
    answer: InterestsAnswer = {
        "windows": [_window(one) for one in found.windows],
        "faithfulness": dict(found.faithfulness),
        "caveats": list(found.caveats),
        "model": model_version(found.version),
        "ranker": None if found.ranker is None else model_version(found.ranker),
        "index": index_version(found.version),
        "degraded": list(found.degraded),
        "took_ms": round(took_ms, 3),
    }
    if found.assignment is not None:
        answer["experiment"] = experiment(found.assignment)
    return answer


def _window(one: WindowInterest) -> InterestWindow:
    return {
        "starts_at": datetime.fromtimestamp(one.window.starts_at, UTC),
        "ends_at": datetime.fromtimestamp(one.window.ends_at, UTC),
        "num_events": one.window.num_events,
        "events_used": one.events_used,
        "modality_interest": modality_shares(one.modality_interest),
        "method": one.method,
    }
