"""Builds over HTTP fold in what was changed over HTTP: nothing acknowledged is lost, whatever ends them, and the file
that the changes travel in is gone when they are over."""

import asyncio
import os
import signal

import httpx2
import pytest

from index.dataset import Dataset
from index.jobs import PROCESS_ENDED
from index.store import ArtifactStore
from index.trimmed import trimmed_to
from service.stores import with_items
from tests.bundles import make_bundle, make_snapshot
from tests.integration.test_builds import job_when, over, processes_of, running
from tests.integration.test_fold_items import follow
from tests.integration.test_live_items import vectors_of
from tests.processes import RedisServer, Service, wait_until

SLOW = 'exact_max_items = 0\nfactory = "IVF4,Flat"\nbatch_rows = 1\n'


@pytest.fixture
def store(tmp_path, toy_dataset) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "store")
    (store.root / "data").mkdir(parents=True)
    (store.root / "data" / "toy").symlink_to(toy_dataset)
    return store


@pytest.fixture
def body(store, toy_dataset):
    """Ask for an index like the one that is current."""
    model = make_bundle(store, toy_dataset)
    make_snapshot(store, toy_dataset, bundle=model)
    return {"model": model, "data": "toy"}


async def built(client, body):
    made = await client.post("/v1/indexes", json=body)
    job = (await job_when(client, made.headers["location"], over))[-1]
    if job["state"] == "succeeded" and body.get("make_current", True):
        await follow(client, job["index"])
    return job


async def change(client, toy_store):
    """Put, patch, delete and hide an item each."""
    new = {"modalities": vectors_of(toy_store, 20), "title": "New"}
    assert (await client.put("/v1/items/new", json=new)).status_code == 200
    assert (await client.patch("/v1/items/i0031", json={"title": "Patched"})).status_code == 200
    assert (await client.delete("/v1/items/i0033")).status_code == 200
    assert (await client.patch("/v1/items/i0034", json={"available": False})).status_code == 200


async def shown(client) -> set[str]:
    answer = await client.post("/v1/recommendations", json={"history": [{"item_id": "i0003"}], "k": 100})
    assert answer.json()["degraded"] == []
    return {item["item_id"] for item in answer.json()["items"]}


def titles(dataset) -> dict[str, str]:
    table = dataset.items()
    return dict(zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True))


async def records_when_trimmed(history, *, to):
    """Return what is kept of changes once those up to a number are forgotten."""
    for _ in range(1_000):
        found = await asyncio.to_thread(with_items, history, lambda kept: kept.changed_since(0, limit=100), timeout_s=5)
        if found.trimmed_to >= to:
            return found.records
        await asyncio.sleep(0.01)
    raise AssertionError(found)


def files_left(store):
    return [path.name for path in (store.root / "jobs").glob("*.changes*")] + list(store.root.glob("*/*/.tmp-*"))


async def test_a_build_folds_in_what_was_changed_and_the_next_one_goes_on_from_there(store, body, history, toy_store):
    async with running(store, history=history) as client:
        await change(client, toy_store)
        before = await shown(client)
        assert "new" in before
        assert not {"i0033", "i0034"} & before

        first = await built(client, body)
        assert (first["state"], first["error"], first["folded_changes"]) == ("succeeded", None, 4)
        folded = Dataset.open(store.root / first["folded_data"])
        assert titles(folded).items() >= {"new": "New", "i0031": "Patched"}.items()
        assert "i0033" not in titles(folded)
        assert store.open_snapshot(first["index"])[1].changes_seq == 4
        assert await shown(client) == before
        assert (await client.get("/v1/items/i0031")).json()["metadata"]["title"] == "Patched"

        assert (await client.delete("/v1/items/new")).status_code == 200
        second = await built(client, body)
        assert (second["folded_changes"], store.open_snapshot(second["index"])[1].num_items) == (1, 59)
        assert second["folded_data"] != first["folded_data"]
        assert await shown(client) == before - {"new"}
        assert files_left(store) == []

        # This index and the one before it have the first four; that an item is hidden stays.
        assert trimmed_to(store) == 4
        assert [record.item_id for record in await records_when_trimmed(history, to=4)] == ["i0034", "new"]
        refused = await built(client, {**body, "fold_changes": False})
        assert "toy: has the changes of items up to 0, and those up to 4 were trimmed" in refused["error"]
        third = await built(client, body)
        assert (third["state"], third["folded_changes"], third["folded_data"]) == (
            "succeeded",
            0,
            second["folded_data"],
        )
        assert await shown(client) == before - {"new"}


async def test_without_changes_or_without_folding_an_index_is_built_from_the_folder_as_it_is(store, body, toy_store):
    async with running(store) as client:
        job = await built(client, body)
        assert (job["state"], job["folded_changes"], job["folded_data"]) == ("succeeded", 0, None)
        await change(client, toy_store)
        before = await shown(client)
        job = await built(client, {**body, "fold_changes": False})
        assert (job["state"], job["folded_changes"], job["folded_data"]) == ("succeeded", None, None)
        assert store.open_snapshot(job["index"])[1].num_items == 60
        assert await shown(client) == before, "what an index lacks is searched beside it"
        assert not (store.root / "folded").exists()


async def test_a_change_that_comes_while_an_index_is_built_is_in_the_next_answer_and_the_next_index(
    store, body, toy_store, tmp_path
):
    (tmp_path / "slow.toml").write_text(SLOW)
    async with running(store, builds={"config": tmp_path / "slow.toml"}) as client:
        await change(client, toy_store)
        made = await client.post("/v1/indexes", json=body)
        await job_when(client, made.headers["location"], lambda job: job["folded_changes"] is not None)
        late = {"modalities": vectors_of(toy_store, 21), "title": "Late"}
        assert (await client.put("/v1/items/late", json=late)).status_code == 200
        assert (await client.delete("/v1/items/i0035")).status_code == 200
        expected = await shown(client)
        assert "late" in expected
        assert "i0035" not in expected
        job = (await job_when(client, made.headers["location"], over))[-1]
        await follow(client, job["index"])
        assert (job["folded_changes"], store.open_snapshot(job["index"])[1].changes_seq) == (4, 4)
        assert await shown(client) == expected
        job = await built(client, body)
        assert (job["folded_changes"], await shown(client)) == (2, expected)


async def test_a_build_that_is_killed_while_it_folds_loses_nothing(store, body, toy_store):
    async with running(store) as client:
        await change(client, toy_store)
        before = await shown(client)
        made = await client.post("/v1/indexes", json=body)
        await job_when(client, made.headers["location"], lambda job: bool(processes_of(job["id"])))
        os.kill(processes_of(made.json()["id"])[0], signal.SIGKILL)
        job = (await job_when(client, made.headers["location"], over))[-1]
        assert (job["state"], job["error"]) == ("failed", PROCESS_ENDED)
        assert await shown(client) == before
        job = await built(client, body)
        assert (job["state"], store.open_snapshot(job["index"])[1].changes_seq) == ("succeeded", 4)
        assert await shown(client) == before
        assert files_left(store) == []


async def test_a_change_that_can_not_be_folded_in_is_named(store, body, toy_store):
    async with running(store) as client:
        item = {"modalities": vectors_of(toy_store, 20)}
        for item_id, year in (("new", 2026), ("other", "old")):
            await client.put(f"/v1/items/{item_id}", json={**item, "attributes": {"year": year}})
        job = await built(client, body)
        assert job["state"] == "failed"
        assert "item 'other', year: 'old' does not fit into the dataset's column of int64" in job["error"]
        assert str(store.root) not in job["error"]
        await client.put("/v1/items/other", json={**item, "attributes": {"year": 1999}})
        assert (await built(client, body))["state"] == "succeeded"
        assert files_left(store) == []


async def test_a_build_fails_in_words_while_the_changes_can_not_be_read(store, body, tmp_path):
    lost = RedisServer(tmp_path).start()
    async with running(store, history=lost.url) as client:
        lost.stop()
        job = await built(client, body)
        assert (job["state"], job["error"]) == ("failed", "the changes of items can not be read; the log has more")
        assert files_left(store) == []


def test_a_service_that_is_killed_while_it_builds_has_all_changes_after_a_restart(store, body, toy_store, tmp_path):
    service = Service(store.root, log=tmp_path / "log", PRISMREC_HTTP__DRAIN_S="0").start()
    try:

        def build():
            made = httpx2.post(f"{service.url}/v1/indexes", json=body)
            return f"{service.url}{made.headers['location']}", made.json()["id"]

        def job_at(url):
            return httpx2.get(url).json()

        item = {"modalities": vectors_of(toy_store, 20), "title": "New"}
        assert httpx2.put(f"{service.url}/v1/items/new", json=item).status_code == 200
        url, job_id = build()
        wait_until(lambda: job_at(url)["state"] == "running", what="it begins")
        service.kill()
        wait_until(lambda: not processes_of(job_id), what="the build ends with the service")
        service.start()
        assert httpx2.get(f"{service.url}/v1/items/new").json()["metadata"]["title"] == "New"
        assert (job_at(url)["state"], files_left(store)) == ("failed", [])
        url, _ = build()
        wait_until(lambda: over(job_at(url)), what="the next one is built")
        assert (job_at(url)["state"], job_at(url)["error"]) == ("succeeded", None)
        assert store.open_snapshot(job_at(url)["index"])[1].num_items == 61
        assert files_left(store) == []
    finally:
        service.stop()
