"""`/v1/users/{user_id}/...`: what is kept of a user is theirs to see, to take away, to move and to add blocks to."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.fields import ExternalId
from api_schemas.users import BlocksAnswer, EventsPage, EventsQuery, KeptEvent, MergeAnswer, MergeRequest
from service.api.cursors import read_cursor, write_cursor
from service.api.once import keyed
from service.api.parts import PartsSource
from service.api.routing import PROBLEM_RESPONSES, Border, SegmentRoute, json_body, parse, secured
from service.recommend import ports
from service.recommend.types import ItemId, session_subject, user_subject

UserId = Annotated[ExternalId, Path(description="Yours, percent-encoded; an unknown user is no error.")]
BlockedId = Annotated[ExternalId, Path(description="Need not be in the catalogue; percent-encoded.")]

_USER = "/v1/users/{user_id}"
_EVENTS = f"{_USER}/events"
_MERGE = f"{_USER}/merge"
_BLOCKS = f"{_USER}/blocks"
_BLOCK = f"{_BLOCKS}/{{item_id}}"


def user_routes(parts: PartsSource, border: Border, *, clock: Callable[[], float] = time.time) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter(tags=["users"], responses=PROBLEM_RESPONSES, route_class=keyed(SegmentRoute, parts, border))
    read_merge = parse(MergeRequest)

    @router.get(
        _EVENTS,
        response_model=EventsPage,
        summary="List a user's events",
        openapi_extra=secured("events"),
        dependencies=[Depends(border.guard(_EVENTS, needs="events"))],
    )
    async def events(user_id: UserId, query: Annotated[EventsQuery, Query()]) -> Response:
        """List what is kept of what a user did, newest first, a page at a time.

        A cursor stays good while events arrive: the pages after it hold what was there, each event once.
        """
        before = ports.NEWEST if query.cursor is None else read_cursor(query.cursor)
        kept = await parts().users.events(user_subject(user_id), before=before, limit=query.limit + 1)
        page: EventsPage = {
            "events": [_event(one) for one in kept[: query.limit]],
            "next_cursor": write_cursor(kept[query.limit - 1].place) if len(kept) > query.limit else None,
        }
        return _json(page)

    @router.delete(
        _USER,
        status_code=204,
        summary="Erase a user",
        openapi_extra=secured("events"),
        dependencies=[Depends(border.guard(_USER, needs="events"))],
    )
    async def erase(user_id: UserId) -> Response:
        """Forget all that is kept of a user: events, their ids, blocks, what was shown. It is on disk when this ends.

        The next recommendation knows nothing of it, whichever worker answers. Erasing an unknown user is no error. What
        a model has learned of its users before lies in its bundle until the next training without them.
        """
        await parts().shown.forget(user_subject(user_id))
        await parts().users.erase(user_subject(user_id))
        return Response(status_code=204)

    @router.post(
        _MERGE,
        response_model=MergeAnswer,
        summary="Merge a session into a user",
        openapi_extra={**secured("events"), **json_body(MergeRequest)},
        dependencies=[Depends(border.guard(_MERGE, needs="events"))],
    )
    async def merge(user_id: UserId, request: Request) -> Response:
        """Make what was done in a session the user's, when somebody signs in: events, blocks, all at once.

        Afterwards nothing is kept of the session, so merging again changes nothing. Of more events than are kept of a
        user the oldest go; if there would be too many blocks it is a `conflict`, and nothing changes.
        """
        body = read_merge(await border.read_json(request.scope, request.receive))
        session = session_subject(body.session_id)
        merged = await parts().users.merge(session, into=user_subject(user_id))
        await parts().shown.forget(session)
        answer: MergeAnswer = {"events": merged.num_events, "blocks": merged.num_blocks}
        return _json(answer)

    @router.get(
        _BLOCKS,
        response_model=BlocksAnswer,
        summary="List a user's blocks",
        openapi_extra=secured("events"),
        dependencies=[Depends(border.guard(_BLOCKS, needs="events"))],
    )
    async def blocks(user_id: UserId) -> Response:
        """List the items that a user is never shown, the latest first."""
        answer: BlocksAnswer = {
            "blocks": [
                {"item_id": one.item_id, "blocked_at": _moment(one.blocked_at)}
                for one in await parts().users.blocks(user_subject(user_id))
            ]
        }
        return _json(answer)

    @router.put(
        _BLOCK,
        status_code=204,
        summary="Block an item for a user",
        openapi_extra=secured("events"),
        dependencies=[Depends(border.guard(_BLOCK, needs="events"))],
    )
    async def block(user_id: UserId, item_id: BlockedId) -> Response:
        """Never show an item to a user again, whatever a request asks for: what they sell, or do not want to see.

        It holds from the next recommendation on. A block is no event: it says nothing of the user's interest.
        """
        await parts().users.block(user_subject(user_id), ItemId(item_id), at=clock())
        return Response(status_code=204)

    @router.delete(
        _BLOCK,
        status_code=204,
        summary="Unblock an item for a user",
        openapi_extra=secured("events"),
        dependencies=[Depends(border.guard(_BLOCK, needs="events"))],
    )
    async def unblock(user_id: UserId, item_id: BlockedId) -> Response:
        """Take a block back. Where there is none, nothing changes."""
        await parts().users.unblock(user_subject(user_id), ItemId(item_id))
        return Response(status_code=204)

    return router


def _event(kept: ports.KeptEvent) -> KeptEvent:
    event = kept.event
    return {
        "event_id": event.event_id,
        "item_id": event.item_id,
        "type": event.type,
        "value": event.value,
        "occurred_at": _moment(event.occurred_at),
        "recommendation_id": event.recommendation_id,
    }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _json(answer: EventsPage | MergeAnswer | BlocksAnswer) -> Response:
    return Response(to_json(answer), media_type="application/json")
