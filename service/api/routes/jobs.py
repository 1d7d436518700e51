"""`POST /v1/indexes` and `/v1/jobs`: build an index beside the service, see how far it is, end it."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Depends, Path, Query
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.artefacts import NewestQuery
from api_schemas.jobs import IndexRequest, Job, JobId, Jobs
from api_schemas.problem import FieldProblem
from index.jobs import JobConflict, NoSuchJob
from index.store import ArtefactError, ArtifactStore
from service.api import problems
from service.api.once import keyed
from service.api.parts import PartsSource
from service.api.problems import ApiError
from service.api.routing import PROBLEM_RESPONSES, Border, json_body, parse, secured
from service.runtime.builds import Builder

BUILD_QUEUED = "build_queued"
BUILD_REFUSED = "build_refused"
BUILD_CANCELLED = "build_cancelled"

_INDEXES = "/v1/indexes"
_JOBS = "/v1/jobs"
_JOB = f"{_JOBS}/{{job_id}}"
_CANCEL = f"{_JOB}/cancel"

_log = structlog.get_logger()
ResultT = TypeVar("ResultT")
Named = Annotated[JobId, Path(description="As `POST /v1/indexes` gave it.")]


def job_routes(parts: PartsSource, border: Border) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter(tags=["control"], responses=PROBLEM_RESPONSES, route_class=keyed(APIRoute, parts, border))
    read_request = parse(IndexRequest)

    @router.post(
        _INDEXES,
        response_model=Job,
        status_code=202,
        summary="Build an index",
        openapi_extra={**secured("admin"), **json_body(IndexRequest)},
        dependencies=[Depends(border.guard(_INDEXES, needs="admin"))],
    )
    async def build(request: Request) -> Response:
        """Encode a catalogue with a model, build its index, check it, publish it: what `prismrec-index rebuild` does.

        Items that were changed over HTTP are folded in first, into a dataset folder of its own: the next build goes on
        from that. Changes that come while an index is built are in every answer, and in the next index.

        `Location` says where to see how far it is. One build runs at a time, in a process of its own at low priority;
        a few more may wait. One that is running when the service ends fails and leaves everything as it was; those that
        wait are built after the next start.
        """
        body = read_request(await border.read_json(request.scope, request.receive))
        builds = parts().builds
        await asyncio.to_thread(_check_there, body, parts().artifacts, builds)
        job = await _done(builds.submit(body))
        _log.info(BUILD_QUEUED, job_id=job.id, caller=border.caller(request.scope).name, **body.model_dump())
        return _answer(job, status=202, headers={"location": f"{_JOBS}/{job.id}"})

    @router.get(
        _JOBS,
        response_model=Jobs,
        summary="List jobs",
        openapi_extra=secured("admin"),
        dependencies=[Depends(border.guard(_JOBS, needs="admin"))],
    )
    async def list_jobs(query: Annotated[NewestQuery, Query()]) -> Response:
        """List builds, newest first: those that wait or run, and the last ones that are over."""
        return _answer(Jobs(jobs=(await asyncio.to_thread(parts().builds.jobs.all))[: query.limit]))

    @router.get(
        _JOB,
        response_model=Job,
        summary="Show a job",
        openapi_extra=secured("admin"),
        dependencies=[Depends(border.guard(_JOB, needs="admin"))],
    )
    async def show(job_id: Named) -> Response:
        """Say how far a build is, or what became of it. Every worker knows it."""
        return _answer(await _done(asyncio.to_thread(parts().builds.jobs.get, job_id)))

    @router.post(
        _CANCEL,
        response_model=Job,
        summary="Cancel a job",
        openapi_extra=secured("admin"),
        dependencies=[Depends(border.guard(_CANCEL, needs="admin"))],
    )
    async def cancel(request: Request, job_id: Named) -> Response:
        """End a build: one that waits at once, one that runs within a second. Nothing of it is published."""
        job = await _done(asyncio.to_thread(parts().builds.jobs.cancel, job_id))
        _log.info(BUILD_CANCELLED, job_id=job.id, caller=border.caller(request.scope).name)
        return _answer(job)

    return router


async def _done(work: Awaitable[ResultT]) -> ResultT:
    """Wait for what is done with a job.

    Raises:
        ApiError: `not-found` or `conflict`.
    """
    try:
        return await work
    except NoSuchJob as error:
        raise ApiError(problems.NOT_FOUND, f"There is no job {str(error)!r}.") from None
    except JobConflict as error:
        raise ApiError(problems.CONFLICT, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    except (ArtefactError, OSError) as error:
        _log.error(BUILD_REFUSED, reason=str(error))
        raise ApiError(
            problems.CONFLICT, "The service can not read or write its jobs in the store of versions; the log has more."
        ) from None


def _check_there(body: IndexRequest, store: ArtifactStore, builds: Builder) -> None:
    """Name the fields whose version or dataset is not here.

    Raises:
        ApiError: `validation-error`.
    """
    named = {"/model": body.model} | ({} if body.ranker is None else {"/ranker": body.ranker})
    found = [
        FieldProblem(pointer=pointer, code="unknown_version", detail=f"no bundle {version!r} is here")
        for pointer, version in named.items()
        if not _has(store, version)
    ]
    if not builds.has_data(body.data):
        found.append(FieldProblem(pointer="/data", code="unknown_data", detail=f"no dataset {body.data!r} is here"))
    if found:
        raise ApiError(problems.VALIDATION_ERROR, f"{found[0].pointer}: {found[0].detail}", errors=found)


def _has(store: ArtifactStore, version: str) -> bool:
    try:
        return store.path_of(version).is_dir()
    except ArtefactError:
        return False


def _answer(answer: Job | Jobs, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.model_dump_json(), status_code=status, media_type="application/json", headers=headers)
