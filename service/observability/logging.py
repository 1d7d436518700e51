"""Logs: structlog, one JSON object a line in production, readable lines on a terminal.

Event names are the constants below, in the past tense; facts are fields. No bodies, no keys, no addresses with
passwords. What the standard library logs (uvicorn, redis) goes through the same processors.
"""

import logging
import sys
from contextvars import ContextVar
from typing import Literal, Protocol

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

SERVICE_STARTED = "service_started"
SERVICE_STOPPED = "service_stopped"
SERVICE_FAILED = "service_failed"
DRAIN_BEGUN = "drain_begun"
REQUEST_ANSWERED = "request_answered"
REQUEST_FAILED = "request_failed"
STORE_LOST = "store_lost"
STORE_RECOVERED = "store_recovered"
STORE_FOUND_NOT_DURABLE = "store_found_not_durable"
KEYS_LOADED = "keys_loaded"
KEYS_REFUSED = "keys_refused"
KEYS_MISSED = "keys_missed"
SETTING_IGNORED = "setting_ignored"
WORKER_STARTED = "worker_started"
WORKER_DIED = "worker_died"
FORK_SERVER_DIED = "fork_server_died"


class Named(Protocol):
    """A request, as far as log lines name it. It is asked when a line is written: most requests write none."""

    @property
    def request_id(self) -> str:
        """Ours, or the caller's."""
        ...

    @property
    def trace_id(self) -> str | None:
        """Of the trace that it belongs to; None: of none."""
        ...


request: ContextVar[Named | None] = ContextVar("request", default=None)
"""Set for the time of a request; every line logged meanwhile carries its ids."""


def configure(*, level: str, style: Literal["auto", "json", "console"]) -> None:
    """Route every log line of this process to stderr; called once, by the command line."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_ids,
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.ExceptionRenderer(_traceback_without_locals()), structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=())],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "redis"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(max(logging.WARNING, root.level))


def _traceback_without_locals() -> ExceptionDictTransformer:
    """Local variables hold bodies and keys, which must not be logged."""
    return ExceptionDictTransformer(show_locals=False)


def _add_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    current = request.get()
    if current is not None:
        event["request_id"] = current.request_id
        trace_id = current.trace_id
        if trace_id is not None:
            event["trace_id"] = trace_id
    return event
