"""`Idempotency-Key` over the whole surface: a write that is sent again is answered again, not done again."""

import asyncio
import json

import pytest

from index.store import ArtifactStore
from service.api import once
from service.api.access import KeyAccess
from service.api.keys import KeyRing, new_key
from service.recommend.once import MAX_ANSWER_BYTES
from tests.bundles import make_bundle
from tests.http_app import Rig, assert_problem
from tests.unit.api.test_scopes import NEEDS

EVENT = {"event_id": "e1", "user_id": "ann", "item_id": "i1", "type": "click", "occurred_at": "2026-01-01T00:00:00Z"}
KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def is_replay(response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


async def test_a_write_that_is_sent_again_gets_the_first_answer():
    rig = Rig()
    async with rig.client() as client:
        first = await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
        again = await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
        anew = await client.post("/v1/events", json={"events": [EVENT]})
    assert first.json() == {"accepted": 1, "duplicates": 0, "rejected": []}
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert [is_replay(one) for one in (first, again, anew)] == [False, True, False]
    assert again.headers["content-type"] == "application/json"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert anew.json()["duplicates"] == 1


async def test_a_key_with_another_request_is_a_mistake_and_changes_nothing():
    rig = Rig()
    async with rig.client() as client:
        await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
        other = {"events": [{**EVENT, "event_id": "e2"}]}
        for wrong in (
            await client.post("/v1/events", json=other, headers=KEY),
            await client.post("/v1/events", json={"events": [EVENT] * 100}, headers=KEY),
            await client.post("/v1/events?x=1", json={"events": [EVENT]}, headers=KEY),
            await client.post("/v1/users/ann/merge", json={"session_id": "s"}, headers=KEY),
            await client.delete("/v1/users/ann", headers=KEY),
        ):
            assert_problem(wrong, "validation-error", "Idempotency-Key")
        assert len((await client.get("/v1/users/ann/events")).json()["events"]) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü", "\x7f"])
async def test_a_key_that_is_none_is_named(key):
    async with Rig().client() as client:
        response = await client.post(
            "/v1/events", json={"events": [EVENT]}, headers={"idempotency-key": key.encode("latin-1")}
        )
        assert_problem(response, "validation-error", "Idempotency-Key")


async def test_what_was_refused_may_be_sent_again_with_its_key():
    rig = Rig()
    async with rig.client() as client:
        assert_problem(await client.post("/v1/events", json={}, headers=KEY), "validation-error", "/events")
        rig.store.away = True
        assert_problem(await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY), "store-unavailable")
        rig.store.away = False
        done = await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
    assert (done.json()["accepted"], is_replay(done)) == (1, False)


async def test_while_the_first_one_is_being_answered_the_second_is_a_conflict(monkeypatch):
    rig = Rig()
    entered, go_on = asyncio.Event(), asyncio.Event()
    append = rig.store.append

    async def slow(events):
        entered.set()
        await go_on.wait()
        return await append(events)

    monkeypatch.setattr(rig.store, "append", slow)
    async with rig.client() as client:
        first = asyncio.create_task(client.post("/v1/events", json={"events": [EVENT]}, headers=KEY))
        await entered.wait()
        second = await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
        assert_problem(second, "conflict")
        assert second.headers["retry-after"] == "1"
        go_on.set()
        assert (await first).json()["accepted"] == 1
        assert is_replay(await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY))


async def test_each_caller_has_keys_of_its_own_and_a_replay_needs_what_the_request_needs(tmp_path):
    (ann, ann_line), (bob, bob_line) = (new_key(name=name, scopes=["events"]) for name in ("ann", "bob"))
    file = tmp_path / "keys"
    file.write_text(f"{ann_line}\n{bob_line}\n")
    ring = KeyRing(file, check_every_s=0)
    async with Rig(access=KeyAccess(ring)).client() as client:
        body = {"events": [EVENT]}
        first = await client.post("/v1/events", json=body, headers={**KEY, "x-api-key": ann})
        other = await client.post("/v1/events", json=body, headers={**KEY, "x-api-key": bob})
        assert (first.json()["accepted"], other.json()["duplicates"]) == (1, 1)
        assert is_replay(await client.post("/v1/events", json=body, headers={**KEY, "x-api-key": ann}))
        assert_problem(await client.post("/v1/events", json=body, headers=KEY), "unauthenticated")
        file.write_text(f"{ann_line.replace(' events ', ' serve ')}\n# longer than before\n")
        assert_problem(await client.post("/v1/events", json=body, headers={**KEY, "x-api-key": ann}), "forbidden")
        assert_problem(await client.post("/v1/events", json=body, headers={**KEY, "x-api-key": bob}), "unauthenticated")


async def test_a_store_of_keys_that_is_away_is_503_before_anything_is_done_and_never_after():
    rig = Rig()
    async with rig.client() as client:
        rig.answers.away = True
        refused = await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
        assert_problem(refused, "store-unavailable")
        assert (await client.post("/v1/events", json={"events": [EVENT]})).json()["accepted"] == 1
        rig.answers.away = False
        append = rig.store.append

        async def then_away(events):
            rig.answers.away = True
            return await append(events)

        rig.store.append = then_away
        body = {"events": [{**EVENT, "event_id": "e2"}]}
        assert (await client.post("/v1/events", json=body, headers=KEY)).json()["accepted"] == 1


async def test_an_answer_that_is_too_large_is_given_and_not_kept(monkeypatch):
    monkeypatch.setattr(once, "MAX_ANSWER_BYTES", 20)
    assert MAX_ANSWER_BYTES > 20
    rig = Rig()
    async with rig.client() as client:
        for expected in (0, 1):
            answer = await client.post("/v1/events", json={"events": [EVENT]}, headers=KEY)
            assert (answer.json()["duplicates"], is_replay(answer)) == (expected, False)
    assert rig.answers.held == {}


async def test_a_merge_a_block_and_a_change_of_an_item_are_done_once():
    rig = Rig()
    async with rig.client() as client:
        session = {"event_id": "e1", "session_id": "s", "item_id": "i1", "type": "click"}
        await client.post("/v1/events", json={"events": [{**session, "occurred_at": EVENT["occurred_at"]}]})
        answers = [await client.post("/v1/users/ann/merge", json={"session_id": "s"}, headers=KEY) for _ in range(2)]
        assert [answer.json()["events"] for answer in answers] == [1, 1]
        for method, path in (("PUT", "/v1/users/ann/blocks/i2"), ("DELETE", "/v1/users/ann")):
            key = {"idempotency-key": method}
            answers = [await client.request(method, path, headers=key) for _ in range(2)]
            assert [(one.status_code, one.content, is_replay(one)) for one in answers] == [
                (204, b"", False),
                (204, b"", True),
            ]
        body = {"available": False}
        answers = [
            await client.patch("/v1/items/i1", json=body, headers={"idempotency-key": "patch"}) for _ in range(2)
        ]
        assert answers[0].content == answers[1].content
        assert is_replay(answers[1])


async def test_a_bulk_is_read_as_it_comes_and_answered_again_when_it_is_the_same():
    rig = Rig()

    async def lines(*bodies):
        for body in bodies:
            yield json.dumps(body).encode() + b"\n"

    hide = [{"op": "patch", "item_id": f"i{number}", "available": False} for number in range(3)]
    async with rig.client(**{"content-type": "application/x-ndjson"}) as client:
        first = await client.post("/v1/items/bulk", content=lines(*hide), headers=KEY)
        again = await client.post("/v1/items/bulk", content=lines(*hide), headers=KEY)
        assert first.json()["accepted"] == 3
        assert (again.content, is_replay(again)) == (first.content, True)
        for other in (hide[:2], [*hide, hide[0]]):
            wrong = await client.post("/v1/items/bulk", content=lines(*other), headers=KEY)
            assert_problem(wrong, "validation-error", "Idempotency-Key")


async def test_an_index_is_asked_for_once_and_its_job_named_again(tmp_path, toy_dataset):
    rig = Rig(artifacts=ArtifactStore(tmp_path))
    (rig.artifacts.root / "data").mkdir()
    (rig.artifacts.root / "data" / "toy").symlink_to(toy_dataset)
    body = {"model": make_bundle(rig.artifacts, toy_dataset), "data": "toy"}
    async with rig.client() as client:
        first = await client.post("/v1/indexes", json=body, headers=KEY)
        again = await client.post("/v1/indexes", json=body, headers=KEY)
        assert (again.status_code, again.content) == (202, first.content)
        assert again.headers["location"] == first.headers["location"]
        assert len((await client.get("/v1/jobs")).json()["jobs"]) == 1


async def test_what_reads_takes_no_notice_of_a_key():
    async with Rig().client() as client:
        for _ in range(2):
            answer = await client.get("/v1/jobs", headers={"idempotency-key": "a b"})
            assert (answer.status_code, is_replay(answer)) == (200, False)
            answer = await client.post("/v1/recommendations", json={"k": 3}, headers=KEY)
            assert (answer.status_code, is_replay(answer)) == (200, False)


def test_every_write_and_nothing_else_takes_a_key():
    documented = {
        f"{method.upper()} {path}"
        for path, operations in Rig().app.openapi()["paths"].items()
        for method, operation in operations.items()
        if [one["name"] for one in operation.get("parameters", [])].count("Idempotency-Key") == 1
    }
    reads = {f"POST {path}" for path in ("/v1/recommendations", "/v1/recommendations/batch", "/v1/explanations")}
    reads |= {"POST /v1/what-if"}
    assert documented == {route for route in NEEDS if not route.startswith("GET")} - reads
