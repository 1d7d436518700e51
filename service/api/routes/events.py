"""`POST /v1/events`: each event is judged on its own; those that are accepted are kept together, durably."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from api_schemas.events import Event, EventsAnswer, EventsRequest
from api_schemas.problem import FieldProblem
from service.api import problems
from service.api.parts import PartsSource
from service.api.routing import Border, Direct, Trace
from service.api.translate import event_of
from service.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """A request's events that can be read, and what is wrong with the others; by their place in the request."""

    events: Sequence[tuple[int, Event]]
    problems: Sequence[tuple[int, Sequence[FieldProblem]]] = ()


def read_events(body: bytes) -> ReadEvents:
    """Read a body; an event that is wrong does not take its neighbours with it.

    Raises:
        ApiError: The body is not JSON, or wrong as a whole: no list, too many events, an unknown field beside it.
    """
    try:
        return ReadEvents(list(enumerate(EventsRequest.model_validate_json(body).events)))
    except ValidationError as error:
        whole = problems.malformed(error)
        if whole is not None:
            raise whole from None
        content = from_json(body)
        if any(len(problem["loc"]) < 2 for problem in error.errors(include_url=False, include_input=False)):
            raise problems.invalid(error, content) from None
    good: list[tuple[int, Event]] = []
    bad: list[tuple[int, Sequence[FieldProblem]]] = []
    for index, value in enumerate(content["events"]):
        try:
            # "constants" keeps NaN what it is; the default would make it null, which some fields take
            good.append((index, Event.model_validate_json(to_json(value, inf_nan_mode="constants"))))
        except ValidationError as error:
            bad.append((index, _below(f"/events/{index}", problems.field_problems(error, value))))
    return ReadEvents(good, bad)


def event_routes(
    parts: PartsSource,
    border: Border,
    metrics: Metrics,
    *,
    max_future_s: float,
    clock: Callable[[], float] = time.time,
) -> list[Direct]:
    """Return the endpoint."""

    async def record(read: ReadEvents, trace: Trace) -> EventsAnswer:
        """Keep what users and sessions did; the next recommendation of each of them sees it.

        200 means that every accepted event is on disk. Events are told apart by `event_id`, so a request that was
        answered with 503, or not at all, can be sent again unchanged. An event that is wrong is listed in `rejected`
        and does not hold up the others. The item need not be in the catalogue: it may be new.
        """
        latest = clock() + max_future_s
        rejected = list(read.problems)
        kept = []
        for index, event in read.events:
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
        Direct(
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


def _below(prefix: str, found: Sequence[FieldProblem]) -> list[FieldProblem]:
    return [problem.model_copy(update={"pointer": prefix + problem.pointer}) for problem in found]


def _in_future(index: int, max_future_s: float) -> FieldProblem:
    return FieldProblem(
        pointer=f"/events/{index}/occurred_at",
        code="in_future",
        detail=f"Input should lie at most {max_future_s:g} s ahead of the service's clock",
    )
