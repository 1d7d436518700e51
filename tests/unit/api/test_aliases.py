"""`/v1/aliases`, `/v1/models` and `/v1/indexes` over a real artefact store."""

import pytest

from index.store import ArtifactStore
from service.recommend.types import Assignment, Choice, user_subject
from tests import toy
from tests.bundles import make_snapshot
from tests.fakes import FakeSource
from tests.http_app import Rig, assert_problem

LISTS = ("/v1/items/i1/similar", "/v1/popular", "/v1/users/ann/interests")


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> tuple[ArtifactStore, list[str]]:
    root = tmp_path_factory.mktemp("aliases")
    store, data = ArtifactStore(root / "store"), toy.make_dataset(root / "data")
    return store, [make_snapshot(store, data, seed=seed, dim=8, history_length=5) for seed in range(2)]


@pytest.fixture
def rig(snapshots):
    store, (one, _) = snapshots
    store.set_current(one)
    yield Rig(artifacts=store)
    for file in store.root.glob("aliases/*"):
        file.unlink()


@pytest.fixture
def versions(snapshots) -> list[str]:
    return snapshots[1]


async def test_an_alias_is_made_read_changed_rolled_back_and_removed(rig, versions):
    async with rig.client() as client:
        made = await client.put("/v1/aliases/home", json={"index": versions[0]})
        assert made.status_code == 200
        assert made.json()["target"]["index"] == versions[0]
        arms = [{"name": "a", "index": versions[0], "weight": 1}, {"name": "b", "index": versions[1], "weight": 3}]
        changed = await client.put("/v1/aliases/home", json={"experiment": "blue", "arms": arms})
        assert changed.json()["target"] == {"index": None, "experiment": "blue", "arms": arms}
        assert changed.json()["rollback_to"]["index"] == versions[0]
        assert changed.headers["etag"] != made.headers["etag"]
        read = await client.get("/v1/aliases/home")
        assert (read.json(), read.headers["etag"]) == (changed.json(), changed.headers["etag"])
        listed = await client.get("/v1/aliases")
        assert [alias["scenario"] for alias in listed.json()["aliases"]] == ["default", "home"]
        back = await client.post("/v1/aliases/home/rollback")
        assert back.json()["target"]["index"] == versions[0]
        assert_problem(await client.post("/v1/aliases/home/rollback"), "conflict")
        assert (await client.delete("/v1/aliases/home")).status_code == 204
        for method, path in (("GET", "/home"), ("DELETE", "/home"), ("POST", "/home/rollback"), ("GET", "/..%2fx")):
            response = await client.request(method, f"/v1/aliases{path}")
            assert response.status_code in (404, 422)


async def test_default_is_current(rig, versions):
    async with rig.client() as client:
        changed = await client.put("/v1/aliases/default", json={"index": versions[1]})
        assert changed.json()["rollback_to"]["index"] == versions[0]
        assert rig.artifacts.current() == versions[1]
        await client.post("/v1/aliases/default/rollback")
        assert rig.artifacts.current() == versions[0]
        arms = [{"name": "a", "index": versions[0], "weight": 1}]
        assert_problem(await client.put("/v1/aliases/default", json={"experiment": "x", "arms": arms}), "conflict")
        assert_problem(await client.delete("/v1/aliases/default"), "conflict")


async def test_conditions_keep_two_callers_from_overwriting_each_other(rig, versions):
    async with rig.client() as client:
        body = {"index": versions[0]}
        assert_problem(await client.put("/v1/aliases/home", json=body, headers={"if-match": "*"}), "conflict")
        made = await client.put("/v1/aliases/home", json=body, headers={"if-none-match": "*"})
        assert made.status_code == 200
        assert_problem(await client.put("/v1/aliases/home", json=body, headers={"if-none-match": "*"}), "conflict")
        tag = {"if-match": made.headers["etag"]}
        assert (await client.put("/v1/aliases/home", json={"index": versions[1]}, headers=tag)).status_code == 200
        for stale in (
            await client.put("/v1/aliases/home", json=body, headers=tag),
            await client.post("/v1/aliases/home/rollback", headers=tag),
            await client.delete("/v1/aliases/home", headers=tag),
            await client.delete("/v1/aliases/home", headers={"if-match": f"W/{made.headers['etag']}"}),
        ):
            assert_problem(stale, "conflict")
        assert (await client.get("/v1/aliases/home")).json()["target"]["index"] == versions[1]
        assert_problem(
            await client.delete("/v1/aliases/home", headers={"if-match": "tag"}), "validation-error", "If-Match"
        )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"index": "snapshot-20200101t000000z-000000"}, "/index"),
        ({"index": "../../etc"}, "/index"),
        ({"experiment": "x"}, ""),
        ({"index": "snapshot-x", "experiment": "x", "arms": []}, "/arms"),
        ({"experiment": "x", "arms": [{"name": "a", "index": "snapshot-x", "weight": 0}]}, "/arms/0/weight"),
        ({"experiment": "x", "arms": [{"name": "a", "index": "snapshot-x", "weight": 1}]}, "/arms/0/index"),
        ({"experiment": "x", "arms": [{"name": "a", "index": "snapshot-x", "weight": 1}] * 2}, ""),
        ({"index": "snapshot-x", "other": 1}, "/other"),
    ],
)
async def test_a_target_that_makes_no_sense_is_named(rig, body, pointer):
    async with rig.client() as client:
        assert_problem(await client.put("/v1/aliases/home", json=body), "validation-error", pointer)


@pytest.mark.parametrize("scenario", ["Home", "x" * 65, ".hidden", "a b"])
async def test_a_scenario_has_a_plain_name(rig, versions, scenario):
    async with rig.client() as client:
        response = await client.put(f"/v1/aliases/{scenario}", json={"index": versions[0]})
        assert_problem(response, "validation-error", "{scenario}")


async def test_what_the_store_holds_is_listed_newest_first(rig, versions):
    async with rig.client() as client:
        await client.put("/v1/aliases/home", json={"index": versions[1]})
        indexes = (await client.get("/v1/indexes")).json()["indexes"]
        assert [entry["version"] for entry in indexes] == versions[::-1]
        assert [entry["current"] for entry in indexes] == [False, True]
        assert [entry["aliases"] for entry in indexes] == [["home"], ["default"]]
        assert all(entry["num_items"] > 0 and entry["size_bytes"] > 0 for entry in indexes)
        models = (await client.get("/v1/models")).json()["models"]
        assert [model["version"] for model in models] == [entry["model"] for entry in indexes]
        assert [model["indexes"] for model in models] == [[version] for version in versions[::-1]]
        assert len((await client.get("/v1/models?limit=1")).json()["models"]) == 1
        assert_problem(await client.get("/v1/indexes?limit=0"), "validation-error", "?limit")


async def test_an_answer_of_an_experiment_says_its_arm(monkeypatch):
    rig = Rig()
    monkeypatch.setattr(FakeSource, "choose", lambda self, query: Choice(assignment=Assignment("blue", "b")))
    async with rig.client() as client:
        for path in ("/v1/recommendations", "/v1/explanations"):
            answer = (await client.post(path, json={"scenario": "home", "k": 3})).json()
            assert answer["experiment"] == {"name": "blue", "arm": "b"}
        assert "experiment" not in (await client.post("/v1/recommendations", json={"k": 3})).json()
        body = {"scenario": "home", "history": [{"item_id": "i1"}], "without": {"item_ids": ["i1"]}}
        assert (await client.post("/v1/what-if", json=body)).json()["experiment"] == {"name": "blue", "arm": "b"}
        for path in LISTS:
            answer = (await client.get(f"{path}?scenario=home")).json()
            assert answer["experiment"] == {"name": "blue", "arm": "b"}
            assert "experiment" not in (await client.get(path)).json()
    assert 'prismrec_experiment_answers_total{arm="b",experiment="blue"} 6.0' in rig.metrics.page().decode()


async def test_lists_draw_their_arm_by_the_request_and_interests_by_the_user(monkeypatch):
    queries, choices, chosen = [], [], Choice("snapshot-of-home")
    acquire = FakeSource.acquire
    monkeypatch.setattr(FakeSource, "choose", lambda self, query: queries.append(query) or chosen)
    monkeypatch.setattr(FakeSource, "acquire", lambda self, choice: choices.append(choice) or acquire(self, choice))
    async with Rig().client() as client:
        for path in LISTS:
            await client.get(f"{path}?scenario=home", headers={"x-request-id": "one-request"})
    assert [query.scenario for query in queries] == ["home"] * 3
    assert choices == [chosen] * 3
    assert [query.subject or query.unit for query in queries] == ["one-request", "one-request", user_subject("ann")]


async def test_a_scenario_or_model_that_is_not_there_is_not_found():
    async with Rig().client() as client:
        for body in ({"scenario": "other"}, {"model": "other"}):
            assert_problem(await client.post("/v1/recommendations", json=body), "not-found")
        for path in LISTS:
            assert_problem(await client.get(f"{path}?scenario=other"), "not-found")
            assert_problem(await client.get(f"{path}?scenario=A%20B"), "validation-error", "?scenario")
        assert_problem(
            await client.post("/v1/recommendations", json={"scenario": "A B"}), "validation-error", "/scenario"
        )
        answer = await client.post("/v1/recommendations", json={"model": "fake"})
        assert answer.status_code == 200
