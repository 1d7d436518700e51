"""The HTTP application over the core's fakes: the whole surface, no model, no port."""

import atexit
import json
import secrets
import shutil
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from fastapi import FastAPI
from pydantic import TypeAdapter

from api_schemas.health import Check, Ready
from api_schemas.problem import TYPE_PREFIX, Problem
from index.aliases import AliasStore
from index.jobs import JobStore
from index.store import ArtifactStore
from service.api.access import LOOPBACK, Access, LoopbackAccess
from service.api.app import make_app
from service.api.parts import Parts, Served
from service.api.problems import PROBLEM_TYPES
from service.api.routing import Border
from service.observability.metrics import Metrics
from service.recommend.admission import Admission
from service.recommend.catalogue import CatalogueItems
from service.recommend.interests import InterestTimeline
from service.recommend.recommender import Recommender
from service.recommend.shown import ShownSlates
from service.runtime.builds import Builder
from tests.fakes import (
    FakeAnswers,
    FakeCatalogue,
    FakeChanges,
    FakeServable,
    FakeSlates,
    FakeSource,
    FakeStore,
    InlineCompute,
)

_FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

TITLES = {kind.slug: kind for kind in PROBLEM_TYPES}


class Everybody(LoopbackAccess):
    """Lets everybody in, where it is about something else."""

    def check(self, headers, *, client, scope):
        return None

    def caller(self, headers):
        return LOOPBACK


@dataclass
class Rig:
    """An application and the fakes behind it."""

    servable: FakeServable = field(default_factory=FakeServable)
    store: FakeStore = field(default_factory=FakeStore)
    changes: FakeChanges = field(default_factory=FakeChanges)
    slates: FakeSlates = field(default_factory=FakeSlates)
    answers: FakeAnswers = field(default_factory=FakeAnswers)
    access: Access = field(default_factory=LoopbackAccess)
    admission: Admission = field(default_factory=lambda: Admission(100))
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    max_body_bytes: int = 100_000
    default_timeout_ms: int = 2_000
    recommender: object | None = None
    artifacts: ArtifactStore | None = None
    """None: an empty one."""

    def __post_init__(self) -> None:
        artifacts = self.artifacts or ArtifactStore(_FOLDER / secrets.token_hex(4))
        core = {
            "servables": FakeSource(self.servable),
            "history": self.store,
            "compute": InlineCompute(),
            "admission": self.admission,
        }
        shown = ShownSlates(self.slates, on_dropped=self.metrics.dropped_slates.inc)
        recommender = self.recommender or Recommender(**core, store_timeout_s=0.5, shown=shown)
        version = self.servable.version

        async def ready() -> Ready:
            return Ready(ready=not self.draining, checks={"process": Check(status="ok")})

        parts = Parts(
            recommender=recommender,
            admission=self.admission,
            interests=InterestTimeline(**core),
            events=self.store,
            users=self.store.users,
            shown=shown,
            answers=self.answers,
            artifacts=artifacts,
            aliases=AliasStore(artifacts, max_versions=3),
            builds=Builder(
                JobStore(artifacts.root, max_waiting=2),
                store=artifacts.root,
                data=artifacts.root / "data",
                config=None,
                interval_s=60,
                export=lambda _file, _check: None,
                trim=lambda: (0, 0),
            ),
            items=CatalogueItems(servables=FakeSource(self.servable), catalogue=FakeCatalogue(), changes=self.changes),
            served=lambda: Served(version.model_version, None, version.index_version, version.index_built_at, {}),
            ready=ready,
        )

        @asynccontextmanager
        async def lifespan(_app: FastAPI):
            yield

        self.app = make_app(
            lambda: parts,
            lifespan=lifespan,
            border=Border(
                access=self.access,
                max_body_bytes=self.max_body_bytes,
                body_timeout_s=0.2,
                default_timeout_ms=self.default_timeout_ms,
                max_timeout_ms=5_000,
            ),
            metrics=self.metrics,
            is_draining=lambda: self.draining,
            log_requests=False,
            max_future_s=600,
            docs=True,
            traced=False,
        )

    def client(self, *, address: str = "127.0.0.1", host: str = "localhost", **headers: str) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.app, client=(address, 50_000), raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)


def assert_problem(response: httpx2.Response, slug: str, *pointers: str) -> Problem:
    """Assert that a response is this problem, whole and well-formed, and blames these fields; return it."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "instance", "request_id"}, body
    problem = Problem.model_validate(body, strict=True)
    assert problem.type == TYPE_PREFIX + slug, body
    assert (response.status_code, problem.status, problem.title) == (
        TITLES[slug].status,
        TITLES[slug].status,
        TITLES[slug].title,
    )
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.instance == response.request.url.path
    assert problem.detail
    if pointers:
        assert {error.pointer for error in problem.errors} == set(pointers), body
    assert all(error.code and error.detail for error in problem.errors)
    return problem


def read(kind, response):
    """Read an answer as its schema, every field of every part being known to it."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    answer = TypeAdapter(kind).validate_json(response.content, strict=True)
    assert json.loads(TypeAdapter(kind).dump_json(answer)) == response.json(), "a field that the schema does not know"
    return response.json()
