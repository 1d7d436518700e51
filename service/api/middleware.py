"""The envelope around every request: its id, its times, its metrics, and the one place where errors become problems."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_schemas.problem import FieldProblem
from service.api import problems
from service.api.problems import ApiError, Reply, reply_to
from service.api.routing import TRACE, Trace
from service.observability.logging import REQUEST_ANSWERED, REQUEST_FAILED, request
from service.observability.metrics import STAGES, Metrics
from service.observability.tracing import describe_span

_log = structlog.get_logger()


class Envelope:
    """Pure ASGI middleware: no task, no queue and no request object of its own."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, is_draining: Callable[[], bool], log_requests: bool, traced: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._is_draining = is_draining
        self._log_requests = log_requests
        self._traced = traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and see to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = scope[TRACE] = Trace(dict(scope["headers"]))
        token = request.set(trace)
        self._metrics.in_flight.inc()
        started = False

        async def send_out(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._complete(message, trace)
            await send(message)

        try:
            await self._app(scope, receive, send_out)
        except ClientDisconnect:
            trace.status = 499
        except asyncio.CancelledError:
            trace.status = 499
            raise
        except Exception as error:
            if started:
                raise
            await self._say(error, scope, send_out, trace)
        finally:
            self._metrics.in_flight.dec()
            self._count(trace)
            request.reset(token)

    def _complete(self, message: Message, trace: Trace) -> None:
        """Add the headers that every answer has."""
        trace.status = message["status"]
        headers: list[tuple[bytes, bytes]] = list(message["headers"])
        headers.append((b"x-request-id", trace.request_id.encode()))
        if trace.timings_ms:
            timings = trace.timings_ms
            stages = [f"{stage};dur={timings[stage]:.2f}" for stage in STAGES if stage in timings]
            headers.append((b"server-timing", ", ".join(stages).encode()))
        if trace.allowance is not None:
            headers += trace.allowance.headers()
        if self._is_draining():
            headers.append((b"connection", b"close"))  # so that its next request goes to another replica
        message["headers"] = headers
        if self._traced:
            describe_span(
                route=trace.route,
                request_id=trace.request_id,
                problem=trace.problem,
                timings_ms=trace.timings_ms,
                took_ms=trace.took_ms(),
            )

    async def _say(self, error: Exception, scope: Scope, send: Send, trace: Trace) -> None:
        if isinstance(error, HTTPException | RequestValidationError):
            error = from_framework(error)
        reply = reply_to(error, instance=scope["path"], request_id=trace.request_id)
        trace.problem = reply.kind.slug
        if reply.kind is problems.INTERNAL:
            _log.error(REQUEST_FAILED, route=trace.route, exc_info=error)
        await send_reply(reply, send)

    def _count(self, trace: Trace) -> None:
        metrics, seconds = self._metrics, trace.took_ms() / 1e3
        metrics.count_request(trace.route, trace.status, seconds=seconds)
        metrics.observe_stages(trace.timings_ms)
        if trace.problem is not None:
            metrics.problems.labels(trace.problem).inc()
        if self._log_requests:
            _log.info(
                REQUEST_ANSWERED,
                route=trace.route,
                status=trace.status,
                took_ms=round(seconds * 1e3, 3),
                problem=trace.problem,
            )


async def send_reply(reply: Reply, send: Send) -> None:
    """Send a problem."""
    body = reply.body
    headers = [
        (b"content-type", problems.CONTENT_TYPE),
        (b"content-length", str(len(body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.kind.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def from_framework(error: HTTPException | RequestValidationError) -> Exception:
    """Say what the router found (no such path, another method, a bad parameter) as an error of ours."""
    if isinstance(error, RequestValidationError):
        found = [
            FieldProblem(pointer=_parameter(problem["loc"]), code=problem["type"], detail=problem["msg"])
            for problem in error.errors()
        ][: problems.MAX_FIELD_PROBLEMS]
        return ApiError(problems.VALIDATION_ERROR, f"{found[0].pointer}: {found[0].detail}", errors=found)
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    if error.status_code == problems.NOT_FOUND.status:
        return ApiError(problems.NOT_FOUND, "There is nothing at this path; see /openapi.json.", headers=headers)
    if error.status_code == problems.METHOD_NOT_ALLOWED.status:
        return ApiError(
            problems.METHOD_NOT_ALLOWED, "See the Allow header for the methods of this path.", headers=headers
        )
    return error


def _parameter(location: Sequence[int | str]) -> str:
    """Return where a parameter stands: `?name` in the query, `{name}` in the path."""
    name = str(location[1]) if len(location) > 1 else ""
    return f"?{name[:100]}" if location[0] == "query" else f"{{{name}}}"
