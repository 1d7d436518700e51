"""`POST /v1/items/bulk`: many changes of items, a line each; read as they come, and each judged on its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.catalogue import MAX_LINE_BYTES, MAX_LINES, BulkAnswer, DeleteLine, PatchLine, PutLine
from api_schemas.problem import FieldProblem, Problem
from service.api import problems
from service.api.once import keyed
from service.api.parts import PartsSource
from service.api.problems import ApiError
from service.api.routes.catalogue import patch_of, put_of
from service.api.routing import PROBLEM_RESPONSES, TRACE, Border, secured
from service.recommend.catalogue import ItemEdit
from service.recommend.errors import RecommendError
from service.recommend.types import ItemId

PATH = "/v1/items/bulk"

BATCH_LINES = 200
BATCH_BYTES = 4_000_000
"""So much is kept, and encoded, together."""

_LINES: Mapping[str, type[PutLine] | type[PatchLine] | type[DeleteLine]] = {
    "put": PutLine,
    "patch": PatchLine,
    "delete": DeleteLine,
}
_LINE_SCHEMA = {
    "type": "string",
    "description": "A JSON object a line: `op` (put, patch or delete), `item_id`, and for put and patch the fields of "
    "the body of the method of that name.",
}


def bulk_routes(parts: PartsSource, border: Border) -> APIRouter:
    """Return the endpoint."""
    router = APIRouter(tags=["items"], responses=PROBLEM_RESPONSES, route_class=keyed(APIRoute, parts, border))

    @router.post(
        PATH,
        response_model=BulkAnswer,
        summary="Change many items",
        openapi_extra={
            **secured("admin"),
            "requestBody": {"required": True, "content": {"application/x-ndjson": {"schema": _LINE_SCHEMA}}},
        },
        dependencies=[Depends(border.guard(PATH, needs="admin"))],
    )
    async def bulk(request: Request) -> Response:
        """Add, change and delete many items: a JSON object a line, at most 10,000 of them.

        A line that is wrong is listed in `rejected` and does not hold up the others. What was accepted is on disk and
        in the next answer. Lines may be sent again: the same change twice is that change.
        """
        answer = _Answer(border, instance=request.scope["path"], request_id=request.scope[TRACE].request_id)
        batch = _Batch()
        lines = border.read_lines(request.scope, request.receive, max_line_bytes=MAX_LINE_BYTES)
        num_lines = 0
        async for number, line in lines:
            num_lines += 1
            if num_lines > MAX_LINES:
                answer.unread_from = number
                break
            try:
                batch.add(number, _edit_of(line), size_bytes=len(line or b""))
            except ApiError as error:
                answer.reject(number, error)
            if batch.is_full:
                full, batch = batch, _Batch()
                if not await answer.keep(parts, full):
                    answer.unread_from = number + 1
                    break
        await answer.keep(parts, batch)
        return answer.response()

    return router


@dataclass(slots=True)
class _Batch:
    """Lines that are kept together."""

    edits: list[tuple[int, ItemEdit]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, number: int, edit: ItemEdit, *, size_bytes: int) -> None:
        self.edits.append((number, edit))
        self.size_bytes += size_bytes

    @property
    def is_full(self) -> bool:
        return len(self.edits) >= BATCH_LINES or self.size_bytes >= BATCH_BYTES


class _Answer:
    """What became of the lines so far."""

    def __init__(self, border: Border, *, instance: str, request_id: str) -> None:
        self._border = border
        self._instance, self._request_id = instance, request_id
        self.accepted = 0
        self.rejected: list[tuple[int, Problem]] = []
        self.unread_from: int | None = None

    def reject(self, number: int, error: Exception) -> None:
        """Note why a line changed nothing."""
        reply = problems.reply_to(error, instance=self._instance, request_id=self._request_id)
        self.rejected.append((number, reply.problem))

    async def keep(self, parts: PartsSource, batch: _Batch) -> bool:
        """Keep a batch, if there is anything in it; return False when it could not be, and no more should be read.

        Raises:
            RecommendError: The same, and nothing of the request has been kept.
        """
        if not batch.edits:
            return True
        try:
            results: Sequence[int | RecommendError] = await parts().items.apply(
                [edit for _, edit in batch.edits], deadline=self._border.deadline(None)
            )
        except RecommendError as error:
            if not self.accepted:
                raise
            for number, _ in batch.edits:
                self.reject(number, error)
            return False
        for (number, _), result in zip(batch.edits, results, strict=True):
            if isinstance(result, RecommendError):
                self.reject(number, result)
            else:
                self.accepted += 1
        return True

    def response(self) -> Response:
        """Return the answer."""
        answer: BulkAnswer = {
            "accepted": self.accepted,
            "rejected": [
                {"line": number, "problem": problem} for number, problem in sorted(self.rejected, key=_number)
            ],
            "unread_from": self.unread_from,
        }
        return Response(to_json(answer), media_type="application/json")


def _number(rejected: tuple[int, Problem]) -> int:
    return rejected[0]


def _edit_of(line: bytes | None) -> ItemEdit:
    """Read a line.

    Raises:
        ApiError: It is too long, no JSON, or says something wrong.
    """
    if line is None:
        raise ApiError(problems.PAYLOAD_TOO_LARGE, f"A line may have {MAX_LINE_BYTES} bytes.")
    try:
        value = from_json(line)
    except ValueError as error:
        raise ApiError(problems.MALFORMED_JSON, str(error)[:200]) from None
    op = value.get("op") if isinstance(value, dict) else None
    model = _LINES.get(op) if isinstance(op, str) else None
    if model is None:
        wrong = FieldProblem(pointer="/op", code="op", detail="Input should be put, patch or delete")
        raise ApiError(problems.VALIDATION_ERROR, f"{wrong.pointer}: {wrong.detail}", errors=[wrong])
    try:
        body = model.model_validate_json(line)
    except ValidationError as error:
        raise problems.malformed(error) or problems.invalid(error, value) from None
    if isinstance(body, PutLine):
        return put_of(body.item_id, body)
    if isinstance(body, PatchLine):
        return patch_of(body.item_id, body)
    return ItemEdit(ItemId(body.item_id), "delete")
