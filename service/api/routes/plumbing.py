"""What runs the service rather than uses it: liveness, readiness, metrics, version."""

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.health import Live, Ready, ServedVersions
from service.api.parts import PartsSource
from service.api.routing import PROBLEM_RESPONSES, Border, secured, trace_of
from service.observability.metrics import CONTENT_TYPE, Metrics

SOFTWARE_VERSION = version("prismrec")


def plumbing_routes(parts: PartsSource, border: Border, metrics: Metrics) -> APIRouter:
    """Return the endpoints. `/livez` and `/readyz` are open; `/metrics` and `/version` take any key."""
    router = APIRouter(tags=["plumbing"])

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", summary="Liveness")
    async def livez(request: Request) -> Live:
        """The event loop turns. Touches nothing else."""
        trace_of(request).route = "/livez"
        return Live()

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="Readiness", responses={503: {"model": Ready, "description": "Not ready."}})
    async def readyz(request: Request) -> Ready:
        """Whether requests should be sent here, and how each part is.

        A store that is away is listed and leaves the service ready: recommendations go on without stored histories.
        """
        trace_of(request).route = "/readyz"
        ready = await parts().ready()
        return Response(  # type: ignore[return-value]  # FastAPI takes a response; the annotation documents it
            ready.model_dump_json(), status_code=200 if ready.ready else 503, media_type="application/json"
        )

    @router.get(
        "/metrics",
        summary="Metrics",
        openapi_extra=secured(None),
        responses=PROBLEM_RESPONSES,
        dependencies=[Depends(border.guard("/metrics", needs=None))],
    )
    async def metrics_page() -> Response:
        """The numbers of all workers, in the text format of Prometheus."""
        return Response(await asyncio.to_thread(metrics.page), headers={"content-type": CONTENT_TYPE})

    @router.get(
        "/version",
        summary="Versions",
        openapi_extra=secured(None),
        responses=PROBLEM_RESPONSES,
        dependencies=[Depends(border.guard("/version", needs=None))],
    )
    async def versions() -> ServedVersions:
        """The version of the software, and of the model and the index that answer."""
        served = parts().served()
        if served is None:
            return ServedVersions(version=SOFTWARE_VERSION)
        return ServedVersions(
            version=SOFTWARE_VERSION,
            model=served.model_version,
            ranker=served.ranker_version,
            index=served.index_version,
            index_built_at=served.index_built_at,
            scenarios={name: list(versions) for name, versions in served.scenarios.items()},
        )

    return router
