"""`/v1/users/...` over HTTP: what is kept of a user, page by page, and what becomes of it."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from api_schemas.users import BlocksAnswer, EventsPage, InterestsAnswer, MergeAnswer
from tests.fakes import FAKE_BLOCKS, FakeRanker
from tests.http_app import Rig, assert_problem, read

START = datetime(2026, 3, 2, tzinfo=UTC)
"""A Monday."""


@pytest.fixture
def rig():
    return Rig()


@pytest.fixture
async def client(rig):
    async with rig.client() as client:
        yield client


async def send(client, *items, who="ann", kind="user_id", start=START, every=timedelta(hours=1)):
    events = [
        {
            "event_id": f"{who}-{item}-{number}-{start}",
            kind: who,
            "item_id": item,
            "type": "click",
            "occurred_at": (start + number * every).isoformat(),
        }
        for number, item in enumerate(items)
    ]
    answer = (await client.post("/v1/events", json={"events": events})).json()
    assert answer["accepted"] == len(events), answer


async def recommended(client, **body):
    answer = (await client.post("/v1/recommendations", json={"k": 50, **body})).json()
    return [item["item_id"] for item in answer["items"]]


async def test_events_come_back_as_they_were_sent_newest_first(client):
    sent = {
        "event_id": "e1", "user_id": "ann", "item_id": "i1", "type": "play", "value": 0.25,
        "occurred_at": "2026-03-14T09:26:53.000001+01:00", "recommendation_id": "r1",
    }  # fmt: skip
    await client.post("/v1/events", json={"events": [sent]})
    await send(client, "i2", start=START + timedelta(days=30))
    page = read(EventsPage, await client.get("/v1/users/ann/events"))
    assert page["next_cursor"] is None
    second, first = page["events"]
    assert (second["item_id"], second["value"], second["recommendation_id"]) == ("i2", None, None)
    assert first == {
        "event_id": "e1", "item_id": "i1", "type": "play", "value": 0.25,
        "occurred_at": "2026-03-14T08:26:53.000001Z", "recommendation_id": "r1",
    }  # fmt: skip
    assert read(EventsPage, await client.get("/v1/users/nobody/events")) == {"events": [], "next_cursor": None}


async def test_a_cursor_leads_through_all_pages_while_events_arrive(client):
    await send(client, *(f"i{number}" for number in range(10)))
    found, cursor, pages = [], None, 0
    while cursor is not None or not pages:
        query = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = read(EventsPage, await client.get("/v1/users/ann/events", params=query))
        found += [event["item_id"] for event in page["events"]]
        cursor, pages = page["next_cursor"], pages + 1
        await send(client, f"new{pages}", start=START + timedelta(days=pages))
    assert found == [f"i{number}" for number in reversed(range(10))]
    assert pages == 4


async def test_a_page_that_is_just_full_is_the_last(client):
    await send(client, "i1", "i2")
    assert (await client.get("/v1/users/ann/events?limit=2")).json()["next_cursor"] is None
    assert (await client.get("/v1/users/ann/events?limit=1")).json()["next_cursor"] is not None


async def test_who_is_erased_is_unknown_and_may_come_back(client, rig):
    await send(client, "i1", "i2")
    await client.put("/v1/users/ann/blocks/i3")
    for _ in range(2):
        response = await client.delete("/v1/users/ann")
        assert (response.status_code, response.content) == (204, b"")
    answer = (await client.post("/v1/recommendations", json={"user_id": "ann", "k": 50})).json()
    assert answer["user_state"] == "cold"
    assert {"i1", "i2", "i3"} <= {item["item_id"] for item in answer["items"]}
    assert rig.store.events == {}
    await send(client, "i1", "i2")


async def test_a_session_is_merged_once(client):
    await send(client, "i1", who="tab", kind="session_id")
    for expected in (1, 0):
        answer = read(MergeAnswer, await client.post("/v1/users/ann/merge", json={"session_id": "tab"}))
        assert answer == {"events": expected, "blocks": 0}
    assert "i1" not in await recommended(client, user_id="ann")
    assert "i1" in await recommended(client, session_id="tab")


async def test_a_blocked_item_is_shown_to_nobody_else_less(client):
    for _ in range(2):
        assert (await client.put("/v1/users/ann/blocks/i3")).status_code == 204
    await client.put("/v1/users/ann/blocks/not%20in%2Fthe%20catalogue")
    listed = read(BlocksAnswer, await client.get("/v1/users/ann/blocks"))["blocks"]
    assert {one["item_id"] for one in listed} == {"i3", "not in/the catalogue"}
    past = {"history": [{"item_id": "i3"}, {"item_id": "i4"}], "include_seen": True}
    for body in ({}, past, {**past, "candidate_item_ids": ["i3", "i5"]}, {"candidate_item_ids": ["i3"]}):
        assert "i3" not in await recommended(client, user_id="ann", **body)
        assert "i3" in await recommended(client, user_id="bob", **body)
        explained = await client.post("/v1/explanations", json={"user_id": "ann", "k": 50, **body})
        assert "i3" not in [item["item_id"] for item in explained.json()["items"]]
    asked = await client.post("/v1/explanations", json={"user_id": "ann", "item_ids": ["i3"], **past})
    assert asked.json()["items"][0]["item_id"] == "i3", "nothing is recommended here"
    for _ in range(2):
        assert (await client.delete("/v1/users/ann/blocks/i3")).status_code == 204
    assert "i3" in await recommended(client, user_id="ann")


async def test_a_full_list_of_blocks_is_a_conflict(client):
    for number in range(FAKE_BLOCKS):
        assert (await client.put(f"/v1/users/ann/blocks/x{number}")).status_code == 204
    problem = assert_problem(await client.put("/v1/users/ann/blocks/one-more"), "conflict")
    assert str(FAKE_BLOCKS) in problem.detail
    assert (await client.put("/v1/users/ann/blocks/x0")).status_code == 204


async def test_ids_with_slashes_are_told_apart_by_their_encoding(client, rig):
    await client.put("/v1/users/a%2Fblocks%2Fb/blocks/c%2Fd")
    await client.put("/v1/users/a/blocks/b")
    assert rig.store.blocked.keys() == {"u:a/blocks/b", "u:a"}
    assert rig.store.blocked["u:a/blocks/b"].keys() == {"c/d"}
    await client.delete("/v1/users/a%2Fblocks%2Fb")
    assert rig.store.blocked == {"u:a": {"b": pytest.approx(rig.store.blocked["u:a"]["b"])}}
    await client.delete("/v1/users/a/blocks/b")
    assert rig.store.blocked == {"u:a": {}}
    await client.put("/v1/users/100%25%3F/blocks/%C3%A9%2525")
    assert rig.store.blocked["u:100%?"].keys() == {"é%25"}
    assert_problem(await client.put("/v1/users/a/b/blocks/c"), "not-found")
    assert_problem(await client.delete("/v1/users/a/b"), "not-found")


async def test_another_method_is_named(client):
    response = await client.post("/v1/users/ann/blocks/i1")
    assert_problem(response, "method-not-allowed")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/users/ann/events"),
        ("DELETE", "/v1/users/ann"),
        ("POST", "/v1/users/ann/merge"),
        ("GET", "/v1/users/ann/blocks"),
        ("PUT", "/v1/users/ann/blocks/i1"),
        ("DELETE", "/v1/users/ann/blocks/i1"),
        ("GET", "/v1/users/ann/interests"),
    ],
)
async def test_without_the_store_there_is_nothing_to_say_or_do(client, rig, method, path):
    rig.store.away = True
    body = {"json": {"session_id": "s"}} if method == "POST" else {}
    response = await client.request(method, path, **body)
    assert_problem(response, "store-unavailable")
    assert int(response.headers["retry-after"]) > 0


# --- interests ---


async def interests(client, **query):
    return read(InterestsAnswer, await client.get("/v1/users/ann/interests", params=query))


async def test_a_user_without_events_has_no_windows(client):
    answer = await interests(client)
    assert (answer["windows"], answer["faithfulness"], answer["caveats"]) == ([], {}, [])
    assert answer["model"]["name"] == "fake"
    await client.put("/v1/users/ann/blocks/i1")
    assert (await interests(client))["windows"] == []


async def test_windows_are_calendar_weeks_and_say_when_they_are_empty(client):
    await send(client, "i1", "i2", start=START + timedelta(days=6, hours=22, minutes=59))
    await send(client, "i3", "i4", start=START + timedelta(weeks=3))
    answer = await interests(client, window="7d")
    windows = answer["windows"]
    assert [one["starts_at"] for one in windows] == [f"2026-03-{day:02}T00:00:00Z" for day in (2, 9, 16, 23)]
    assert [one["ends_at"] for one in windows[:-1]] == [one["starts_at"] for one in windows[1:]]
    assert [one["num_events"] for one in windows] == [2, 0, 0, 2]
    assert [one["events_used"] for one in windows] == [2, 0, 0, 4]
    for one in windows:
        shares = [part["share"] for part in one["modality_interest"]]
        assert one["method"] == ("grad_x_input" if one["num_events"] else None)
        assert sum(shares) == pytest.approx(1 if one["num_events"] else 0)
    assert answer["faithfulness"]["deletion_auc"] == 0.3
    assert "Associations, not causes." in answer["caveats"]


async def test_only_the_latest_windows_are_listed_and_read_from_the_whole_history(client):
    await send(client, *(f"i{number}" for number in range(6)), every=timedelta(days=1))
    whole = await interests(client, window="1d")
    last = await interests(client, window="1d", limit=2)
    assert len(whole["windows"]) == 6
    assert last["windows"] == whole["windows"][-2:]
    assert len((await interests(client, window="1h", limit=100))["windows"]) == 100


async def test_shares_are_those_of_a_recommendation_at_the_end_of_each_window(rig, client):
    names = [f"i{number}" for number in (3, 9, 4, 17, 30, 8)]
    await client.put("/v1/users/ann/blocks/i11")
    for ranker in (None, FakeRanker()):
        rig.servable.ranker = ranker
        await client.delete("/v1/users/ann")
        recommended = []
        for day, name in enumerate(names):
            await send(client, name, start=START + timedelta(days=day))
            body = {"user_id": "ann", "explain": "summary"}
            recommended.append((await client.post("/v1/recommendations", json=body)).json())
        answer = await interests(client, window="1d")
        assert answer["ranker"] == recommended[-1]["ranker"]
        for window, then in zip(answer["windows"], recommended, strict=True):
            assert window["events_used"] == then["events_used"]
            for got, said in zip(window["modality_interest"], then["modality_interest"], strict=True):
                assert got == {"modality": said["modality"], "share": pytest.approx(said["share"], abs=1e-6)}


async def test_a_method_may_be_chosen(client):
    await send(client, "i1")
    assert (await interests(client, method="occlusion"))["windows"][0]["method"] == "occlusion"


async def test_of_a_history_that_the_model_can_not_read_nothing_is_said(client):
    await send(client, "unheard-of")
    (window,) = (await interests(client))["windows"]
    assert (window["num_events"], window["events_used"], window["modality_interest"]) == (1, 0, [])
    assert window["method"] is None


async def test_a_user_whom_the_model_knows_is_read_by_what_it_has_learned(rig, client):
    rig.servable.known_users["ann"] = rig.servable.history(np.array([7]))
    await send(client, "unheard-of")
    answer = await interests(client)
    assert answer["windows"][0]["method"] == "decomposition"
    assert any("no history" in caveat for caveat in answer["caveats"])


async def test_a_model_that_fails_is_named_and_leaves_the_windows(rig, client):
    await send(client, "i1")
    rig.servable.fail["encode_users"] = RuntimeError("boom")
    answer = await interests(client)
    assert answer["degraded"] == ["model_failed"]
    assert (answer["windows"][0]["num_events"], answer["windows"][0]["modality_interest"]) == (1, [])
    assert 'reason="model_failed"} 1.0' in (await client.get("/metrics")).text


async def test_a_ranker_that_fails_is_named_and_the_retrievers_shares_stand(rig, client):
    await send(client, "i1", "i2")
    expected = (await interests(client))["windows"]
    rig.servable.ranker = FakeRanker()
    rig.servable.ranker.fail["score"] = RuntimeError("boom")
    answer = await interests(client)
    assert (answer["degraded"], answer["ranker"]) == (["rerank_failed"], None)
    assert answer["windows"] == expected


async def test_interests_that_are_not_there_in_time_are_late(rig, client):
    await send(client, "i1")
    rig.store.hang = True
    assert_problem(await client.get("/v1/users/ann/interests?timeout_ms=20"), "deadline-exceeded")
    rig.store.hang = False
    rig.servable.ranker = FakeRanker()
    rig.servable.ranker.rerank_cpu_s = 1e6
    assert_problem(await client.get("/v1/users/ann/interests"), "deadline-exceeded")


async def test_every_endpoint_is_counted_under_its_own_route(client):
    await client.get("/v1/users/ann/events")
    await client.delete("/v1/users/somebody")
    page = (await client.get("/metrics")).text
    assert 'route="/v1/users/{user_id}/events"' in page
    assert 'route="/v1/users/{user_id}"' in page
    assert "somebody" not in page
