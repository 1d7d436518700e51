"""`GET /v1/items/{item_id}/similar` and `GET /v1/popular`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.fields import ExternalId
from api_schemas.items import ListQuery, SimilarQuery
from api_schemas.recommend import ItemsAnswer
from service.api.parts import PartsSource
from service.api.routing import PROBLEM_RESPONSES, Border, Trace, secured, trace_of
from service.api.translate import items_answer
from service.observability.metrics import Metrics
from service.recommend.errors import InvalidQuery
from service.recommend.types import ItemId, Listing


def item_routes(parts: PartsSource, border: Border, metrics: Metrics) -> APIRouter:
    """Return the two endpoints."""
    router = APIRouter(tags=["serving"], responses=PROBLEM_RESPONSES)

    def answer(listing: Listing, trace: Trace) -> Response:
        trace.timings_ms = listing.timings_ms
        metrics.count_arm(listing.assignment)
        return Response(to_json(items_answer(listing, took_ms=trace.took_ms())), media_type="application/json")

    @router.get(
        "/v1/items/{item_id:path}/similar",
        response_model=ItemsAnswer,
        summary="List similar items",
        openapi_extra=secured("serve"),
        dependencies=[Depends(border.guard("/v1/items/{item_id}/similar", needs="serve"))],
    )
    async def similar(
        request: Request,
        item_id: Annotated[ExternalId, Path(description="An item of the catalogue, percent-encoded.")],
        query: Annotated[SimilarQuery, Query()],
    ) -> Response:
        """List what is most like an item, by everything that is known of it or by one modality."""
        trace = trace_of(request)
        try:
            listing = await parts().recommender.similar(
                ItemId(item_id),
                k=query.k,
                modality=query.modality,
                scenario=query.scenario,
                unit=trace.request_id,
                deadline=border.deadline(None),
            )
        except InvalidQuery as error:  # the core names fields as in a body; here they are in the query
            raise InvalidQuery(f"?{error.pointer.removeprefix('/')}", error.detail) from None
        return answer(listing, trace)

    @router.get(
        "/v1/popular",
        response_model=ItemsAnswer,
        summary="List popular items",
        openapi_extra=secured("serve"),
        dependencies=[Depends(border.guard("/v1/popular", needs="serve"))],
    )
    async def popular(request: Request, query: Annotated[ListQuery, Query()]) -> Response:
        """List what is most popular: the answer for those of whom nothing is known."""
        trace = trace_of(request)
        listing = await parts().recommender.popular(
            k=query.k, scenario=query.scenario, unit=trace.request_id, deadline=border.deadline(None)
        )
        return answer(listing, trace)

    return router
