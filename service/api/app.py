"""The HTTP application: routes, envelope and errors put together. What the endpoints work with comes from elsewhere."""

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from service.api.describe import describe, description_routes
from service.api.middleware import Envelope
from service.api.parts import PartsSource
from service.api.routes.aliases import alias_routes
from service.api.routes.artefacts import artefact_routes
from service.api.routes.bulk import bulk_routes
from service.api.routes.catalogue import catalogue_routes
from service.api.routes.events import event_routes
from service.api.routes.interests import interest_routes
from service.api.routes.items import item_routes
from service.api.routes.jobs import job_routes
from service.api.routes.models import model_routes
from service.api.routes.plumbing import plumbing_routes
from service.api.routes.recommendations import recommendation_routes
from service.api.routes.users import user_routes
from service.api.routing import Border
from service.observability.metrics import Metrics

_PROBES = frozenset({"/livez", "/readyz", "/metrics"})


class Application(FastAPI):
    """FastAPI, with a short way for what is called thousands of times a second.

    From the envelope to a `Direct` route lie five middlewares and the search among all routes, which do nothing for it
    and take as long as reading its body and filling its queries.
    """

    short: Mapping[str, ASGIApp] = {}
    """By path what answers it, whatever the method."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, the short way where there is one."""
        short = self.short.get(scope["path"]) if scope["type"] == "http" else None
        if short is None:
            await super().__call__(scope, receive, send)
        else:
            scope["app"], scope["path_params"] = self, {}
            await short(scope, receive, send)


def make_app(
    parts: PartsSource,
    *,
    lifespan: "Lifespan[FastAPI]",
    border: Border,
    metrics: Metrics,
    is_draining: Callable[[], bool],
    log_requests: bool,
    max_future_s: float,
    docs: bool,
    traced: bool,
) -> Application:
    """Return the application.

    Args:
        parts: Gives the parts of the running service.
        lifespan: Starts and stops them.
        border: Decides who may call, and bounds bodies and times.
        metrics: Counts.
        is_draining: Whether the service is about to stop: connections are then closed after their answer.
        log_requests: Log every request.
        max_future_s: How far an event's time may lie ahead of the clock.
        docs: Offer `/docs` and `/openapi.json`.
        traced: Send a trace of each request to where the environment says.
    """
    app = Application(
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Metrics and logs have their own way out. What is off here costs requests nothing; the default costs 8 us.
        telemetry={
            "tracing": traced,
            "auto_configure": traced,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": _is_probe,
        },
    )
    app.openapi = partial(_described, app)  # type: ignore[method-assign]  # FastAPI's own way to change it
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _pass_on)
    envelope = partial(Envelope, metrics=metrics, is_draining=is_draining, log_requests=log_requests, traced=traced)
    app.add_middleware(envelope)
    direct = recommendation_routes(parts, border, metrics)
    if not traced:  # FastAPI's span of a request begins on the long way
        app.short = {route.path: envelope(route.handle) for route in direct}
    # the first routes are found first: what is called most comes first
    app.router.routes += direct
    app.router.routes += event_routes(parts, border, metrics, max_future_s=max_future_s)
    app.include_router(item_routes(parts, border, metrics))
    app.include_router(bulk_routes(parts, border))
    app.router.routes += catalogue_routes(parts, border)  # after `/similar`, which an item's path would swallow
    app.include_router(user_routes(parts, border))
    app.include_router(interest_routes(parts, border, metrics))
    app.include_router(model_routes(parts, border))
    app.include_router(artefact_routes(parts, border))
    app.include_router(job_routes(parts, border))
    app.include_router(alias_routes(parts, border))
    app.include_router(plumbing_routes(parts, border, metrics))
    if docs:
        app.router.routes += description_routes(app)
    return app


def _is_probe(scope: MutableMapping[str, object]) -> bool:
    """Tell requests that come every few seconds and say nothing."""
    return scope.get("path") in _PROBES


async def _pass_on(_request: Request, error: Exception) -> Response:
    """Leave an error to the envelope, where all of them become problems."""
    raise error


def _described(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return app.openapi_schema
