"""Builds that a service starts: in a process of their own, one at a time, killed with whoever started them."""

import asyncio
import os
import re
import signal
import time
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest

from index.jobs import PROCESS_ENDED
from index.store import ArtifactStore
from service.main import create_app
from service.settings import load_settings
from tests.bundles import make_bundle, make_random_dataset
from tests.processes import Service, wait_until

NUM_ITEMS = 20_000
SLOW = 'exact_max_items = 0\nfactory = "IVF16,SQ8"\nbatch_rows = 16\n'
"""Small batches: a build takes seconds, and may be killed in the middle of them."""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return make_random_dataset(tmp_path_factory.mktemp("builds") / "large", num_items=NUM_ITEMS, num_users=50)


@pytest.fixture
def store(tmp_path, toy_dataset, large) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "store")
    (store.root / "data").mkdir(parents=True)
    (store.root / "data" / "toy").symlink_to(toy_dataset)
    (store.root / "data" / "large").symlink_to(large)
    (tmp_path / "slow.toml").write_text(SLOW)
    return store


@asynccontextmanager
async def running(store, **flags):
    settings = load_settings(store=store.root, reload={"interval_s": 0.05}, **flags)
    app = create_app(settings, on_failure=lambda: None)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def ask(client, path):
    """Ask again and again, a hundred times a second at most."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        yield (await client.get(path)).json()
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited in vain for {path}")


async def job_when(client, location, condition):
    """Ask for a job until it is as wanted; return what was answered up to then."""
    seen = []
    async for job in ask(client, location):
        seen.append(job)
        if condition(job):
            break
    return seen


def over(job) -> bool:
    return job["state"] not in ("queued", "running")


def in_the_middle(job) -> bool:
    return job["state"] == "running" and job["progress"] is not None and job["progress"]["stage"] == "encode items"


async def test_an_index_that_was_asked_for_is_built_and_served(store, toy_dataset):
    async with running(store) as client:
        assert (await client.post("/v1/recommendations", json={"k": 3})).status_code == 503
        body = {"model": make_bundle(store, toy_dataset), "data": "toy"}
        made = await client.post("/v1/indexes", json=body)
        job = (await job_when(client, made.headers["location"], over))[-1]
        assert (job["state"], job["error"], job["eta_s"]) == ("succeeded", None, None)
        assert job["progress"]["done"] == job["progress"]["total"] == 60
        assert store.current() == job["index"]
        async for version in ask(client, "/version"):
            if version["index"] == job["index"]:
                break
        assert (await client.post("/v1/recommendations", json={"k": 3})).status_code == 200

        made = await client.post("/v1/indexes", json={**body, "make_current": False})
        alone = (await job_when(client, made.headers["location"], over))[-1]
        assert (alone["state"], store.current()) == ("succeeded", job["index"])
        assert (await client.put("/v1/aliases/home", json={"index": alone["index"]})).status_code == 200
        # the second one is counted when its process is gone, which may be a moment after its record says so
        assert re.search(r'prismrec_builds_total{state="succeeded"} [12].0', (await client.get("/metrics")).text)


async def test_two_workers_build_one_at_a_time_and_each_knows_of_all(store, toy_dataset):
    async with running(store) as one, running(store) as other:
        body = {"model": make_bundle(store, toy_dataset), "data": "toy"}
        made = [await client.post("/v1/indexes", json=body) for client in (one, other)]
        ends = [(await job_when(other, answer.headers["location"], over))[-1] for answer in made]
        assert [job["state"] for job in ends] == ["succeeded"] * 2
        for before, after in pairwise(ends):
            assert before["ended_at"] <= after["started_at"]
        assert len(store.list()) == 1 + 2


async def test_a_build_that_can_not_be_done_says_why_and_the_next_one_runs(store, toy_dataset, large):
    async with running(store) as client:
        bundle = make_bundle(store, toy_dataset)
        wrong = await client.post("/v1/indexes", json={"model": bundle, "data": "large"})
        right = await client.post("/v1/indexes", json={"model": bundle, "data": "toy"})
        job = (await job_when(client, wrong.headers["location"], over))[-1]
        assert job["state"] == "failed"
        assert job["error"] == "visual: shape (8192, 128), expected (8192, 32)"
        assert str(store.root) not in job["error"]
        assert (await job_when(client, right.headers["location"], over))[-1]["state"] == "succeeded"


async def test_progress_is_that_of_real_stages_and_a_running_build_can_be_cancelled(store, large, tmp_path):
    async with running(store, builds={"config": tmp_path / "slow.toml"}) as client:
        made = await client.post("/v1/indexes", json={"model": make_bundle(store, large, dim=32), "data": "large"})
        seen = await job_when(client, made.headers["location"], lambda job: in_the_middle(job) and job["eta_s"])
        job = seen[-1]
        assert 0 < job["progress"]["done"] < job["progress"]["total"] == NUM_ITEMS
        assert job["progress"]["unit"] == "items"
        order = ["write items", "count interactions", "encode items"]  # whoever asks now and then may miss a short one
        stages = [order.index(one["progress"]["stage"]) for one in seen if one["progress"]]
        assert stages == sorted(stages)
        assert order[stages[-1]] == "encode items"
        cancelling = (await client.post(f"{made.headers['location']}/cancel")).json()
        assert (cancelling["state"], cancelling["cancel_requested"]) == ("running", True)
        job = (await job_when(client, made.headers["location"], over))[-1]
        assert (job["state"], job["error"], job["index"]) == ("cancelled", None, None)
        assert [entry.kind for entry in store.list()] == ["bundle"]
        assert store.current() is None


async def test_a_build_that_is_killed_has_failed_and_the_next_one_clears_up(store, large, toy_dataset, tmp_path):
    async with running(store, builds={"config": tmp_path / "slow.toml"}) as client:
        bundle = make_bundle(store, large, dim=32)
        made = await client.post("/v1/indexes", json={"model": bundle, "data": "large"})
        await job_when(client, made.headers["location"], in_the_middle)
        (process,) = processes_of(made.json()["id"])
        os.kill(process, signal.SIGKILL)
        job = (await job_when(client, made.headers["location"], over))[-1]
        assert (job["state"], job["error"]) == ("failed", PROCESS_ENDED)
        assert (store.list()[-1].kind, store.current()) == ("bundle", None)
        body = {"model": make_bundle(store, toy_dataset), "data": "toy"}
        again = await client.post("/v1/indexes", json=body)
        assert (await job_when(client, again.headers["location"], over))[-1]["state"] == "succeeded"
        assert list(store.root.glob("versions/.tmp-*")) == []


async def test_a_build_ends_with_the_service_and_those_that_wait_are_built_by_the_next_one(
    store, large, toy_dataset, tmp_path
):
    bundle, other = make_bundle(store, large, dim=32), make_bundle(store, toy_dataset)
    async with running(store, builds={"config": tmp_path / "slow.toml"}) as client:
        first = await client.post("/v1/indexes", json={"model": bundle, "data": "large"})
        waiting = await client.post("/v1/indexes", json={"model": other, "data": "toy"})
        await job_when(client, first.headers["location"], in_the_middle)
    assert processes_of(first.json()["id"]) == []
    async with running(store) as client:
        job = (await client.get(first.headers["location"])).json()
        assert (job["state"], job["error"]) == ("failed", PROCESS_ENDED)
        job = (await job_when(client, waiting.headers["location"], over))[-1]
        assert (job["state"], store.current()) == ("succeeded", job["index"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_that_is_killed_takes_its_build_with_it_and_tells_after_a_restart(store, large, tmp_path, workers):
    bundle = make_bundle(store, large, dim=32)
    service = Service(
        store.root,
        *("--workers", str(workers)),
        log=tmp_path / "log",
        PRISMREC_BUILDS__CONFIG=str(tmp_path / "slow.toml"),
        PRISMREC_HTTP__DRAIN_S="0",
    ).start()
    try:
        made = httpx2.post(f"{service.url}/v1/indexes", json={"model": bundle, "data": "large"})
        assert made.status_code == 202, made.text
        url = service.url + made.headers["location"]
        wait_until(lambda: in_the_middle(httpx2.get(url).json()), what="the build is at it")
        assert len(processes_of(made.json()["id"])) == 1
        service.kill()
        wait_until(lambda: not processes_of(made.json()["id"]), what="the build ends with the service")
        service.start()
        job = httpx2.get(url).json()
        assert (job["state"], job["error"]) == ("failed", PROCESS_ENDED)
        assert (store.current(), [entry.kind for entry in store.list()]) == (None, ["bundle"])
    finally:
        service.stop()


def processes_of(job_id: str) -> list[int]:
    """Return the processes that build a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"index.job_worker" in words and job_id.encode() in words:
            found.append(int(folder.name))
    return found
