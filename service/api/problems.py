"""What every error looks like on the wire: one closed list of types, one place where errors become them.

Core errors know no HTTP; the table `PROBLEMS` says what each becomes. A test holds that it is complete, another that
docs/errors.md has a heading for every type.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from api_schemas.problem import TYPE_PREFIX, FieldProblem, Problem
from service.recommend import errors as core

CONTENT_TYPE = b"application/problem+json"
MAX_FIELD_PROBLEMS = 50
"""A body may have a mistake in every line; the first ones are enough to find it."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem: its slug never changes, its title is for people."""

    slug: str
    title: str
    status: int


MALFORMED_JSON = ProblemType("malformed-json", "The body is not JSON", 400)
UNAUTHENTICATED = ProblemType("unauthenticated", "A valid API key is needed", 401)
FORBIDDEN = ProblemType("forbidden", "Not allowed", 403)
NOT_FOUND = ProblemType("not-found", "Nothing is there", 404)
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", "The path is there, for another method", 405)
REQUEST_TIMEOUT = ProblemType("request-timeout", "The body did not arrive in time", 408)
CONFLICT = ProblemType("conflict", "What is kept does not allow this", 409)
PAYLOAD_TOO_LARGE = ProblemType("payload-too-large", "The body is too large", 413)
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", "The body must be application/json", 415)
VALIDATION_ERROR = ProblemType("validation-error", "The request is not valid", 422)
RATE_LIMITED = ProblemType("rate-limited", "The key has sent too many requests", 429)
INTERNAL = ProblemType("internal", "Something went wrong on our side", 500)
OVERLOADED = ProblemType("overloaded", "Too many requests right now", 503)
NOT_READY = ProblemType("not-ready", "No model is loaded yet", 503)
STORE_UNAVAILABLE = ProblemType("store-unavailable", "The event store does not answer", 503)
DEADLINE_EXCEEDED = ProblemType("deadline-exceeded", "The time for this request is over", 504)

PROBLEM_TYPES = (
    MALFORMED_JSON,
    UNAUTHENTICATED,
    FORBIDDEN,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    REQUEST_TIMEOUT,
    CONFLICT,
    PAYLOAD_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    VALIDATION_ERROR,
    RATE_LIMITED,
    INTERNAL,
    OVERLOADED,
    NOT_READY,
    STORE_UNAVAILABLE,
    DEADLINE_EXCEEDED,
)

PROBLEMS: Mapping[type[core.RecommendError], ProblemType] = {
    core.NotFound: NOT_FOUND,
    core.ItemNotFound: NOT_FOUND,
    core.ModelNotFound: NOT_FOUND,
    core.RecommendationNotFound: NOT_FOUND,
    core.Conflict: CONFLICT,
    core.BlocksFull: CONFLICT,
    core.ScenarioNotFound: NOT_FOUND,
    core.ChangesFull: CONFLICT,
    core.InvalidQuery: VALIDATION_ERROR,
    core.Overloaded: OVERLOADED,
    core.NoServable: NOT_READY,
    core.StoreUnavailable: STORE_UNAVAILABLE,
    core.DeadlineExceeded: DEADLINE_EXCEEDED,
}

# What the caller may know of our own troubles; the rest (addresses, paths, exceptions) is in the log.
_PUBLIC_DETAIL: Mapping[ProblemType, str] = {
    OVERLOADED: "The service has as many requests in flight as it takes; try again shortly.",
    NOT_READY: "No version of the model is loaded; see /readyz.",
    STORE_UNAVAILABLE: "The event store does not answer; nothing of this request is kept. Send it again, unchanged.",
    DEADLINE_EXCEEDED: "The answer was not ready in the time given.",
}


class ApiError(Exception):
    """An error that the border itself finds, before the core is asked."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Reply:
    """A problem ready to be sent."""

    problem: Problem
    kind: ProblemType
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """Return the problem as JSON."""
        return to_json(self.problem)


def to_json(problem: Problem) -> bytes:
    """Return a problem as it is sent: without `errors` when no field is to blame."""
    return problem.model_dump_json(exclude_defaults=True).encode()


def reply_to(error: Exception, *, instance: str, request_id: str) -> Reply:
    """Say an error as a problem. What is not on the list becomes `internal`, with nothing of it in the body."""
    headers: list[tuple[bytes, bytes]] = []
    errors: Sequence[FieldProblem] = ()
    if isinstance(error, ApiError):
        kind, detail, errors = error.kind, error.detail, error.errors
        headers += error.headers
    elif isinstance(error, core.RecommendError) and type(error) in PROBLEMS:
        kind = PROBLEMS[type(error)]
        detail = _PUBLIC_DETAIL.get(kind, str(error))
        if isinstance(error, core.InvalidQuery):
            detail = "One field can not be answered."
            errors = [FieldProblem(pointer=error.pointer, code="not_answerable", detail=error.detail)]
        retry_after_s = getattr(error, "retry_after_s", None)
        if retry_after_s is not None:
            headers.append((b"retry-after", str(retry_after_s).encode()))
    else:
        kind, detail = INTERNAL, "The log has more under this request id."
    return Reply(make(kind, detail, instance=instance, request_id=request_id, errors=errors), kind, headers)


def make(
    kind: ProblemType, detail: str, *, instance: str, request_id: str, errors: Sequence[FieldProblem] = ()
) -> Problem:
    """Return a problem of a type."""
    return Problem(
        type=f"{TYPE_PREFIX}{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=instance,
        request_id=request_id,
        errors=list(errors),
    )


def malformed(error: ValidationError) -> ApiError | None:
    """Return the error for a body that is not JSON; None when it is JSON and says something wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] != "json_invalid":
        return None
    return ApiError(MALFORMED_JSON, first["msg"].removeprefix("Invalid JSON: ")[:200])


def invalid(error: ValidationError, body: object) -> ApiError:
    """Return the error for a body that is JSON and says something wrong, field by field.

    Args:
        error: What pydantic found.
        body: The JSON value: a pointer must lead to a place in it.
    """
    found = field_problems(error, body)
    count = error.error_count()
    detail = f"{found[0].pointer or 'The body'}: {found[0].detail}" + (f" ({count} problems)" if count > 1 else "")
    return ApiError(VALIDATION_ERROR, detail[:500], errors=found)


def field_problems(error: ValidationError, body: object) -> list[FieldProblem]:
    """Return what is wrong, one entry for each pointer with all that was said of it, `MAX_FIELD_PROBLEMS` at most."""
    found: dict[str, tuple[str, list[str]]] = {}
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        pointer = pointer_of(problem["loc"], body, missing=problem["type"] == "missing")
        if pointer not in found and len(found) == MAX_FIELD_PROBLEMS:
            break
        _, said = found.setdefault(pointer, (problem["type"], []))
        if problem["msg"] not in said:
            said.append(problem["msg"])
    return [
        FieldProblem(pointer=pointer, code=code, detail="; or: ".join(said)) for pointer, (code, said) in found.items()
    ]


def pointer_of(location: Sequence[int | str], body: object, *, missing: bool) -> str:
    """Return the JSON pointer of a place in `body`.

    Pydantic's locations also name the members of unions that were tried; what is no step in the body ends the pointer.
    """
    pointer = ""
    here = body
    for position, step in enumerate(location):
        if (isinstance(here, dict) and step in here) or (isinstance(here, list) and step in range(len(here))):
            here = here[step]  # type: ignore[index]  # a list and a number, or a dict and one of its keys
        elif not (missing and position == len(location) - 1):
            break
        pointer += "/" + str(step).replace("~", "~0").replace("/", "~1")
    return pointer[:300]


def parse_leniently(body: bytes) -> object:
    """Return what a body says that has been found to be JSON, for pointers into it; None when Python reads it not."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
