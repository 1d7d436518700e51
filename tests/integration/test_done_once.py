"""`Idempotency-Key` over several workers and restarts, on either store."""

import asyncio
from contextlib import asynccontextmanager

import httpx2

from service.main import create_app
from service.settings import load_settings
from tests.http_app import assert_problem
from tests.processes import Service

KEY = {"idempotency-key": "order-66"}


def body(number: int = 0, *, session: str = "tab"):
    event = {"event_id": f"e{number}", "session_id": session, "item_id": f"i{number}", "type": "click"}
    return {"events": [{**event, "occurred_at": "2026-01-01T00:00:00Z"}]}


@asynccontextmanager
async def running(store, history):
    settings = load_settings(store=store, history=history, events={"write_timeout_s": 20.0})
    app = create_app(settings, on_failure=lambda: None)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 1), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def test_of_equal_writes_at_once_one_is_done_whichever_workers_get_them(tmp_path, history):
    (tmp_path / "store").mkdir()
    async with running(tmp_path / "store", history) as one, running(tmp_path / "store", history) as other:
        for number in range(3):
            key = {"idempotency-key": f"k{number}"}
            asked = [client.post("/v1/events", json=body(number), headers=key) for client in (one, other) * 8]
            answers = await asyncio.gather(*asked)
            done = [answer for answer in answers if answer.status_code == 200]
            for answer in answers:
                if answer.status_code != 200:
                    assert_problem(answer, "conflict")
            assert [answer.json()["accepted"] for answer in done] == [1] * len(done)
            assert sum("idempotency-replayed" not in answer.headers for answer in done) == 1
        merge = [
            await client.post("/v1/users/ann/merge", json={"session_id": "tab"}, headers=KEY)
            for client in (one, other, one)
        ]
        assert [answer.json()["events"] for answer in merge] == [3, 3, 3]
        assert_problem(
            await other.post("/v1/users/bob/merge", json={"session_id": "tab"}, headers=KEY),
            "validation-error",
            "Idempotency-Key",
        )


async def test_an_answer_is_known_after_a_restart(tmp_path, history):
    (tmp_path / "store").mkdir()
    async with running(tmp_path / "store", history) as client:
        first = await client.post("/v1/events", json=body(), headers=KEY)
    async with running(tmp_path / "store", history) as client:
        again = await client.post("/v1/events", json=body(), headers=KEY)
    assert first.json()["accepted"] == 1
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")


def test_a_real_service_answers_again_after_it_was_killed(toy_store, tmp_path):
    service = Service(
        toy_store.store, *("--workers", "2", "--history", f"sqlite:{tmp_path}/events.db"), log=tmp_path / "log"
    ).start()
    try:
        first = httpx2.post(f"{service.url}/v1/events", json=body(), headers=KEY)
        for _ in range(4):  # a connection each, so that either worker gets some
            again = httpx2.post(f"{service.url}/v1/events", json=body(), headers=KEY)
            assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
        service.kill()
        service.start()
        again = httpx2.post(f"{service.url}/v1/events", json=body(), headers=KEY)
        assert (first.json()["accepted"], again.content) == (1, first.content)
    finally:
        service.stop()
