"""`GET /v1/models/{name}/modalities`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.responses import Response

from api_schemas.fields import ExternalId
from api_schemas.models import ModelModalities
from service.api.parts import PartsSource
from service.api.routing import PROBLEM_RESPONSES, Border, secured
from service.api.translate import model_answer


def model_routes(parts: PartsSource, border: Border) -> APIRouter:
    """Return the endpoint."""
    router = APIRouter(tags=["explanations"], responses=PROBLEM_RESPONSES)

    @router.get(
        "/v1/models/{name}/modalities",
        response_model=ModelModalities,
        summary="Describe a model",
        openapi_extra=secured("explain"),
        dependencies=[Depends(border.guard("/v1/models/{name}/modalities", needs="explain"))],
    )
    async def modalities(
        name: Annotated[ExternalId, Path(description="The family or the version of the model that answers.")],
    ) -> Response:
        """Say what the model is made of: its modalities and how much of each it uses, and what it adds to them."""
        answer = model_answer(parts().recommender.model(name))
        return Response(answer.model_dump_json(), media_type="application/json")

    return router
