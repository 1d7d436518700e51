"""The whole service in this process: composition root, a real store of versions, a real event store."""

import asyncio
import contextlib
import shutil
from contextlib import asynccontextmanager

import httpx2
import pytest

from api_schemas.health import Ready
from index.store import ArtifactStore
from service import main
from service.main import Drain, background, create_app
from service.settings import load_settings
from tests import bundles
from tests.http_app import assert_problem
from tests.id_bundles import MASK, make_id_bundle
from tests.processes import RedisServer


@asynccontextmanager
async def running(store, **flags):
    """Start the application, give a client for it, stop it."""
    failures, drain = [], Drain()
    settings = load_settings(store=store, **flags)
    app = create_app(settings, drain=drain, on_failure=lambda: failures.append(True))
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            client.drain, client.failures = drain, failures
            yield client
    assert not failures


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


async def test_a_service_answers_explains_and_remembers(toy_store, tmp_path):
    async with running(toy_store.store, history=f"sqlite:{tmp_path}/events.db") as client:
        ready = Ready.model_validate((await client.get("/readyz")).json())
        assert ready.ready
        assert {check.status for check in ready.checks.values()} == {"ok"}
        versions = (await client.get("/version")).json()
        assert (versions["model"], versions["index"]) == (toy_store.bundle, toy_store.snapshot)

        popular = (await client.get("/v1/popular?k=5")).json()
        first = popular["items"][0]["item_id"]
        similar = (await client.get(f"/v1/items/{first}/similar?k=5")).json()
        assert first not in [item["item_id"] for item in similar["items"]]

        events = [
            {
                "event_id": f"e{number}",
                "user_id": "ann",
                "item_id": item["item_id"],
                "type": "click",
                "occurred_at": f"2026-01-01T00:00:{number:02}Z",
            }
            for number, item in enumerate(popular["items"])
        ]
        assert (await client.post("/v1/events", json={"events": events})).json()["accepted"] == 5
        answer = (await client.post("/v1/recommendations", json={"user_id": "ann", "k": 10, "explain": "full"})).json()
        assert (answer["user_state"], answer["events_used"], answer["degraded"]) == ("known", 5, [])
        assert not {event["item_id"] for event in events} & {item["item_id"] for item in answer["items"]}
        assert answer["model"]["version"] == toy_store.bundle
        assert {part["modality"] for part in answer["modality_interest"]} == {"visual", "text", "category"}
        explained = (await client.post("/v1/explanations", json={"user_id": "ann", "item_ids": [first]})).json()
        assert explained["items"][0]["item_id"] == first
        assert {past["item_id"] for past in explained["history"]} == {event["item_id"] for event in events}
        page = (await client.get("/metrics")).text
        assert "prismrec_servable_swaps_total 1.0" in page
        assert "prismrec_store_up 1.0" in page


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_what_one_worker_keeps_or_forgets_of_a_user_holds_for_the_next_answer_of_every_worker(
    toy_store, tmp_path, kind
):
    with contextlib.ExitStack() as stack:
        history = f"sqlite:{tmp_path}/events.db"
        if kind == "redis":
            server = RedisServer(tmp_path).start()
            stack.callback(server.stop)
            history = server.url
        flags = {"history": history, "events": {"read_timeout_s": 5.0, "write_timeout_s": 10.0}}
        async with running(toy_store.store, **flags) as one, running(toy_store.store, **flags) as other:

            async def shown(client, **body):
                answer = (
                    await client.post("/v1/recommendations", json={"k": 500, "timeout_ms": 10_000, **body})
                ).json()
                assert answer["degraded"] == []
                return answer["events_used"], {item["item_id"] for item in answer["items"]}

            _, everything = await shown(one)
            first, second, third, *_ = sorted(everything)
            for number, (who, item) in enumerate((("user_id", first), ("session_id", second))):
                event = {"event_id": f"e{number}", who: "ann", "item_id": item, "type": "click"}
                event["occurred_at"] = "2026-01-01T00:00:00Z"
                await one.post("/v1/events", json={"events": [event]})
            assert (await one.post("/v1/users/ann/merge", json={"session_id": "ann"})).json()["events"] == 1
            assert (await other.put(f"/v1/users/ann/blocks/{third}")).status_code == 204
            for client in (one, other):
                assert await shown(client, user_id="ann") == (2, everything - {first, second, third})
                assert await shown(client, user_id="ann", include_seen=True) == (2, everything - {third})
                assert await shown(client, session_id="ann") == (0, everything)
                assert len((await client.get("/v1/users/ann/events")).json()["events"]) == 2
            interest = (await one.get("/v1/users/ann/interests?timeout_ms=10000")).json()
            body = {"user_id": "ann", "explain": "summary", "timeout_ms": 10_000}
            said = (await other.post("/v1/recommendations", json=body)).json()["modality_interest"]
            assert interest["windows"][-1]["modality_interest"] == [
                {**part, "share": pytest.approx(part["share"], abs=1e-5)} for part in said
            ]
            assert (await other.delete("/v1/users/ann")).status_code == 204
            for client in (one, other):
                assert await shown(client, user_id="ann") == (0, everything)
                assert (await client.get("/v1/users/ann/blocks")).json() == {"blocks": []}


async def test_a_model_with_learned_users_and_items_is_served(toy_dataset, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    bundle = make_id_bundle(store, toy_dataset)
    bundles.make_snapshot(store, toy_dataset, bundle=bundle)
    async with running(store.root, history=f"sqlite:{tmp_path}/events.db") as client:
        said = (await client.get("/v1/models/factors/modalities")).json()
        assert said["model"] == {"name": "factors", "version": bundle}
        assert said["parts"] == ["visual", "text", "category", "id", "bias"]
        assert said["modalities"][0] == {"modality": "visual", "dim": 32, "mask": MASK}
        assert (said["num_known_items"], said["num_known_users"]) == (30, 3)
        assert (said["fold_in"]["recall"], said["cold_items"]["exposure_ratio"]) == (0.3, 0.9)
        assert_problem(await client.get("/v1/models/demure/modalities"), "not-found")

        for body in ({"user_id": "zoë"}, {"history": [{"item_id": "i0003"}, {"item_id": "i0004"}]}):
            answer = (await client.post("/v1/recommendations", json={**body, "k": 5, "explain": "full"})).json()
            assert (answer["degraded"], answer["events_used"]) == ([], len(body.get("history", ())))
            for item in answer["items"]:
                why = item["explanation"]
                assert item["source"] == "model"
                assert [part["modality"] for part in why["contributions"]] == said["parts"]
                total = sum(part["value"] for part in why["contributions"]) + why["residual"]
                assert total == pytest.approx(item["score"], abs=1e-5 * (1 + abs(item["score"])))
        vectors = {"text": [1.0] + [0.0] * 23}
        brought = {"history": [{"item_id": "new", "modalities": vectors}], "k": 3, "method": "shapley"}
        answer = (await client.post("/v1/explanations", json=brought)).json()
        (past,) = answer["history"]
        assert past["by_modality"]["visual"] == 0
        assert past["by_modality"]["id"] != 0


async def test_a_service_starts_before_there_is_a_version_and_follows_when_there_is_one(toy_store, empty):
    async with running(empty, reload={"interval_s": 0.01}) as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["checks"]["model"] == {"status": "failing", "detail": "no version is loaded"}
        problem = await client.post("/v1/recommendations", json={})
        assert_problem(problem, "not-ready")
        assert int(problem.headers["retry-after"]) > 0
        assert (await client.get("/version")).json()["model"] is None
        event = {"event_id": "e", "user_id": "u", "item_id": "i", "type": "t", "occurred_at": "2026-01-01T00:00:00Z"}
        assert (await client.post("/v1/events", json={"events": [event]})).json()["accepted"] == 1

        shutil.copytree(toy_store.store / "versions", empty / "versions")
        ArtifactStore(empty).set_current(toy_store.snapshot)
        for _ in range(2_000):
            if (await client.get("/readyz")).status_code == 200:
                break
            await asyncio.sleep(0.005)
        assert (await client.get("/version")).json()["index"] == toy_store.snapshot


async def test_a_version_that_is_refused_is_listed_and_the_old_one_goes_on(toy_store, empty):
    shutil.copytree(toy_store.store, empty, dirs_exist_ok=True)
    async with running(empty, reload={"interval_s": 0.01}) as client:
        assert (await client.get("/readyz")).status_code == 200
        (empty / "CURRENT").write_text("snapshot-20990101t000000z-aaaaaa\n")
        for _ in range(2_000):
            ready = (await client.get("/readyz")).json()
            if ready["refused_versions"]:
                break
            await asyncio.sleep(0.005)
        assert ready["ready"] is True
        assert ready["checks"]["index"]["status"] == "degraded"
        assert (await client.post("/v1/recommendations", json={})).status_code == 200
        assert "prismrec_servable_refusals_total 1.0" in (await client.get("/metrics")).text


async def test_an_event_store_that_goes_away_leaves_the_service_ready_and_listed(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "MAINTAIN_EVERY_S", 0.01)
    path = tmp_path / "events.db"
    async with running(toy_store.store, history=f"sqlite:{path}") as client:
        path.rename(tmp_path / "hidden.db")
        ready = (await client.get("/readyz")).json()
        assert (ready["ready"], ready["checks"]["store"]["status"]) == (True, "degraded")
        answer = (await client.post("/v1/recommendations", json={"user_id": "u"})).json()
        assert answer["degraded"] == ["store_unavailable"]
        assert "prismrec_degraded_answers_total" in (await client.get("/metrics")).text
        (tmp_path / "hidden.db").rename(path)
        assert (await client.get("/readyz")).json()["checks"]["store"]["status"] == "ok"


async def test_draining_fails_readiness_and_nothing_else(toy_store, tmp_path):
    async with running(toy_store.store, history=f"sqlite:{tmp_path}/events.db") as client:
        client.drain.begun = True
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["checks"]["process"]["status"] == "failing"
        assert (await client.post("/v1/recommendations", json={})).status_code == 200


async def test_when_a_part_that_must_not_die_dies_the_service_is_asked_to_stop():
    failed = asyncio.Event()
    others_ended = []

    async def dies():
        raise OSError("gone")

    async def lives():
        try:
            await asyncio.Event().wait()
        finally:
            others_ended.append(True)

    async with background(lives, dies, on_failure=failed.set):
        await asyncio.wait_for(failed.wait(), 5)
    assert others_ended == [True]


async def test_the_end_of_the_service_is_no_failure():
    failures = []

    async def lives():
        await asyncio.Event().wait()

    async with background(lives, on_failure=lambda: failures.append(True)):
        pass
    assert failures == []


async def test_a_scenario_is_set_up_answers_and_is_taken_down_while_the_service_runs(toy_store, empty):
    shutil.copytree(toy_store.store, empty, dirs_exist_ok=True)
    arms = [{"name": name, "index": toy_store.snapshot, "weight": 1} for name in ("a", "b")]

    async def until(client, status: int):
        for _ in range(2_000):
            response = await client.post("/v1/recommendations", json={"scenario": "home", "user_id": "ann", "k": 3})
            if response.status_code == status:
                break
            await asyncio.sleep(0.005)
        return response

    async with running(empty, reload={"interval_s": 0.01}) as client:
        assert_problem(await client.post("/v1/recommendations", json={"scenario": "home"}), "not-found")
        made = await client.put("/v1/aliases/home", json={"experiment": "blue", "arms": arms})
        assert made.status_code == 200
        answer = (await until(client, 200)).json()
        assert answer["experiment"]["name"] == "blue"
        assert answer["index"]["version"] == toy_store.snapshot
        assert (await client.get("/version")).json()["scenarios"] == {"home": [toy_store.snapshot] * 2}
        of_ann = (await client.get("/v1/users/ann/interests", params={"scenario": "home"})).json()
        assert of_ann["experiment"] == answer["experiment"], "the arm hangs on the user"
        for path in ("/v1/popular", f"/v1/items/{answer['items'][0]['item_id']}/similar"):
            assert (await client.get(path, params={"scenario": "home"})).json()["experiment"]["name"] == "blue"
            assert_problem(await client.get(path, params={"scenario": "away"}), "not-found")
        ready = (await client.get("/readyz")).json()
        assert ready["checks"]["scenarios"]["status"] == "ok"

    async with running(empty, reload={"interval_s": 0.01}) as client:  # there from the first request on, and as before
        again = (await client.post("/v1/recommendations", json={"scenario": "home", "user_id": "ann", "k": 3})).json()
        assert again["experiment"] == answer["experiment"]
        assert (await client.delete("/v1/aliases/home")).status_code == 204
        assert_problem(await until(client, 404), "not-found")
