"""Changes of items in real processes: several workers, killed after an acknowledgement, and a store that goes away."""

import httpx2
import pytest

from tests.processes import RedisServer, Service, wait_until

PAST = {"history": [{"item_id": "i0003"}, {"item_id": "i0014"}], "k": 100}


def shown(url: str, *, times: int = 12) -> list[set[str]]:
    """Ask on connections of their own, which the supervisor hands to one worker and the other."""
    answers = []
    for number in range(times):
        if number % 2:
            response = httpx2.get(f"{url}/v1/popular?k=100", timeout=10)
        else:
            response = httpx2.post(f"{url}/v1/recommendations", json=PAST, timeout=10)
        assert response.json()["degraded"] == []
        answers.append({item["item_id"] for item in response.json()["items"]})
    return answers


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_what_one_worker_acknowledged_all_show_and_a_kill_does_not_lose(toy_store, tmp_path, kind):
    redis = RedisServer(tmp_path).start() if kind == "redis" else None
    history = redis.url if redis else f"sqlite:{tmp_path}/events.db"
    service = Service(
        toy_store.store,
        *("--history", history, "--workers", "2"),
        log=tmp_path / "log",
        PRISMREC_ITEMS__INTERVAL_S="3600",
        PRISMREC_EVENTS__READ_TIMEOUT_S="5",
    )
    try:
        service.start()
        for item_id in ("i0020", "i0021", "i0022"):
            response = httpx2.patch(f"{service.url}/v1/items/{item_id}", json={"available": False}, timeout=10)
            assert response.status_code == 200, response.text
            assert not any(item_id in answer for answer in shown(service.url))
        response = httpx2.put(f"{service.url}/v1/items/new", json={"title": "t"}, timeout=10)
        assert response.status_code == 200
        service.kill()
        if redis is not None:
            redis.kill()
            redis.start()
        service.start()
        for answer in shown(service.url):
            assert not answer & {"i0020", "i0021", "i0022"}
        assert "new" in shown(service.url, times=2)[1]
    finally:
        service.stop()
        if redis is not None:
            redis.stop()
    assert "Traceback" not in service.log.read_text()


def test_while_the_store_is_away_answers_go_on_and_say_so_and_nothing_is_acknowledged(toy_store, tmp_path):
    redis = RedisServer(tmp_path).start()
    service = Service(toy_store.store, "--history", redis.url, log=tmp_path / "log")
    try:
        service.start()
        hide = {"available": False}
        assert httpx2.patch(f"{service.url}/v1/items/i0020", json=hide, timeout=10).status_code == 200
        redis.kill()
        for response in (
            httpx2.get(f"{service.url}/v1/popular?k=100", timeout=10),
            httpx2.post(f"{service.url}/v1/recommendations", json=PAST, timeout=10),
            httpx2.get(f"{service.url}/v1/items/i0001/similar?k=100", timeout=10),
        ):
            answer = response.json()
            assert answer["degraded"] == ["catalogue_stale"]
            assert "i0020" not in {item["item_id"] for item in answer["items"]}, "what was read before still holds"
        for response in (
            httpx2.patch(f"{service.url}/v1/items/i0021", json=hide, timeout=10),
            httpx2.put(f"{service.url}/v1/items/new", json={}, timeout=10),
            httpx2.delete(f"{service.url}/v1/items/i0021", timeout=10),
            httpx2.get(f"{service.url}/v1/items/i0021", timeout=10),
        ):
            assert response.status_code == 503
            assert response.json()["type"].endswith("store-unavailable")
            assert int(response.headers["retry-after"]) > 0
        redis.start()

        def kept() -> bool:
            return httpx2.patch(f"{service.url}/v1/items/i0021", json=hide, timeout=10).status_code == 200

        wait_until(kept, what="a change is kept again")
        wait_until(lambda: _is_whole(service.url), what="all connections are well")
        assert not any(answer & {"i0020", "i0021"} for answer in shown(service.url, times=4))
    finally:
        service.stop()
        redis.stop()


def _is_whole(url: str) -> bool:
    return httpx2.get(f"{url}/v1/popular", timeout=10).json()["degraded"] == []
