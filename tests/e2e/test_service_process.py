"""The installed service as real processes: killed, stopped, restarted, balanced; nothing acknowledged is ever lost."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import httpx2
import pytest

from service.adapters.sqlite_store import SqliteStore
from service.recommend.types import user_subject
from tests.processes import RedisServer, Service, is_running, until, wait_until

CONNECTION_LOST = (httpx2.TransportError,)


def event(number, *, user="u"):
    return {
        "event_id": f"e{number}",
        "user_id": f"{user}{number % 5}",
        "item_id": f"i{number}",
        "type": "click",
        "occurred_at": "2026-01-01T00:00:00Z",
    }


class Sender:
    """Sends events one by one, on several connections, and remembers what was acknowledged."""

    def __init__(self, url):
        self.url = url
        self.acknowledged = []
        self.refused = []
        self.number = 0
        self.stop = asyncio.Event()

    async def run(self, width=4):
        await asyncio.gather(*[self._send() for _ in range(width)])

    async def _send(self):
        async with httpx2.AsyncClient(base_url=self.url, timeout=10) as client:
            while not self.stop.is_set():
                self.number += 1
                number = self.number
                try:
                    response = await client.post("/v1/events", json={"events": [event(number)]})
                except CONNECTION_LOST:
                    self.refused.append(number)
                    await asyncio.sleep(0.02)
                    continue
                (self.acknowledged if response.status_code == 200 else self.refused).append(number)
                assert response.status_code in (200, 503), response.text


def num_served(pid, port):
    """Return how many connections of clients a process has; those to its stores come and go by themselves."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{fields[9]}]" for fields in lines if fields[1].endswith(f":{port:04X}")}
    links = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(file.readlink()))
    return len(ours.intersection(links))


def test_one_process_is_killed_under_load_and_stopped_under_load(toy_store, tmp_path):
    database = tmp_path / "events.db"
    service = Service(
        toy_store.store, "--history", f"sqlite:{database}", log=tmp_path / "log", PRISMREC_HTTP__DRAIN_S="0.6"
    )
    try:
        service.start()
        wait_until(lambda: f"Prismrec answers at {service.url} (1 process)" in service.log.read_text(), what="address")
        asyncio.run(_kill_under_load(service, database))
        service.start()
        asyncio.run(_stop_under_load(service))
    finally:
        service.stop()
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "occurred_at" not in log, "bodies are not logged"


async def _kill_under_load(service, database):
    sender = Sender(service.url)
    sending = asyncio.create_task(sender.run())
    await until(lambda: len(sender.acknowledged) > 100, what="events are kept")
    service.kill()
    await until(lambda: len(sender.refused) > 5, what="events are refused")
    sender.stop.set()
    await sending
    store = SqliteStore(database)
    kept = set()
    for user in range(5):
        kept |= set((await store.history(user_subject(f"u{user}"), limit=10_000)).item_ids)
    await store.close()
    assert {f"i{number}" for number in sender.acknowledged} <= kept


async def _stop_under_load(service):
    """As a load balancer sees it: traffic goes on until /readyz says no, and not one request fails."""
    answers, closed, unready = [], 0, asyncio.Event()

    async def ask():
        nonlocal closed
        async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
            while not unready.is_set():
                response = await client.post("/v1/recommendations", json={"user_id": "u1", "k": 5})
                answers.append(response.status_code)
                closed += response.headers.get("connection") == "close"

    async def balance():
        async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
            while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - it is asked over HTTP
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)  # a balancer is a little late
            unready.set()

    async def slow():
        """A request that is under way when the port closes is still answered."""
        body = b'{"user_id": "u1"}'
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:5])
        await unready.wait()
        await until(lambda: not _is_open(service.port), what="the port closes")
        writer.write(body[5:])
        answer = await reader.read()
        writer.close()
        return answer

    tasks = [asyncio.create_task(job) for job in (ask(), ask(), ask(), ask(), balance(), slow())]
    await until(lambda: len(answers) >= 50, what="traffic")
    service.terminate()
    *_, late = await asyncio.gather(*tasks)
    assert set(answers) == {200}
    assert closed > 0
    assert late.startswith(b"HTTP/1.1 200"), late
    assert await asyncio.to_thread(service.wait) == 0


def _is_open(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_two_workers_share_the_load_survive_each_other_and_the_loss_of_redis(toy_store, tmp_path):
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis")
    service = Service(
        toy_store.store, "--workers", "2", "--history", redis.url, log=tmp_path / "log", PRISMREC_HTTP__DRAIN_S="0.6"
    )
    try:
        redis.start()
        service.start()
        wait_until(
            lambda: f"Prismrec answers at {service.url} (2 processes)" in service.log.read_text(), what="address"
        )
        asyncio.run(_share_the_load(service, 16))
        asyncio.run(_share_the_load(service, 64))
        asyncio.run(_lose_redis(service, redis))
        asyncio.run(_lose_a_worker(service))
        asyncio.run(_stop_under_load(service))
    finally:
        service.stop()
        redis.stop()
    log = service.log.read_text()
    assert "Traceback" not in log
    assert {"worker_died", "drain_begun", "service_stopped"} <= {line["event"] for line in service.lines()}


async def _share_the_load(service, num_connections):
    workers = service.children()
    assert len(workers) == 2
    limits = httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
    async with httpx2.AsyncClient(base_url=service.url, limits=limits, timeout=30) as client:
        held = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(num_connections - 1)]
        assert (await client.get("/livez")).status_code == 200
        wait_until(
            lambda: sum(num_served(pid, service.port) for pid in workers) >= num_connections,
            what="all are handed over",
        )
        shares = [num_served(pid, service.port) for pid in workers]
        assert max(shares) <= 0.65 * num_connections, shares
        page = (await client.get("/metrics")).text
        assert 'prismrec_requests_total{route="/livez",status="200"}' in page
        for _, writer in held:
            writer.close()
    wait_until(lambda: not any(num_served(pid, service.port) for pid in workers), what="all have ended")


async def _lose_redis(service, redis):
    sender = Sender(service.url)
    sending = asyncio.create_task(sender.run())
    async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
        await until(lambda: len(sender.acknowledged) > 100, what="events are kept")
        redis.kill()
        await until(lambda: len(sender.refused) > 5, what="events are refused")
        answer = await client.post("/v1/recommendations", json={"user_id": "u1"})
        assert (answer.status_code, answer.json()["degraded"]) == (200, ["store_unavailable"])
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]["status"]) == (200, "degraded")
        refused = await client.post("/v1/events", json={"events": [event(0)]})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        redis.start()
        before = len(sender.acknowledged)
        await until(lambda: len(sender.acknowledged) > before + 20, what="events are kept again")
        sender.stop.set()
        await sending
        again = [event(number) for number in sender.acknowledged]
        for start in range(0, len(again), 500):
            answer = (await client.post("/v1/events", json={"events": again[start : start + 500]})).json()
            assert answer["accepted"] == 0, "an acknowledged event was lost"


async def _lose_a_worker(service):
    victim, other = service.children()
    os.kill(victim, signal.SIGKILL)
    # What is handed to it in the milliseconds that the kernel takes to bury it is lost, like what it was answering.
    wait_until(lambda: "worker_died" in service.log.read_text(), what="the death is known")
    async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
        statuses = [(await client.get("/readyz")).status_code for _ in range(5)]
        assert statuses == [200] * 5, "the other one goes on"
        wait_until(lambda: len(service.children()) == 2 and victim not in service.children(), what="a new worker")
        assert other in service.children()
    wait_until(lambda: service.log.read_text().count("service_started") == 3, what="the new worker is ready")
    for _ in range(4):  # whichever is asked, it answers for all, for those that were there before as well
        assert "\nprismrec_servable_swaps_total 3.0\n" in httpx2.get(f"{service.url}/metrics").text


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_that_can_not_start_says_why_in_one_line(tmp_path, workers):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = Service(tmp_path, "--workers", workers, log=tmp_path / "log")
        service.port = taken.getsockname()[1]
        service.start(wait=False)
        assert service.wait() == 1
    assert (
        service.log.read_text().splitlines()[-1] == f"prismrec-serve: 127.0.0.1:{service.port}: Address already in use"
    )


def test_workers_do_not_outlive_their_supervisor(tmp_path):
    service = Service(tmp_path, "--workers", "2", log=tmp_path / "log")
    try:
        service.start()
        wait_until(lambda: "(2 processes)" in service.log.read_text(), what="both are ready")
        processes = [service.fork_server(), *service.children()]
        service.kill()
        wait_until(lambda: not any(is_running(pid) for pid in processes), what="they have ended")
    finally:
        service.stop()
    assert [line["event"] for line in service.lines()].count("service_stopped") == 2
    assert "Traceback" not in service.log.read_text()
