"""Single items: `PUT`, `PATCH`, `DELETE` and `GET /v1/items/{item_id}`."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Path
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from api_schemas.catalogue import ItemAnswer, ItemChanged, ItemPatch, ItemPut
from api_schemas.fields import ExternalId
from api_schemas.problem import FieldProblem
from service.api import problems
from service.api.once import keyed
from service.api.parts import PartsSource
from service.api.problems import ApiError
from service.api.routing import PROBLEM_RESPONSES, Border, Direct, Trace, parse, secured
from service.recommend.catalogue import ItemEdit
from service.recommend.errors import RecommendError
from service.recommend.items import METADATA_FIELDS
from service.recommend.types import ItemId, Vectors

PATH = "/v1/items/{item_id:path}"
ROUTE = "/v1/items/{item_id}"

_ID: TypeAdapter[str] = TypeAdapter(ExternalId)
_Named = Annotated[ExternalId, Path(description="An item, percent-encoded.")]


def catalogue_routes(parts: PartsSource, border: Border) -> list[BaseRoute]:
    """Return the four endpoints."""

    async def put_item(item_id: _Named, body: ItemPut, _trace: Trace) -> ItemChanged:
        """Add an item, or replace all that is known of it.

        200 means that the item is on disk and in the next answer of every process: found by its vectors, filtered by
        its categories and attributes. A new item has no popularity until the index is rebuilt.
        """
        return await _apply(put_of(item_id, body))

    async def patch_item(item_id: _Named, body: ItemPatch, _trace: Trace) -> ItemChanged:
        """Hide an item, show it again, or change what is said of it; its vectors stay as they are.

        200 means that this is on disk and in the next answer of every process. A hidden item is in none of them; what
        users did with it still counts.
        """
        return await _apply(patch_of(item_id, body))

    async def _apply(edit: ItemEdit) -> ItemChanged:
        _check_id(edit.item_id)
        (result,) = await parts().items.apply([edit], deadline=border.deadline(None))
        if isinstance(result, RecommendError):
            raise result
        return {"item_id": edit.item_id, "seq": result}

    router = APIRouter(tags=["items"], responses=PROBLEM_RESPONSES, route_class=keyed(APIRoute, parts, border))
    guarded = [Depends(border.guard(ROUTE, needs="admin"))]

    @router.get(
        PATH,
        response_model=ItemAnswer,
        summary="Show an item",
        openapi_extra=secured("admin"),
        dependencies=guarded,
    )
    async def get_item(item_id: _Named) -> Response:
        """Show what is known of an item, hidden or not, with all changes."""
        item = await parts().items.get(ItemId(item_id))
        answer: ItemAnswer = {
            "item_id": item.item_id,
            "available": item.available,
            "modalities": list(item.modalities),
            "metadata": item.metadata,
        }
        return _json(answer)

    @router.delete(
        PATH,
        response_model=ItemChanged,
        summary="Delete an item",
        openapi_extra=secured("admin"),
        dependencies=guarded,
    )
    async def delete_item(_request: Request, item_id: _Named) -> Response:
        """Delete an item. 200 means that this is on disk: it is in no further answer, and counts as unknown."""
        return _json(await _apply(ItemEdit(ItemId(item_id), "delete")))

    write = keyed(Direct, parts, border)
    return [
        write(
            PATH, put_item, method="PUT", body=ItemPut, answer=ItemChanged, border=border, needs="admin",
            read=parse(ItemPut), summary="Add or replace an item", tag="items",
        ),
        write(
            PATH, patch_item, method="PATCH", body=ItemPatch, answer=ItemChanged, border=border, needs="admin",
            read=parse(ItemPatch), summary="Change an item", tag="items",
        ),
        *router.routes,
    ]  # fmt: skip


def put_of(item_id: str, body: ItemPut) -> ItemEdit:
    """Return the change that a body asks for."""
    said = body.model_dump(include={*METADATA_FIELDS}, exclude_defaults=True)
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, which the core refuses
        modalities: dict[str, Vectors] = {
            name: np.asarray(vector, dtype=np.float32) for name, vector in body.modalities.items()
        }
    return ItemEdit(ItemId(item_id), "put", said, None if body.available else False, modalities)


def patch_of(item_id: str, body: ItemPatch) -> ItemEdit:
    """Return the change that a body asks for."""
    said = body.model_dump(include={*METADATA_FIELDS}, exclude_unset=True)
    return ItemEdit(ItemId(item_id), "patch", said, body.available if "available" in body.model_fields_set else None)


def _check_id(item_id: str) -> None:
    """Check what FastAPI checks of other routes.

    Raises:
        ApiError: It is no id.
    """
    try:
        _ID.validate_python(item_id)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False)
        found = FieldProblem(pointer="{item_id}", code=first["type"], detail=first["msg"])
        raise ApiError(problems.VALIDATION_ERROR, f"{found.pointer}: {found.detail}", errors=[found]) from None


def _json(answer: ItemAnswer | ItemChanged) -> Response:
    return Response(to_json(answer), media_type="application/json")
