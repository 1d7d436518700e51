"""Items that change between two rebuilds, over HTTP: two services on one store, as two workers are."""

import asyncio
import json
from contextlib import AsyncExitStack

import numpy as np
import pytest

from index.dataset import Dataset
from index.store import ArtifactStore
from tests import bundles
from tests.http_app import assert_problem
from tests.integration.test_service_app import running
from tests.ranker_bundles import make_ranker_bundle

PAST = {"history": [{"item_id": "i0003"}, {"item_id": "i0014"}]}
CANDIDATES = [*(f"i{number:04d}" for number in range(60)), "new"]
ANN = {"user_id": "ann", "k": 60}


@pytest.fixture(params=["sqlite", "redis"])
async def pair(request, toy_store, tmp_path):
    """Two services that share the store of events and changes; the second hears of a change from its store alone."""
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        history = server.url
    else:
        history = f"sqlite:{tmp_path}/events.db"
    async with AsyncExitStack() as stack:
        slow = {
            "items": {"interval_s": 3_600},
            "events": {"read_timeout_s": 5, "write_timeout_s": 5},
            "http": {"default_timeout_ms": 10_000},
        }
        yield [await stack.enter_async_context(running(toy_store.store, history=history, **slow)) for _ in range(2)]


def vectors_of(toy_store, row: int) -> dict[str, list[float]]:
    data = Dataset.open(toy_store.dataset)
    return {
        name: np.asarray(data.features(name)[row], np.float32).tolist()
        for name in data.modality_names
        if data.presence(name)[row]
    }


async def answers(client) -> dict[str, list[dict]]:
    """Return what every path answers, whole."""
    popular = (await client.get("/v1/popular?k=100")).json()["items"]
    others = popular[0]["item_id"], popular[1]["item_id"]
    paths = {
        "model": client.post("/v1/recommendations", json={**PAST, "k": 100, "include_seen": True}),
        "user": client.post("/v1/recommendations", json={**ANN, "k": 100}),
        "popular for nobody": client.post("/v1/recommendations", json={"k": 100}),
        "candidates": client.post(
            "/v1/recommendations",
            json={**PAST, "k": 100, "include_seen": True, "candidate_item_ids": CANDIDATES},
        ),
        "filtered": client.post(
            "/v1/recommendations",
            json={**PAST, "k": 100, "include_seen": True, "filter": {"categories_any": ["travel", "garden", "music"]}},
        ),
        "similar": client.get(f"/v1/items/{others[0]}/similar?k=100"),
        "similar by modality": client.get(f"/v1/items/{others[1]}/similar?k=100&modality=category"),
    }
    found = {"popular": popular}
    for name, answer in zip(paths, await asyncio.gather(*paths.values()), strict=True):
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json()["degraded"] == [], (name, answer.text)
        found[name] = answer.json()["items"]
    for name, items in found.items():
        assert len(set(ids(items))) == len(items), name
    return found


def ids(items) -> list[str]:
    return [item["item_id"] for item in items]


def where(found, item_id) -> set[str]:
    return {name for name, items in found.items() if item_id in ids(items)}


@pytest.mark.parametrize("how", ["hide", "delete"])
async def test_what_is_hidden_or_deleted_is_gone_from_the_next_answer_of_the_other_worker(pair, how):
    one, other = pair
    before = await answers(other)
    assert where(before, "i0020") == set(before)
    if how == "hide":
        changed = await one.patch("/v1/items/i0020", json={"available": False})
    else:
        changed = await one.delete("/v1/items/i0020")
    assert changed.json() == {"item_id": "i0020", "seq": 1}, changed.text
    for client in (other, one):
        after = await answers(client)
        assert where(after, "i0020") == set()
        for name, items in after.items():
            assert ids(items) == [item_id for item_id in ids(before[name]) if item_id != "i0020"], name
    shown = await other.get("/v1/items/i0020")
    if how == "delete":
        assert_problem(shown, "not-found")
        assert_problem(await one.patch("/v1/items/i0020", json={"available": True}), "not-found")
        assert_problem(await one.get("/v1/items/i0020/similar"), "not-found")
    else:
        assert shown.json()["available"] is False
        assert (await one.get("/v1/items/i0020/similar?k=3")).json()["items"]
        await other.patch("/v1/items/i0020", json={"available": True})
        assert await answers(one) == before


async def test_a_hidden_item_still_counts_in_a_history_and_a_deleted_one_does_not(pair):
    one, other = pair
    before = (await other.post("/v1/recommendations", json={**PAST, "k": 5})).json()
    await one.patch("/v1/items/i0003", json={"available": False})
    hidden = (await other.post("/v1/recommendations", json={**PAST, "k": 5})).json()
    assert (hidden["events_used"], hidden["items"]) == (2, before["items"])
    await one.delete("/v1/items/i0003")
    deleted = (await other.post("/v1/recommendations", json={**PAST, "k": 5})).json()
    assert (deleted["events_used"], deleted["unknown_item_ids"]) == (1, ["i0003"])


async def test_a_new_item_is_found_on_every_path_explained_and_read_in_histories(pair, toy_store):
    one, other = pair
    body = {
        "modalities": vectors_of(toy_store, 20),
        "title": "New",
        "categories": ["travel", "garden"],
        "attributes": {"year": 2026, "brand": "acme"},
    }
    assert_problem(await other.get("/v1/items/new"), "not-found")
    assert (await one.put("/v1/items/new", json=body)).json() == {"item_id": "new", "seq": 1}
    found = await answers(other)
    assert where(found, "new") == set(found)
    scores = {item["item_id"]: item["score"] for item in found["model"]}
    assert scores["new"] == pytest.approx(scores["i0020"], abs=1e-5)
    assert [item["item_id"] for item in found["popular"]][-1] == "new", "it has no popularity yet"
    shown = (await other.get("/v1/items/new")).json()
    assert shown["metadata"] == {
        "title": "New",
        "categories": ["travel", "garden"],
        "attributes": {"year": 2026, "brand": "acme"},
    }
    assert shown["modalities"] == ["visual", "text", "category"]

    for modality in ("", "&modality=visual"):
        like = (await other.get(f"/v1/items/new/similar?k=3{modality}")).json()["items"]
        assert like[0]["item_id"] == "i0020"
        assert like[0]["score"] == pytest.approx(1, abs=1e-5)
    filtered = {**PAST, "k": 60, "filter": {"categories_all": ["travel", "garden"], "attributes": {"year": [2026.0]}}}
    only = (await other.post("/v1/recommendations", json=filtered)).json()["items"]
    assert [item["item_id"] for item in only] == ["new"]

    explained = (await other.post("/v1/explanations", json={**PAST, "item_ids": ["new", "i0020"]})).json()
    new, old = [{part["modality"]: part["value"] for part in item["contributions"]} for item in explained["items"]]
    assert new == pytest.approx(old, abs=1e-6)
    by_new = (await other.post("/v1/recommendations", json={"history": [{"item_id": "new"}], "explain": "full"})).json()
    by_old = (await other.post("/v1/recommendations", json={"history": [{"item_id": "i0020"}]})).json()
    assert (by_new["events_used"], by_new["unknown_item_ids"]) == (1, [])
    assert by_new["items"][0]["item_id"] == "i0020"
    assert by_new["items"][0]["explanation"]["history"][0]["item_id"] == "new"
    assert by_old["items"][0]["item_id"] == "new"

    await other.delete("/v1/items/new")
    assert where(await answers(one), "new") == set()


async def test_a_replaced_item_is_what_it_is_now(pair, toy_store):
    one, other = pair
    before = await answers(other)
    place = [item["item_id"] for item in before["popular"]].index("i0020")
    await one.put("/v1/items/i0020", json={"modalities": vectors_of(toy_store, 21), "title": "Other"})
    found = await answers(other)
    scores = {item["item_id"]: item["score"] for item in found["model"]}
    assert scores["i0020"] == pytest.approx(scores["i0021"], abs=1e-5)
    assert where(found, "i0020") == set(found) - {"filtered"}, "it has no category any more"
    assert found["popular"][place]["item_id"] == "i0020", "it is as popular as before"
    assert found["popular"][place]["metadata"] == {"title": "Other", "attributes": {}}


async def test_a_patch_changes_what_is_said_and_filtered_and_leaves_the_vectors(pair):
    one, other = pair
    before = await answers(other)
    patch = {"title": "Patched", "categories": ["unheard"], "attributes": {"brand": "none such"}}
    await one.patch("/v1/items/i0020", json=patch)
    found = await answers(other)
    line = next(item for item in found["model"] if item["item_id"] == "i0020")
    was = next(item for item in before["model"] if item["item_id"] == "i0020")
    assert line["score"] == pytest.approx(was["score"], abs=1e-6)
    assert line["metadata"] == was["metadata"] | patch
    assert where(found, "i0020") == set(found) - {"filtered"}
    query = {**PAST, "filter": {"categories_any": ["unheard"]}}
    assert ids((await other.post("/v1/recommendations", json=query)).json()["items"]) == ["i0020"]
    await one.patch("/v1/items/i0020", json={"title": None})
    assert "title" not in (await other.get("/v1/items/i0020")).json()["metadata"]


@pytest.mark.parametrize(
    ("method", "body", "pointer"),
    [
        ("put", {"modalities": {"visual": [1.0]}}, "/modalities/visual"),
        ("put", {"modalities": {"smell": [1.0]}}, "/modalities/smell"),
        ("put", {"modalities": {"visual": [1e300] * 32}}, "/modalities/visual"),
        ("put", {"title": 3}, "/title"),
        ("put", {"name": "x"}, "/name"),
        ("patch", {}, ""),
        ("patch", {"available": None}, "/available"),
        ("patch", {"modalities": {}}, "/modalities"),
    ],
)
async def test_a_wrong_body_is_refused_by_field(toy_store, tmp_path, method, body, pointer):
    async with running(toy_store.store, history=f"sqlite:{tmp_path}/events.db") as client:
        response = await getattr(client, method)("/v1/items/i0001", json=body)
        problem = assert_problem(response, "validation-error", pointer)
        if body == {"modalities": {"visual": [1.0]}}:
            assert problem.errors[0].detail == "has 1 numbers, this model's visual has 32"
        assert_problem(await getattr(client, method)(f"/v1/items/{'x' * 257}", json={"title": "t"}), "validation-error")


async def test_only_so_many_items_may_change(toy_store, tmp_path):
    async with running(toy_store.store, history=f"sqlite:{tmp_path}/e.db", items={"max_changed": 2}) as client:
        for number in (1, 2):
            await client.patch(f"/v1/items/i000{number}", json={"available": False})
        assert_problem(await client.delete("/v1/items/i0003"), "conflict")
        assert (await client.delete("/v1/items/i0002")).status_code == 200


async def test_a_ranker_orders_new_items_as_it_would_after_a_rebuild(toy_store, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    data = Dataset.open(toy_store.dataset)
    retriever = bundles.make_bundle(store, data)
    ranker = make_ranker_bundle(store, data, history_length=6)
    bundles.make_snapshot(store, data, bundle=retriever, ranker=ranker)
    async with running(store.root, history=f"sqlite:{tmp_path}/events.db") as client:
        await client.put("/v1/items/new", json={"modalities": vectors_of(toy_store, 20)})
        await client.patch("/v1/items/i0021", json={"title": "Patched"})
        await client.patch("/v1/items/i0022", json={"available": False})
        answer = (await client.post("/v1/recommendations", json={**PAST, "k": 100, "explain": "full"})).json()
        assert (answer["degraded"], answer["ranker"]["version"]) == ([], ranker)
        lines = {item["item_id"]: item for item in answer["items"]}
        assert lines["new"]["score"] == pytest.approx(lines["i0020"]["score"], abs=1e-5)
        assert lines["i0021"]["metadata"]["title"] == "Patched"
        assert "i0022" not in lines
        query = {"history": [{"item_id": "new"}, {"item_id": "i0022"}], "k": 5}
        answer = (await client.post("/v1/recommendations", json=query)).json()
        assert (answer["events_used"], answer["ranker"]["version"]) == (2, ranker)


NDJSON = {"content-type": "application/x-ndjson"}


def ndjson(*lines) -> bytes:
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)


async def test_one_bad_line_of_many_spoils_only_itself(pair, toy_store):
    one, other = pair
    lines = ndjson(
        {"op": "put", "item_id": "new", "modalities": vectors_of(toy_store, 20), "title": "New"},
        b"",
        {"op": "put", "item_id": "bad", "modalities": {"visual": [1.0]}},
        {"op": "patch", "item_id": "new", "title": "Newer"},
        b"{no json",
        {"op": "patch", "item_id": "nowhere", "available": False},
        {"op": "patch", "item_id": "i0001", "available": "no"},
        {"op": "sell", "item_id": "i0001"},
        {"op": "put", "item_id": "long", "description": "x" * 1_100_000},
        [],
        {"op": "delete", "item_id": "i0020"},
        {"op": "patch", "item_id": "i0020", "available": True},
        {"op": "patch", "item_id": "i0021"},
    )

    async def pieces():
        for start in range(0, len(lines), 70_001):
            yield lines[start : start + 70_001]

    answer = (await one.post("/v1/items/bulk", content=pieces(), headers=NDJSON)).json()
    assert (answer["accepted"], answer["unread_from"]) == (3, None)
    said = [
        (
            one["line"],
            one["problem"]["type"].rpartition(":")[2].rpartition("/")[2],
            [e["pointer"] for e in one["problem"].get("errors", [])],
        )
        for one in answer["rejected"]
    ]
    assert said == [
        (3, "validation-error", ["/modalities/visual"]),
        (5, "malformed-json", []),
        (6, "not-found", []),
        (7, "validation-error", ["/available"]),
        (8, "validation-error", ["/op"]),
        (9, "payload-too-large", []),
        (10, "validation-error", ["/op"]),
        (12, "not-found", []),
        (13, "validation-error", [""]),
    ]
    found = await answers(other)
    assert where(found, "i0020") == set()
    assert next(item for item in found["model"] if item["item_id"] == "new")["metadata"]["title"] == "Newer"


async def test_many_lines_are_kept_in_batches_and_only_so_many(toy_store, tmp_path):
    async with running(toy_store.store, history=f"sqlite:{tmp_path}/e.db", items={"max_changed": 450}) as client:
        lines = [{"op": "put", "item_id": f"n{number}", "title": "t"} for number in range(1_000)]
        answer = (await client.post("/v1/items/bulk", content=ndjson(*lines), headers=NDJSON)).json()
        assert (answer["accepted"], answer["unread_from"]) == (400, 601)
        assert [one["line"] for one in answer["rejected"]] == list(range(401, 601))
        assert {one["problem"]["status"] for one in answer["rejected"]} == {409}
        assert_problem(await client.post("/v1/items/bulk", content=ndjson(*lines[400:]), headers=NDJSON), "conflict")
        many = b'{"op":"patch","item_id":"i0001","available":false}\n' * 10_001
        answer = (await client.post("/v1/items/bulk", content=many, headers=NDJSON)).json()
        assert (answer["accepted"], answer["rejected"], answer["unread_from"]) == (10_000, [], 10_001)
        assert_problem(await client.post("/v1/items/bulk", json=[]), "unsupported-media-type")
        assert (await client.post("/v1/items/bulk", content=b"", headers=NDJSON)).json()["accepted"] == 0
