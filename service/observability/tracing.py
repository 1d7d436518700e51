"""Traces: FastAPI's own OpenTelemetry makes a span of each request; here it gets its stages. Off unless asked for.

What asks for it is the environment that OpenTelemetry defines: `OTEL_EXPORTER_OTLP_ENDPOINT`, or the same for traces
alone. Otherwise no part of it runs: to look, for each request, whether somebody listens would cost microseconds.
"""

import re
import time
from collections.abc import Mapping

from opentelemetry import trace

from service.observability.metrics import STAGES

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

_tracer = trace.get_tracer("prismrec")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment says where traces go."""
    return (
        any(environment.get(name) for name in _ENDPOINTS)
        and environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "none"
        and environment.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    )


def trace_id_of(traceparent: bytes | None) -> str | None:
    """Return the trace that a request belongs to: what `traceparent` says, or the span that it was given here."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is not None:
        version, trace_id, parent_id, more = match.groups()
        ends = more is None or version != b"00"
        if version != b"ff" and ends and trace_id.strip(b"0") and parent_id.strip(b"0"):
            return trace_id.decode()
    number = trace.get_current_span().get_span_context().trace_id
    return trace.format_trace_id(number) if number else None


def describe_span(
    *, route: str, request_id: str, problem: str | None, timings_ms: Mapping[str, float], took_ms: float
) -> None:
    """Say in the span of the request that is being answered what it was, and give it its stages.

    `url.path` becomes the route: a path names users and items, which traces are not to hold.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attributes({"url.path": route, "prismrec.request_id": request_id})
    if problem is not None:
        span.set_attribute("prismrec.problem", problem)
    for stage, (began_ns, ended_ns) in lay_out(timings_ms, took_ms=took_ms, now_ns=time.time_ns()).items():
        _tracer.start_span(stage, start_time=began_ns).end(ended_ns)


def lay_out(timings_ms: Mapping[str, float], *, took_ms: float, now_ns: int) -> dict[str, tuple[int, int]]:
    """Return when each stage began and ended, as far as that is known from how long each took.

    The store is read first, and the others follow one another up to now. What lies between is the wait for a thread or
    for a batch: stages are computed for several requests at once, so only their lengths are kept.
    """
    began_ns = now_ns - round(took_ms * 1e6)
    laid: dict[str, tuple[int, int]] = {}
    end_ns = now_ns
    for stage in reversed(STAGES):
        if stage in timings_ms:
            length_ns = round(timings_ms[stage] * 1e6)
            start_ns = began_ns if stage == "store" else max(end_ns - length_ns, began_ns)
            laid[stage] = start_ns, min(start_ns + length_ns, now_ns)
            end_ns = start_ns
    return dict(reversed(laid.items()))
