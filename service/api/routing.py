"""How a request reaches its endpoint: `Direct` routes for what is called thousands of times a second.

FastAPI documents these routes from their signatures as it does any other, but does not call them: its dependency
machinery costs several times what reading the body and writing the answer cost. A `Direct` endpoint takes the parsed
body and the request's `Trace`, returns what its signature says, and raises errors of the core or `ApiError`.
"""

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import unquote

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from api_schemas.problem import Problem
from service.api import problems
from service.api.access import Access, Caller
from service.api.keys import Scope as KeyScope
from service.api.limits import Allowance
from service.api.problems import ApiError
from service.observability.tracing import trace_id_of
from service.recommend.deadline import Deadline
from service.recommend.random_ids import random_id

BodyT = TypeVar("BodyT", bound=BaseModel)
TRACE = "prismrec.trace"
_JSON = b"application/json"
_NDJSON = b"application/x-ndjson"
PROBLEM_RESPONSES: dict[int | str, dict[str, object]] = {
    "4XX": {"model": Problem, "description": "What is wrong with the request."},
    "5XX": {"model": Problem, "description": "Why it can not be answered now."},
    422: {"model": Problem, "description": "A field is not valid; `errors` names it."},
}
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class Trace:
    """What is known of one request from its first byte to its last."""

    __slots__ = ("allowance", "headers", "problem", "request_id", "route", "started", "status", "timings_ms")

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else random_id(12)
        self.headers = headers
        self.started = time.perf_counter()
        self.timings_ms: Mapping[str, float] = {}
        self.route = "other"
        self.status = 0
        self.allowance: Allowance | None = None
        self.problem: str | None = None

    @property
    def trace_id(self) -> str | None:
        """The trace that the request belongs to (W3C Trace Context); None: to none."""
        return trace_id_of(self.headers.get(b"traceparent"))

    def took_ms(self) -> float:
        """Return the milliseconds since the request came in."""
        return (time.perf_counter() - self.started) * 1e3


def trace_of(request: Request) -> Trace:
    """Return what is known of a request."""
    trace: Trace = request.scope[TRACE]
    return trace


class Border:
    """What stands between the network and every endpoint: access, bounds and time."""

    def __init__(
        self,
        *,
        access: Access,
        max_body_bytes: int,
        body_timeout_s: float,
        default_timeout_ms: int,
        max_timeout_ms: int,
    ) -> None:
        self._access = access
        self._max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        """How long a JSON body may take to arrive, and each piece of another one."""
        self._default_timeout_ms = default_timeout_ms
        self._max_timeout_ms = max_timeout_ms

    def check_access(self, scope: Scope, *, needs: KeyScope | None) -> None:
        """Return when the caller may use what needs this key scope.

        Raises:
            ApiError: `unauthenticated`, `forbidden` or `rate-limited`.
        """
        client = scope.get("client")
        trace: Trace = scope[TRACE]
        trace.allowance = self._access.check(trace.headers, client=client[0] if client else None, scope=needs)

    def caller(self, scope: Scope) -> Caller:
        """Return who sends a request that `check_access` has let in."""
        return self._access.caller(scope[TRACE].headers)

    def guard(self, route: str, *, needs: KeyScope | None) -> Callable[[Request], Awaitable[None]]:
        """Return a FastAPI dependency that checks access and notes the route's name."""

        async def check(request: Request) -> None:
            trace_of(request).route = route
            self.check_access(request.scope, needs=needs)

        return check

    def deadline(self, timeout_ms: int | None) -> Deadline:
        """Return when a request that asks for this much time must be answered."""
        return Deadline.after(min(timeout_ms or self._default_timeout_ms, self._max_timeout_ms) / 1e3)

    async def read_json(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request that says it is JSON.

        Raises:
            ApiError: `unsupported-media-type`, `payload-too-large` (before a byte is read, where the length is
                announced) or `request-timeout`.
            ClientDisconnect: The caller has gone.
        """
        headers: Mapping[bytes, bytes] = scope[TRACE].headers
        _check_media_type(headers, _JSON)
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > self._max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                return await self._read_whole(receive)
        except TimeoutError:
            raise late_body(f"The body did not arrive within {self.body_timeout_s:g} s.") from None

    async def read_lines(
        self, scope: Scope, receive: Receive, *, max_line_bytes: int
    ) -> AsyncIterator[tuple[int, bytes | None]]:
        """Give the lines of a request that says it is NDJSON as they come, numbered from 1, without the empty ones.

        Of a line that is too long, None comes; no more than one line and one piece of the network are held.

        Raises:
            ApiError: `unsupported-media-type`, or `request-timeout` when the next piece does not arrive.
            ClientDisconnect: The caller has gone.
        """
        _check_media_type(scope[TRACE].headers, _NDJSON)
        number, held, too_long, more = 1, b"", False, True
        while more:
            lost = f"Nothing arrived for {self.body_timeout_s:g} s; the lines before line {number} are kept."
            message = await next_piece(receive, timeout_s=self.body_timeout_s, lost=lost)
            more = message.get("more_body", False)
            *lines, held = (held + message.get("body", b"") + (b"" if more else b"\n")).split(b"\n")
            for line in lines:
                if too_long or len(line) > max_line_bytes:
                    yield number, None
                elif line.strip():
                    yield number, line
                number, too_long = number + 1, False
            if len(held) > max_line_bytes:
                held, too_long = b"", True

    async def _read_whole(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> ApiError:
        return ApiError(problems.PAYLOAD_TOO_LARGE, f"A body may have {self._max_body_bytes} bytes.")


async def next_piece(receive: Receive, *, timeout_s: float, lost: str) -> Message:
    """Return the next piece of a body.

    Args:
        receive: Of the application.
        timeout_s: For this piece.
        lost: What to say when it does not arrive.

    Raises:
        ApiError: `request-timeout`.
        ClientDisconnect: The caller has gone.
    """
    try:
        async with asyncio.timeout(timeout_s):
            message = await receive()
    except TimeoutError:
        raise late_body(lost) from None
    if message["type"] != "http.request":
        raise ClientDisconnect
    return message


def late_body(detail: str) -> ApiError:
    """Return the error for a body that does not arrive; what of it may still come makes the connection useless."""
    return ApiError(problems.REQUEST_TIMEOUT, detail, headers=[(b"connection", b"close")])


def _check_media_type(headers: Mapping[bytes, bytes], wanted: bytes) -> None:
    """Raise `unsupported-media-type` unless a body is what it should be.

    It also keeps out what a web page of another origin can send without being asked first.
    """
    media_type = headers.get(b"content-type", b"")
    if media_type != wanted and media_type.partition(b";")[0].strip().lower() != wanted:
        raise ApiError(problems.UNSUPPORTED_MEDIA_TYPE, f"Send 'Content-Type: {wanted.decode()}'.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ApiError(problems.UNSUPPORTED_MEDIA_TYPE, "Send the body without 'Content-Encoding'.")


def parse(model: type[BodyT]) -> Callable[[bytes], BodyT]:
    """Return the function that reads a body as `model`.

    Raises (the function):
        ApiError: `malformed-json`, or `validation-error` with a pointer for each field.
    """
    read = model.__pydantic_validator__.validate_json

    def parsed(body: bytes) -> BodyT:
        try:
            value: BodyT = read(body)
        except ValidationError as error:
            raise problems.malformed(error) or problems.invalid(error, problems.parse_leniently(body)) from None
        return value

    return parsed


class Direct(APIRoute):
    """A route with a JSON body, called without FastAPI's dependency machinery.

    What its path names comes first among the endpoint's arguments, as text; FastAPI's declarations of it are
    documentation.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Awaitable[object]],
        *,
        body: type[BaseModel],
        answer: type,
        border: Border,
        needs: KeyScope,
        read: Callable[[bytes], object],
        summary: str,
        tag: str,
        method: str = "POST",
        check_room: Callable[[], None] | None = None,
    ) -> None:
        """Make the route.

        Args:
            path: Where it is.
            endpoint: Takes what `read` makes of a body, returns what `pydantic_core.to_json` can say.
            body: What the body is, for the documentation.
            answer: What the answer is, for the documentation.
            border: Checks access and reads bodies.
            needs: The scope that a key must have.
            read: Makes something of a body, or raises `ApiError`.
            summary: Of the documentation.
            tag: Of the documentation.
            method: Of the requests.
            check_room: Raises when nothing more is taken, and is asked before a byte of the body is read: what is
                refused must cost little, for there is much of it then.
        """
        super().__init__(
            path, _documented(endpoint, body, answer), methods=[method], summary=summary, tags=[tag],
            openapi_extra=secured(needs), responses=PROBLEM_RESPONSES,
        )  # fmt: skip
        self._border = border
        self._needs: KeyScope = needs
        self._method = method
        self._check_room = check_room
        self._answer: Callable[[Mapping[str, str], bytes, Trace], Awaitable[object]] = lambda named, data, trace: (
            endpoint(*named.values(), read(data), trace)
        )

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, read, answer."""
        if scope["method"] != self._method:
            await super().handle(scope, receive, send)  # says 405
            return
        trace: Trace = scope[TRACE]
        trace.route = self.path
        self._border.check_access(scope, needs=self._needs)
        if self._check_room is not None:
            self._check_room()
        body = await self._border.read_json(scope, receive)
        answer = to_json(await self._answer(scope["path_params"], body, trace))
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", _JSON), (b"content-length", str(len(answer)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": answer})


class SegmentRoute(APIRoute):
    """A route each of whose parameters is one segment of the path as it was sent: an id may hold an encoded `/`.

    In the decoded path, user `a/blocks/b` and item `b` that user `a` blocks would be the same.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path before it is decoded, and decode the parameters."""
        raw_path = scope.get("raw_path") or b""
        match, found = super().matches({**scope, "path": raw_path.decode("latin-1")})
        if "path_params" in found:
            found["path_params"] = {name: unquote(value) for name, value in found["path_params"].items()}
        return match, found


def json_body(model: type[BaseModel]) -> dict[str, object]:
    """Return what the documentation says of an endpoint that reads a body with `Border.read_json` itself."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def inlined(value: object) -> object:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix("#/$defs/")
            return inlined(parts[name]) if name in parts else {key: inlined(part) for key, part in value.items()}
        return [inlined(part) for part in value] if isinstance(value, list) else value

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}}


def _documented(endpoint: Callable[..., object], body: type[BaseModel], answer: type) -> Callable[..., object]:
    """Return a function that only says what an endpoint takes and gives: FastAPI reads it, nobody calls it."""

    async def documented() -> None: ...

    documented.__name__ = endpoint.__name__
    documented.__doc__ = endpoint.__doc__
    *named, _, _ = inspect.signature(endpoint).parameters.values()
    documented.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what inspect looks at first
        [*named, inspect.Parameter("body", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=body)],
        return_annotation=answer,
    )
    return documented


def secured(needs: KeyScope | None) -> dict[str, object]:
    """Return what the documentation says of an endpoint that needs a key with this scope; None: any key."""
    says = f"Needs a key with the scope `{needs}`." if needs else "Needs a key, whatever its scopes."
    return {"security": [{"bearer": []}, {"api_key": []}], "x-key-scope": needs or "any", "x-access": says}
