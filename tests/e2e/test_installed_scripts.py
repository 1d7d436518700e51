"""The three installed commands as a person runs them: a new version and a rollback under load, and the way out."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from index.store import ArtifactStore
from tests import bundles
from tests.processes import free_port, until, wait_until

SCRIPTS = Path(sys.executable).parent
NUM_CLIENTS = 4


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def store(toy_dataset, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    bundles.make_snapshot(store, toy_dataset)
    return store


@pytest.fixture
def service(store, tmp_path):
    port = free_port()
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [SCRIPTS / "prismrec-serve", "--store", store.root, "--port", str(port), "--workers", "2"],
        env={"PRISMREC_RELOAD__INTERVAL_S": "0.05", "PRISMREC_HTTP__DRAIN_S": "0.2", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx2.get(f"{url}/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    wait_until(is_ready, what="the service is ready")
    yield process, url
    process.kill()
    process.wait()
    log.close()


class Callers:
    """Clients that ask without a pause, each on one connection, and note every answer and which version gave it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[list[tuple[int, str]]] = [[] for _ in range(NUM_CLIENTS)]
        self.stopped = asyncio.Event()

    async def ask(self, answers: list[tuple[int, str]]) -> None:
        body = {"history": [{"item_id": "i0001"}, {"item_id": "i0002"}], "k": 5, "explain": "summary"}
        async with httpx2.AsyncClient(base_url=self.url, timeout=30) as client:
            while not self.stopped.is_set():
                response = await client.post("/v1/recommendations", json=body)
                answers.append((response.status_code, response.json().get("index", {}).get("version", "")))

    def all_see(self, version: str) -> bool:
        return all(answers and answers[-1][1] == version for answers in self.answers)


async def test_a_rebuild_and_a_rollback_under_load_lose_no_request(service, store, toy_dataset):
    process, url = service
    first = store.current()
    bundle = store.open_snapshot(first)[1].bundle_version
    callers = Callers(url)
    asking = [asyncio.create_task(callers.ask(answers)) for answers in callers.answers]
    await until(lambda: callers.all_see(first), what="the first version answers")

    rebuild = ("rebuild", "--store", store.root, "--bundle", bundle, "--data", toy_dataset)
    made = await asyncio.to_thread(run, "prismrec-index", *rebuild)
    second = re.search(r"snapshot-[a-z0-9-]+", made)[0]
    assert second != first
    await until(lambda: callers.all_see(second), what="the second version answers")

    assert first in await asyncio.to_thread(run, "prismrec-index", "rollback", "--store", store.root)
    await until(lambda: callers.all_see(first), what="the first version answers again")
    callers.stopped.set()
    await asyncio.gather(*asking)

    seen = [answer for answers in callers.answers for answer in answers]
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == {first, second}
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0


def test_the_next_recommendation_sees_an_acknowledged_event_whichever_worker_answers(service):
    _, url = service
    body = {"user_id": "somebody", "k": 60}

    def ask() -> dict:
        return httpx2.post(
            f"{url}/v1/recommendations", json=body
        ).json()  # a connection, and so maybe a worker, of its own

    assert ask()["user_state"] == "cold"
    for number in range(1, 9):
        item_id = f"i{number:04d}"
        event = {"event_id": f"e{number}", "user_id": "somebody", "item_id": item_id, "type": "click"}
        stored = httpx2.post(
            f"{url}/v1/events", json={"events": [event | {"occurred_at": f"2026-01-0{number}T00:00:00Z"}]}
        )
        assert stored.json()["accepted"] == 1
        answer = ask()
        assert answer["events_used"] == number
        assert item_id not in {item["item_id"] for item in answer["items"]}


@pytest.mark.parametrize("script", ["prismrec-train", "prismrec-index", "prismrec-serve"])
def test_an_installed_script_starts_and_refuses_what_it_does_not_know(script):
    wrong = subprocess.run([SCRIPTS / script, "--no-such-option"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Usage" in wrong.stderr
    assert "no-such-option" in wrong.stderr
