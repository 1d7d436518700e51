"""`/v1/aliases`: which version, or which arms of an experiment, answer each scenario."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Depends, Path
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from api_schemas.aliases import Alias, Aliases, AliasTarget, Scenario
from api_schemas.problem import FieldProblem
from index.aliases import AliasConflict, AliasState, NoSuchAlias, Precondition
from index.store import ArtefactError, ArtifactStore
from service.api import problems
from service.api.once import keyed
from service.api.parts import PartsSource
from service.api.problems import ApiError
from service.api.routing import PROBLEM_RESPONSES, Border, json_body, parse, secured, trace_of

ALIAS_CHANGED = "alias_changed"
ALIAS_REFUSED = "alias_refused"

_TAG = re.compile(r'\s*(?:\*|(?:W/)?"[^"]*"(?:\s*,\s*(?:W/)?"[^"]*")*)\s*')
_QUOTED = re.compile(r'(W/)?"([^"]*)"')
_CONDITIONS: list[dict[str, object]] = [
    {
        "name": "If-Match",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "maxLength": 1_000},
        "description": "Change the alias only if this is its `ETag`; else 409.",
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "maxLength": 1_000},
        "description": "`*`: only if there is no such alias yet; else 409.",
    },
]

_log = structlog.get_logger()
ResultT = TypeVar("ResultT")
Named = Annotated[Scenario, Path(description="The scenario; `default` is the one that `CURRENT` names.")]


def alias_routes(parts: PartsSource, border: Border) -> APIRouter:
    """Return the endpoints."""
    router = APIRouter(tags=["control"], responses=PROBLEM_RESPONSES, route_class=keyed(APIRoute, parts, border))
    read_target = parse(AliasTarget)
    guard = [Depends(border.guard("/v1/aliases/{scenario}", needs="admin"))]
    changing = {**secured("admin"), "parameters": _CONDITIONS}

    @router.get(
        "/v1/aliases",
        response_model=Aliases,
        summary="List aliases",
        openapi_extra=secured("admin"),
        dependencies=[Depends(border.guard("/v1/aliases", needs="admin"))],
    )
    async def list_aliases() -> Response:
        """List all scenarios and what answers them."""
        states = await _do(parts().aliases.all)
        answer = Aliases(aliases=[_alias(state) for state in states])
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.get(
        "/v1/aliases/{scenario}",
        response_model=Alias,
        summary="Read an alias",
        openapi_extra=secured("admin"),
        dependencies=guard,
    )
    async def read(scenario: Named) -> Response:
        """Say what answers a scenario, and what a rollback would make of it. `ETag` names this state."""
        return _answer(await _do(lambda: parts().aliases.get(scenario)))

    @router.put(
        "/v1/aliases/{scenario}",
        response_model=Alias,
        summary="Set an alias",
        openapi_extra={**changing, **json_body(AliasTarget)},
        dependencies=guard,
    )
    async def put(request: Request, scenario: Named) -> Response:
        """Let a scenario be answered by another version, or by the arms of an experiment.

        Everything that is named is verified first. The alias changes at once or not at all, and the service's workers
        follow it within `PRISMREC_RELOAD__INTERVAL_S` and the time of a load; until then they go on as before.
        """
        condition = _condition(trace_of(request).headers)
        target = read_target(await border.read_json(request.scope, request.receive))
        _check_there(target, parts().artifacts)
        state = await _do(lambda: parts().aliases.set(scenario, target, if_state=condition))
        _log.info(ALIAS_CHANGED, scenario=scenario, index_versions=list(target.versions))
        return _answer(state)

    @router.post(
        "/v1/aliases/{scenario}/rollback",
        response_model=Alias,
        summary="Roll an alias back",
        openapi_extra=changing,
        dependencies=[Depends(border.guard("/v1/aliases/{scenario}/rollback", needs="admin"))],
    )
    async def roll_back(request: Request, scenario: Named) -> Response:
        """Let a scenario be answered by what answered it before; once more goes back one more."""
        condition = _condition(trace_of(request).headers)
        state = await _do(lambda: parts().aliases.roll_back(scenario, if_state=condition))
        _log.info(ALIAS_CHANGED, scenario=scenario, index_versions=list(state.target.versions))
        return _answer(state)

    @router.delete(
        "/v1/aliases/{scenario}",
        status_code=204,
        response_class=Response,
        summary="Remove an alias",
        openapi_extra=changing,
        dependencies=guard,
    )
    async def remove(request: Request, scenario: Named) -> Response:
        """Forget a scenario: requests for it are answered with 404. `default` can not be removed."""
        condition = _condition(trace_of(request).headers)
        await _do(lambda: parts().aliases.remove(scenario, if_state=condition))
        _log.info(ALIAS_CHANGED, scenario=scenario, index_versions=[])
        return Response(status_code=204)

    return router


async def _do(work: Callable[[], ResultT]) -> ResultT:
    """Read or change aliases in a thread: changes verify every byte of what they name.

    Raises:
        ApiError: `not-found` or `conflict`.
    """
    try:
        return await asyncio.to_thread(work)
    except NoSuchAlias as error:
        raise ApiError(problems.NOT_FOUND, f"There is no alias {str(error)!r}.") from None
    except AliasConflict as error:
        raise ApiError(problems.CONFLICT, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    except ArtefactError as error:
        _log.error(ALIAS_REFUSED, reason=str(error))
        raise ApiError(
            problems.CONFLICT, "A version or an alias is not whole; the log has more under this request id."
        ) from None
    except OSError as error:
        _log.error(ALIAS_REFUSED, reason=str(error))
        raise ApiError(
            problems.CONFLICT, "The service can not write to the store of versions; the log has more."
        ) from None


def _condition(headers: Mapping[bytes, bytes]) -> Precondition:
    """Return what `If-Match` and `If-None-Match` ask of the alias.

    Raises:
        ApiError: One of them can not be read.
    """
    wanted, unwanted = (_tags(headers, name) for name in (b"if-match", b"if-none-match"))

    def holds(state: AliasState | None) -> bool:
        tag = None if state is None else state.tag
        if wanted is not None and (tag is None or not (tag in wanted or "*" in wanted)):
            return False
        return unwanted is None or tag is None or not (tag in unwanted or "*" in unwanted)

    return holds


def _tags(headers: Mapping[bytes, bytes], name: bytes) -> set[str] | None:
    """Return the tags of a header, `*` for any; None when it was not sent. A weak tag never matches a change."""
    sent = headers.get(name)
    if sent is None:
        return None
    text = sent.decode("latin-1")
    if len(text) > 1_000 or not _TAG.fullmatch(text):
        where = name.decode().title()
        found = [FieldProblem(pointer=where, code="entity_tag", detail='Input should be * or tags such as "2f1c"')]
        raise ApiError(problems.VALIDATION_ERROR, f"{where}: {found[0].detail}", errors=found)
    return {"*"} if "*" in text else {tag for weak, tag in _QUOTED.findall(text) if not weak}


def _check_there(target: AliasTarget, store: ArtifactStore) -> None:
    """Name the fields whose version is not in the store.

    Raises:
        ApiError: `validation-error`.
    """
    named = {"/index": target.index} if target.index is not None else {}
    named |= {f"/arms/{place}/index": arm.index for place, arm in enumerate(target.arms or ())}
    found = []
    for pointer, version in named.items():
        try:
            there = store.path_of(version).is_dir()
        except ArtefactError:
            there = False
        if not there:
            found.append(FieldProblem(pointer=pointer, code="unknown_version", detail=f"no index {version!r} is here"))
    if found:
        raise ApiError(problems.VALIDATION_ERROR, f"{found[0].pointer}: {found[0].detail}", errors=found)


def _alias(state: AliasState) -> Alias:
    return Alias(
        scenario=state.scenario, target=state.target, rollback_to=state.rollback_to, changed_at=state.changed_at
    )


def _answer(state: AliasState) -> Response:
    return Response(
        _alias(state).model_dump_json(),
        media_type="application/json",
        headers={"etag": f'"{state.tag}"'},
    )
