"""`GET /v1/models` and `GET /v1/indexes`: what the artefact store holds, read from its manifests."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from api_schemas.artefacts import NewestQuery, StoredIndex, StoredIndexes, StoredModel, StoredModels
from index.store import ArtefactError, ArtifactStore, StoredVersion
from service.api.parts import PartsSource
from service.api.routing import PROBLEM_RESPONSES, Border, secured

_BROKEN = "the manifest can not be read; `prismrec-index list` says why"
"""What the caller may know: the reason names a path of ours."""


def artefact_routes(parts: PartsSource, border: Border) -> APIRouter:
    """Return the two endpoints."""
    router = APIRouter(tags=["control"], responses=PROBLEM_RESPONSES)

    @router.get(
        "/v1/models",
        response_model=StoredModels,
        summary="List models",
        openapi_extra=secured("admin"),
        dependencies=[Depends(border.guard("/v1/models", needs="admin"))],
    )
    async def models(query: Annotated[NewestQuery, Query()]) -> Response:
        """List the bundles in the store, newest first, and the indexes that were made with each."""
        stored = await asyncio.to_thread(parts().artifacts.list)
        return _json(StoredModels(models=_models(stored)[: query.limit]))

    @router.get(
        "/v1/indexes",
        response_model=StoredIndexes,
        summary="List indexes",
        openapi_extra=secured("admin"),
        dependencies=[Depends(border.guard("/v1/indexes", needs="admin"))],
    )
    async def indexes(query: Annotated[NewestQuery, Query()]) -> Response:
        """List the snapshots in the store, newest first, and the scenarios that each answers."""
        return _json(StoredIndexes(indexes=(await asyncio.to_thread(_indexes, parts().artifacts))[: query.limit]))

    return router


def _models(stored: Sequence[StoredVersion]) -> list[StoredModel]:
    return [
        StoredModel(
            version=entry.version,
            name=entry.family,
            created_at=entry.created_at,
            size_bytes=entry.size_bytes,
            indexes=[one.version for one in reversed(stored) if entry.version in one.bundle_versions],
            problem=None if entry.problem is None else _BROKEN,
        )
        for entry in reversed(stored)
        if entry.kind == "bundle"
    ]


def _indexes(store: ArtifactStore) -> list[StoredIndex]:
    previous: str | None = None
    with suppress(ArtefactError):
        previous = store.rollback_target()
    return [
        StoredIndex(
            version=entry.version,
            built_at=entry.created_at,
            model=entry.bundle_versions[0] if entry.bundle_versions else None,
            ranker=entry.bundle_versions[1] if len(entry.bundle_versions) > 1 else None,
            num_items=entry.num_items,
            size_bytes=entry.size_bytes,
            current=entry.is_current,
            previous=entry.version == previous,
            aliases=list(entry.aliases),
            problem=None if entry.problem is None else _BROKEN,
        )
        for entry in reversed(store.list())
        if entry.kind == "snapshot"
    ]


def _json(answer: StoredModels | StoredIndexes) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
