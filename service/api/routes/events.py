"""`POST /v1/events`: each event is judged on its own; those that are accepted are kept together, durably."""

import time
from collections.abc import Callable

from api_schemas.events import Event, EventsAnswer, EventsRequest
from api_schemas.problem import FieldProblem
from service.api import problems
from service.api.lists import ReadList, read_list
from service.api.once import keyed
from service.api.parts import PartsSource
from service.api.routing import Border, Direct, Trace
from service.api.translate import event_of
from service.observability.metrics import Metrics


def read_events(body: bytes) -> ReadList[EventsRequest, Event]:
    """Read a body; an event that is wrong does not take its neighbours with it.

    Raises:
        ApiError: The body is not JSON, or wrong as a whole: no list, too many events, an unknown field beside it.
    """
    return read_list(body, EventsRequest, Event, field="events")


def event_routes(
    parts: PartsSource,
    border: Border,
    metrics: Metrics,
    *,
    max_future_s: float,
    clock: Callable[[], float] = time.time,
) -> list[Direct]:
    """Return the endpoint."""

    async def record(read: ReadList[EventsRequest, Event], trace: Trace) -> EventsAnswer:
        """Keep what users and sessions did; the next recommendation of each of them sees it.

        200 means that every accepted event is on disk. Events are told apart by `event_id`, so a request that was
        answered with 503, or not at all, can be sent again unchanged. An event that is wrong is listed in `rejected`
        and does not hold up the others. The item need not be in the catalogue: it may be new.
        """
        latest = clock() + max_future_s
        rejected = list(read.problems)
        kept = []
        for index, event in read.entries:
            if event.occurred_at.timestamp() > latest:
                rejected.append((index, [_in_future(index, max_future_s)]))
            else:
                kept.append(event_of(event))
        started = time.perf_counter()
        fresh = await parts().events.append(kept)
        trace.timings_ms = {"store": (time.perf_counter() - started) * 1e3}
        accepted = sum(fresh)
        for outcome, count in (
            ("accepted", accepted),
            ("duplicate", len(fresh) - accepted),
            ("rejected", len(rejected)),
        ):
            metrics.events[outcome].inc(count)
        rejected.sort(key=lambda entry: entry[0])
        return {
            "accepted": accepted,
            "duplicates": len(fresh) - accepted,
            "rejected": [
                {
                    "index": index,
                    "problem": problems.make(
                        problems.VALIDATION_ERROR,
                        f"{found[0].pointer}: {found[0].detail}",
                        instance="/v1/events",
                        request_id=trace.request_id,
                        errors=found,
                    ),
                }
                for index, found in rejected
            ],
        }

    return [
        keyed(Direct, parts, border)(
            "/v1/events",
            record,
            body=EventsRequest,
            answer=EventsAnswer,
            border=border,
            needs="events",
            read=read_events,
            summary="Record events",
            tag="events",
        )
    ]


def _in_future(index: int, max_future_s: float) -> FieldProblem:
    return FieldProblem(
        pointer=f"/events/{index}/occurred_at",
        code="in_future",
        detail=f"Input should lie at most {max_future_s:g} s ahead of the service's clock",
    )
