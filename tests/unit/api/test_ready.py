"""Readiness: only what makes answers impossible makes the service unready; it finds out by itself when all is well."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import ClassVar

import pytest

from service.api.ready import Readiness
from service.recommend.errors import NoServable, Overloaded
from service.runtime.loading import Refusal
from tests.fakes import FakeRanker, FakeServable, FakeSource, FakeStore


class Registry(FakeSource):
    @property
    def current(self):
        return self.servable

    scenarios: ClassVar[dict[str, tuple[str, ...]]] = {}

    def acquire(self):
        if self.servable is None:
            raise NoServable("none")
        return super().acquire()


class Recommender:
    """Fails as it is told to; an answer that works makes the model well."""

    def __init__(self):
        self.model_ok = self.ranker_ok = True
        self.broken = self.ranker_broken = False
        self.refuses = None
        self.asked = []

    async def recommend(self, query, *, deadline):
        self.asked.append(query)
        if self.refuses:
            raise self.refuses
        self.model_ok = not self.broken
        self.ranker_ok = not self.ranker_broken


@pytest.fixture
def rig():
    rig = SimpleNamespace(
        registry=Registry(FakeServable()),
        recommender=Recommender(),
        store=FakeStore(),
        draining=False,
        refused=None,
        refused_scenarios={},
    )
    rig.ready = Readiness(
        registry=rig.registry,
        reloader=SimpleNamespace(
            status=lambda: SimpleNamespace(refused=rig.refused, refused_scenarios=rig.refused_scenarios)
        ),
        recommender=rig.recommender,
        store=rig.store,
        is_draining=lambda: rig.draining,
    )
    return rig


async def statuses(rig):
    answer = await rig.ready()
    return answer.ready, {name: check.status for name, check in answer.checks.items()}


ALL_OK = {"process": "ok", "model": "ok", "index": "ok", "store": "ok"}


async def test_all_is_well_and_no_answer_is_tried(rig):
    assert await statuses(rig) == (True, ALL_OK)
    assert rig.recommender.asked == []


async def test_nothing_loaded_is_not_ready(rig):
    rig.registry.servable = None
    assert await statuses(rig) == (False, {**ALL_OK, "model": "failing", "index": "failing"})


async def test_a_store_that_is_away_is_listed(rig):
    rig.store.away = True
    assert await statuses(rig) == (True, {**ALL_OK, "store": "degraded"})


async def test_a_refused_version_is_listed_with_its_reason(rig):
    rig.refused = SimpleNamespace(version="snapshot-2", reason="index.faiss: wrong hash")
    assert await statuses(rig) == (True, {**ALL_OK, "index": "degraded"})
    assert (await rig.ready()).refused_versions == {"snapshot-2": "index.faiss: wrong hash"}
    rig.refused = SimpleNamespace(version=None, reason="unreadable")
    assert (await rig.ready()).refused_versions == {"CURRENT": "unreadable"}


async def test_a_model_that_goes_on_failing_is_not_ready(rig):
    rig.recommender.model_ok, rig.recommender.broken = False, True
    assert await statuses(rig) == (False, {**ALL_OK, "model": "failing"})


async def test_one_request_that_the_model_choked_on_does_not_take_the_service_out(rig):
    rig.recommender.model_ok = False
    assert await statuses(rig) == (True, ALL_OK)
    assert [item.item_id for item in rig.recommender.asked[0].history] == ["i0"]


async def test_a_service_too_busy_to_try_stays_ready(rig):
    rig.recommender.model_ok, rig.recommender.refuses = False, Overloaded("busy")
    assert await statuses(rig) == (True, {**ALL_OK, "model": "degraded"})


async def test_a_service_that_stops_is_not_ready(rig):
    rig.draining = True
    assert await statuses(rig) == (False, {**ALL_OK, "process": "failing"})


async def test_a_ranker_is_listed_where_there_is_one_and_found_well_again_by_asking_it(rig):
    rig.registry.servable.ranker = FakeRanker()
    assert await statuses(rig) == (True, {**ALL_OK, "ranker": "ok"})
    assert (await rig.ready()).checks["ranker"].detail == "bundle-fake-2"
    rig.recommender.ranker_ok, rig.recommender.ranker_broken = False, True
    assert await statuses(rig) == (True, {**ALL_OK, "ranker": "degraded"})
    rig.recommender.refuses = Overloaded("busy")
    assert await statuses(rig) == (True, {**ALL_OK, "ranker": "degraded"})
    rig.recommender.refuses, rig.recommender.ranker_broken = None, False
    assert await statuses(rig) == (True, {**ALL_OK, "ranker": "ok"})


async def test_scenarios_are_listed_and_a_refused_one_is_named(rig):
    rig.registry.scenarios = {"home": ("snapshot-1",), "cart": ()}
    assert (await rig.ready()).checks["scenarios"].detail == "cart: nothing; home: snapshot-1"
    rig.refused_scenarios["cart"] = Refusal("snapshot-2", "has another SHA-256", datetime.now(UTC), final=True)
    answer = await rig.ready()
    assert answer.ready
    assert answer.checks["scenarios"].status == "degraded"
    assert answer.refused_versions == {"aliases/cart": "has another SHA-256"}
