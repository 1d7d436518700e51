"""Every bound of every request: a clear 422 that names the field, nothing stored, never a 500."""

import json

import pytest

from tests.http_app import Rig, assert_problem

RECOMMEND, EXPLAIN, EVENTS = "/v1/recommendations", "/v1/explanations", "/v1/events"
LONG = "x" * 257
EVENT = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "type": "click",
    "occurred_at": "2026-03-14T09:26:53+01:00",
}


@pytest.fixture(scope="module")
def shared_rig():
    return Rig(max_body_bytes=8_000_000)


@pytest.fixture
def rig(shared_rig):
    shared_rig.servable.calls.clear()
    shared_rig.store.events.clear()
    shared_rig.store.blocked.clear()
    shared_rig.store.seen_ids.clear()
    return shared_rig


@pytest.fixture
async def client(rig):
    async with rig.client() as client:
        yield client


async def post(client, path, body):
    return await client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def vector(length):
    return [0.5] * length


BAD_SLATES = [
    ({"k": 0}, "/k"),
    ({"k": -1}, "/k"),
    ({"k": 501}, "/k"),
    ({"k": 10**30}, "/k"),
    ({"k": "20"}, "/k"),
    ({"k": 20.5}, "/k"),
    ({"k": True}, "/k"),
    ({"k": None}, "/k"),
    ({"user_id": ""}, "/user_id"),
    ({"user_id": LONG}, "/user_id"),
    ({"user_id": 7}, "/user_id"),
    ({"user_id": "a\x00b"}, "/user_id"),
    ({"user_id": "a\nb"}, "/user_id"),
    ({"user_id": "a\u2028b"}, "/user_id"),
    ({"user_id": "a\x85b"}, "/user_id"),
    ({"session_id": "\x1f"}, "/session_id"),
    ({"session_id": {}}, "/session_id"),
    ({"user_id": "u", "session_id": "s"}, ""),
    ({"history": {}}, "/history"),
    ({"history": "i1"}, "/history"),
    ({"history": [{"item_id": "i1"}] * 501}, "/history"),
    ({"history": [{}]}, "/history/0/item_id"),
    ({"history": [{"item_id": "i1"}, {"item_id": LONG}]}, "/history/1/item_id"),
    ({"history": [{"item_id": "i1", "type": "two words"}]}, "/history/0/type"),
    ({"history": [{"item_id": "i1", "type": "x" * 65}]}, "/history/0/type"),
    ({"history": [{"item_id": "i1", "occurred_at": "yesterday"}]}, "/history/0/occurred_at"),
    ({"history": [{"item_id": "i1", "occurred_at": 1_700_000_000}]}, "/history/0/occurred_at"),
    ({"history": [{"item_id": "i1", "what": 1}]}, "/history/0/what"),
    ({"history": [{"item_id": "i1", "modalities": []}]}, "/history/0/modalities"),
    ({"history": [{"item_id": "i1", "modalities": {"visual": []}}]}, "/history/0/modalities/visual"),
    ({"history": [{"item_id": "i1", "modalities": {"visual": ["a"]}}]}, "/history/0/modalities/visual/0"),
    ({"history": [{"item_id": "i1", "modalities": {"visual": [None] * 9}}]}, "/history/0/modalities/visual/0"),
    ({"history": [{"item_id": "i1", "modalities": {"visual": vector(65_537)}}]}, "/history/0/modalities/visual"),
    ({"history": [{"item_id": "i1", "modalities": {"Not A Name": [1]}}]}, "/history/0/modalities/Not A Name"),
    ({"history": [{"item_id": "i1", "modalities": {f"m{n}": [1] for n in range(33)}}]}, "/history/0/modalities"),
    ({"exclude_item_ids": ["i"] * 1_001}, "/exclude_item_ids"),
    ({"exclude_item_ids": ["i1", ""]}, "/exclude_item_ids/1"),
    ({"exclude_item_ids": None}, "/exclude_item_ids"),
    ({"candidate_item_ids": ["i"] * 10_001}, "/candidate_item_ids"),
    ({"candidate_item_ids": [LONG]}, "/candidate_item_ids/0"),
    ({"include_seen": "yes"}, "/include_seen"),
    ({"include_seen": 1}, "/include_seen"),
    ({"min_score": "0.5"}, "/min_score"),
    ({"diversity": -0.1}, "/diversity"),
    ({"diversity": 1.1}, "/diversity"),
    ({"diversity": "much"}, "/diversity"),
    ({"timeout_ms": 0}, "/timeout_ms"),
    ({"timeout_ms": 60_001}, "/timeout_ms"),
    ({"timeout_ms": 1.5}, "/timeout_ms"),
    ({"filter": []}, "/filter"),
    ({"filter": {"categories": ["a"]}}, "/filter/categories"),
    ({"filter": {"categories_any": ["a"] * 101}}, "/filter/categories_any"),
    ({"filter": {"categories_all": [""]}}, "/filter/categories_all/0"),
    ({"filter": {"categories_none": [LONG]}}, "/filter/categories_none/0"),
    ({"filter": {"attributes": {"a": None}}}, "/filter/attributes/a"),
    ({"filter": {"attributes": {"a": []}}}, "/filter/attributes/a"),
    ({"filter": {"attributes": {"a": ["x"] * 101}}}, "/filter/attributes/a"),
    ({"filter": {"attributes": {"a": {"b": 1}}}}, "/filter/attributes/a"),
    ({"filter": {"attributes": {"a": 10**400}}}, "/filter/attributes/a"),
    ({"filter": {"attributes": {"": 1}}}, "/filter/attributes/"),
    ({"filter": {"attributes": {f"a{n}": 1 for n in range(33)}}}, "/filter/attributes"),
    ({"explain": "everything"}, "/explain"),
    ({"explain": None}, "/explain"),
    ({"usr_id": "u"}, "/usr_id"),
    ({"a/b~c": 1}, "/a~1b~0c"),
    ({"store": "yes"}, "/store"),
    ({"after": ""}, "/after"),
    ({"after": 5}, "/after"),
    ([], ""),
    (None, ""),
    ("text", ""),
]
BAD_EXPLANATIONS = [
    ({"explain": "none"}, "/explain"),
    ({"item_ids": []}, "/item_ids"),
    ({"item_ids": ["i1"] * 101}, "/item_ids"),
    ({"item_ids": [1]}, "/item_ids/0"),
    ({"method": "magic"}, "/method"),
    ({"recommendation_id": ""}, "/recommendation_id"),
    ({"recommendation_id": "r", "k": 3}, ""),
    ({"recommendation_id": "r", "user_id": "u"}, ""),
    ({"store": False}, "/store"),
]
BAD_BATCHES = [
    ({}, "/events"),
    ({"events": []}, "/events"),
    ({"events": [EVENT] * 501}, "/events"),
    ({"events": EVENT}, "/events"),
    ({"events": [EVENT], "more": 1}, "/more"),
    ([EVENT], ""),
    (None, ""),
]
BAD_EVENTS = [
    ({"event_id": None}, "event_id"),
    ({"event_id": ""}, "event_id"),
    ({"event_id": LONG}, "event_id"),
    ({"event_id": 5}, "event_id"),
    ({"item_id": "a\tb"}, "item_id"),
    ({"item_id": None}, "item_id"),
    ({"user_id": None}, ""),
    ({"session_id": "s"}, ""),
    ({"type": ""}, "type"),
    ({"type": "x" * 65}, "type"),
    ({"type": "ünï"}, "type"),
    ({"value": "12"}, "value"),
    ({"value": True}, "value"),
    ({"occurred_at": "2026-03-14T09:26:53"}, "occurred_at"),  # no offset
    ({"occurred_at": "2026-03-14"}, "occurred_at"),
    ({"occurred_at": "2026-02-30T00:00:00Z"}, "occurred_at"),
    ({"occurred_at": "2026-03-14T25:00:00Z"}, "occurred_at"),
    ({"occurred_at": "2026-03-14T09:26:53+25:00"}, "occurred_at"),
    ({"occurred_at": "1969-12-31T23:59:59Z"}, "occurred_at"),
    ({"occurred_at": "9999-12-31T23:59:59-23:59"}, "occurred_at"),
    ({"occurred_at": "0001-01-01T00:00:00+23:59"}, "occurred_at"),
    ({"occurred_at": "2199-01-01T00:00:00Z"}, "occurred_at"),  # a time that is to come
    ({"occurred_at": "1700000000"}, "occurred_at"),
    ({"occurred_at": 1_700_000_000}, "occurred_at"),
    ({"occurred_at": "２０２６-03-14T09:26:53Z"}, "occurred_at"),
    ({"recommendation_id": ""}, "recommendation_id"),
    ({"unknown": 1}, "unknown"),
]


def _ids(cases):
    return [f"{pointer or 'whole'}-{number}" for number, (_, pointer) in enumerate(cases)]


@pytest.mark.parametrize(("body", "pointer"), BAD_SLATES, ids=_ids(BAD_SLATES))
async def test_a_bad_recommendation_request_names_its_field(rig, client, body, pointer):
    response = await post(client, RECOMMEND, body)
    assert_problem(response, "validation-error", pointer)
    assert rig.servable.calls == []


@pytest.mark.parametrize(("body", "pointer"), BAD_EXPLANATIONS, ids=_ids(BAD_EXPLANATIONS))
async def test_a_bad_explanation_request_names_its_field(rig, client, body, pointer):
    assert_problem(await client.post(EXPLAIN, json=body), "validation-error", pointer)
    assert rig.servable.calls == []


@pytest.mark.parametrize(("body", "pointer"), BAD_BATCHES, ids=_ids(BAD_BATCHES))
async def test_a_batch_that_is_wrong_as_a_whole_is_refused_as_a_whole(rig, client, body, pointer):
    assert_problem(await post(client, EVENTS, body), "validation-error", pointer)
    assert rig.store.events == {}


@pytest.mark.parametrize(("change", "field"), BAD_EVENTS, ids=_ids(BAD_EVENTS))
async def test_one_bad_event_is_rejected_by_its_index_and_the_others_are_kept(rig, client, change, field):
    other = {**EVENT, "event_id": "e2"}
    bad = {**EVENT, **change}
    response = await client.post(EVENTS, json={"events": [other, bad, {**EVENT, "event_id": "e3"}]})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["accepted"], answer["duplicates"]) == (2, 0)
    (rejected,) = answer["rejected"]
    assert rejected["index"] == 1
    assert rejected["problem"]["status"] == 422
    assert rejected["problem"]["type"].endswith(":validation-error")
    (error,) = rejected["problem"]["errors"]
    assert error["pointer"] == "/events/1" + (f"/{field}" if field else "")
    assert [event.event_id for event in rig.store.events["u:u1"]] == ["e2", "e3"]


LARGEST = {
    "user_id": "u" * 256,
    "history": [
        {"item_id": f"i{n % 50}", "type": "t" * 64, "occurred_at": "2026-03-14T09:26:53.123456Z"} for n in range(500)
    ],
    "k": 500,
    "exclude_item_ids": [f"x{n}" for n in range(1_000)],
    "candidate_item_ids": [f"i{n}" for n in range(10_000)],
    "filter": {
        "categories_any": ["c0", "c1"] * 50,
        "attributes": {f"a{n}": ["x", 1, 1.5, True] * 25 for n in range(32)},
    },
    "timeout_ms": 60_000,
    "min_score": -1e308,
}


async def test_the_largest_request_that_the_bounds_allow_is_answered(client):
    response = await client.post(RECOMMEND, json=LARGEST)
    assert response.status_code == 200, response.text
    response = await client.post(EXPLAIN, json={**LARGEST, "item_ids": [f"i{n % 50}" for n in range(100)]})
    assert response.status_code == 200, response.text
    events = [{**EVENT, "event_id": f"{n}" * 80} for n in range(500)]
    assert (await client.post(EVENTS, json={"events": events})).json()["accepted"] == 500


@pytest.mark.parametrize("path", [RECOMMEND, EXPLAIN, EVENTS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"{'k': 1}",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"user_id": "\\ud800"}',
        b'{"user_id": "\xff"}',
        b'{"k": 01}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=["empty", "open", "two", "quotes", "utf16", "bom", "surrogate", "bytes", "zero", "deep-list", "deep-object"],
)
async def test_what_is_not_json_is_said_to_be_not_json(client, path, body):
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert_problem(response, "malformed-json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
async def test_numbers_that_are_none_are_refused(client, number):
    headers = {"content-type": "application/json"}
    response = await client.post(RECOMMEND, content=b'{"min_score": %s}' % number.encode(), headers=headers)
    assert_problem(response, "validation-error", "/min_score")
    event = json.dumps({**EVENT, "value": "?"}).replace('"?"', number)
    response = await client.post(EVENTS, content=f'{{"events": [{event}]}}', headers=headers)
    assert response.json()["accepted"] == 0
    assert response.json()["rejected"][0]["problem"]["errors"][0]["pointer"] == "/events/0/value"


async def test_of_a_repeated_name_the_last_counts(client):
    headers = {"content-type": "application/json"}
    response = await client.post(RECOMMEND, content=b'{"k": 0, "k": 3}', headers=headers)
    assert len(response.json()["items"]) == 3
    response = await client.post(RECOMMEND, content=b'{"k": 3, "k": 0}', headers=headers)
    assert_problem(response, "validation-error", "/k")


async def test_a_body_with_a_thousand_mistakes_is_answered_with_the_first_few(client):
    response = await client.post(
        RECOMMEND, json={"history": [{"item_id": ""}] * 500, "candidate_item_ids": [0] * 10_000}
    )
    problem = assert_problem(response, "validation-error")
    assert len(problem.errors) == 50
    assert "(501 problems)" in problem.detail
    assert len(response.content) < 20_000


async def test_vectors_of_the_wrong_width_unknown_modalities_and_floats_that_overflow_name_their_field(client):
    async def ask(modalities):
        return await client.post(RECOMMEND, json={"history": [{"item_id": "new", "modalities": modalities}]})

    assert_problem(await ask({"visual": vector(5)}), "validation-error", "/history/0/modalities/visual")
    assert_problem(await ask({"smell": vector(5)}), "validation-error", "/history/0/modalities/smell")
    assert_problem(await ask({"visual": [1e300] * 6}), "validation-error", "/history/0/modalities/visual")
    assert (await ask({"visual": vector(6)})).json()["events_used"] == 1


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/popular?k=0", "?k"),
        ("/v1/popular?k=501", "?k"),
        ("/v1/popular?k=-1", "?k"),
        ("/v1/popular?k=many", "?k"),
        ("/v1/popular?k=1.5", "?k"),
        ("/v1/popular?k=", "?k"),
        ("/v1/popular?k=99999999999999999999999999", "?k"),
        ("/v1/popular?n=1", "?n"),
        ("/v1/items/i1/similar?k=0", "?k"),
        ("/v1/items/i1/similar?modality=Not%20One", "?modality"),
        ("/v1/items/i1/similar?modality=smell", "?modality"),
        ("/v1/items/%00/similar", "{item_id}"),
        (f"/v1/items/{LONG}/similar", "{item_id}"),
        ("/v1/users/u/events?limit=0", "?limit"),
        ("/v1/users/u/events?limit=501", "?limit"),
        ("/v1/users/u/events?page=2", "?page"),
        ("/v1/users/u/events?cursor=", "?cursor"),
        ("/v1/users/u/events?cursor=nonsense", "?cursor"),
        ("/v1/users/u/events?cursor=%C3%A9", "?cursor"),
        (f"/v1/users/u/events?cursor={'A' * 21}B", "?cursor"),
        (f"/v1/users/u/events?cursor={'A' * 22}%3D%3D", "?cursor"),
        (f"/v1/users/u/events?cursor={'_' * 21}w", "?cursor"),
        (f"/v1/users/u/events?cursor={'A' * 65}", "?cursor"),
        ("/v1/users/%00/events", "{user_id}"),
        (f"/v1/users/{LONG}/blocks", "{user_id}"),
        ("/v1/users/u/interests?window=0d", "?window"),
        ("/v1/users/u/interests?window=7", "?window"),
        ("/v1/users/u/interests?window=1000h", "?window"),
        ("/v1/users/u/interests?window=-1d", "?window"),
        ("/v1/users/u/interests?window=7d%0A", "?window"),
        ("/v1/users/u/interests?limit=0", "?limit"),
        ("/v1/users/u/interests?limit=101", "?limit"),
        ("/v1/users/u/interests?method=guesswork", "?method"),
        ("/v1/users/u/interests?method=interest_gradient", "?method"),
        ("/v1/users/u/interests?timeout_ms=0", "?timeout_ms"),
        ("/v1/users/u/interests?k=3", "?k"),
    ],
)
async def test_a_bad_parameter_is_named(client, path, pointer):
    assert_problem(await client.get(path), "validation-error", pointer)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/session_id"),
        ({"session_id": ""}, "/session_id"),
        ({"session_id": LONG}, "/session_id"),
        ({"session_id": 7}, "/session_id"),
        ({"session_id": "s", "user_id": "u"}, "/user_id"),
        ([], ""),
    ],
)
async def test_a_bad_merge_is_named_and_merges_nothing(client, rig, body, pointer):
    await post(client, EVENTS, {"events": [{**EVENT, "event_id": "s1", "user_id": None, "session_id": "s"}]})
    before = dict(rig.store.events)
    assert_problem(await post(client, "/v1/users/u/merge", body), "validation-error", pointer)
    assert rig.store.events == before


async def test_a_merge_is_bounded_like_every_body(client):
    headers = {"content-type": "text/plain"}
    assert_problem(await client.post("/v1/users/u/merge", content="{}", headers=headers), "unsupported-media-type")
    large = b'{"session_id": "%s"}' % (b"x" * 8_000_000)
    response = await client.post("/v1/users/u/merge", content=large, headers={"content-type": "application/json"})
    assert_problem(response, "payload-too-large")


async def test_a_bad_block_is_named(client, rig):
    for method in ("PUT", "DELETE"):
        assert_problem(await client.request(method, "/v1/users/u/blocks/%0A"), "validation-error", "{item_id}")
        assert_problem(await client.request(method, f"/v1/users/{LONG}/blocks/i1"), "validation-error", "{user_id}")
        assert_problem(await client.request(method, "/v1/users/u/blocks/"), "not-found")
    assert_problem(await client.delete("/v1/users/%00"), "validation-error", "{user_id}")
    assert_problem(await client.delete("/v1/users/"), "not-found")
    assert rig.store.blocked == {}


async def test_an_item_that_is_not_there_is_not_found(client):
    problem = assert_problem(await client.get("/v1/items/nobody/similar"), "not-found")
    assert "nobody" in problem.detail


async def test_an_item_id_with_slashes_and_spaces_is_found_by_its_percent_encoded_name(client):
    problem = assert_problem(await client.get("/v1/items/a%2Fb%20c%3Fd/similar"), "not-found")
    assert "a/b c?d" in problem.detail
