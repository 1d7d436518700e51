"""Users' data in real processes: what one worker is told holds for all of them, and outlives them."""

import asyncio

import httpx2

from service.adapters.sqlite_store import SqliteStore
from service.recommend.types import user_subject
from tests.processes import Service
from tests.stores import make_version_1

ANN = "/v1/users/ann"
ODD = "/v1/users/a%2Fblocks%2Fb%20%C3%A9"


def ask(service, method, path, **kwargs):
    """Ask over a connection of its own: the next one goes to another worker."""
    response = httpx2.request(method, f"{service.url}{path}", timeout=10, **kwargs)
    assert response.status_code in (200, 204), response.text
    return response.json() if response.content else None


def recommended(service, **body):
    answer = ask(service, "POST", "/v1/recommendations", json={"k": 500, "timeout_ms": 5_000, **body})
    assert answer["degraded"] == []
    return answer["events_used"], {item["item_id"] for item in answer["items"]}


def test_what_workers_are_told_of_a_user_holds_for_all_of_them_and_outlives_them(toy_store, tmp_path):
    database = tmp_path / "events.db"
    make_version_1(database)
    service = Service(
        toy_store.store, "--history", f"sqlite:{database}", "--workers", "2",
        log=tmp_path / "log", PRISMREC_EVENTS__READ_TIMEOUT_S="5",
    )  # fmt: skip
    try:
        service.start()
        _, everything = recommended(service)
        hidden, *_ = sorted(everything)
        kept = [event["event_id"] for event in ask(service, "GET", f"{ANN}/events")["events"]]
        assert kept == ["e2", "e1"], "of the old file"
        assert ask(service, "POST", f"{ANN}/merge", json={"session_id": "tab"}) == {"events": 1, "blocks": 0}
        ask(service, "PUT", f"{ANN}/blocks/{hidden}")
        ask(service, "PUT", f"{ODD}/blocks/c%2Fd")
        for _ in range(4):
            assert recommended(service, user_id="ann", include_seen=True)[1] == everything - {hidden}
            assert len(ask(service, "GET", f"{ANN}/events")["events"]) == 3
            (block,) = ask(service, "GET", f"{ODD}/blocks")["blocks"]
            assert block["item_id"] == "c/d"
        ask(service, "DELETE", ANN)
        for _ in range(4):
            assert recommended(service, user_id="ann") == (0, everything)
            assert ask(service, "GET", f"{ANN}/events") == {"events": [], "next_cursor": None}
        service.kill()
    finally:
        service.stop()
    assert asyncio.run(_kept(database)) == ((), ("c/d",))


async def _kept(database):
    store = SqliteStore(database)
    ann, odd = [await store.history(user_subject(name), limit=10) for name in ("ann", "a/blocks/b é")]
    await store.close()
    return ann.item_ids + ann.blocked_item_ids, odd.item_ids + odd.blocked_item_ids
