"""Answers are what the documentation says they are, field by field, and say what the core said."""

import json

import pytest
from pydantic import ConfigDict, TypeAdapter

from api_schemas.events import EventsAnswer
from api_schemas.explain import ExplanationAnswer
from api_schemas.models import ModelModalities
from api_schemas.recommend import ItemsAnswer, RecommendationAnswer
from service.api.translate import query_of
from tests.fakes import FakeRanker
from tests.http_app import Rig, assert_problem, read

HISTORY = [{"item_id": "i3"}, {"item_id": "i9"}, {"item_id": "unheard-of"}]


@pytest.fixture(scope="module")
def rig():
    return Rig()


@pytest.fixture
async def client(rig):
    async with rig.client() as client:
        yield client


@pytest.mark.parametrize("level", ["none", "summary", "full"])
async def test_a_recommendation_is_what_its_schema_says(client, level):
    response = await client.post(
        "/v1/recommendations", json={"user_id": "u", "history": HISTORY, "k": 4, "explain": level}
    )
    answer = read(RecommendationAnswer, response)
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4]
    assert {item["source"] for item in answer["items"]} == {"model"}
    assert answer["items"][0]["metadata"]["title"].startswith("Item ")
    assert (answer["user_state"], answer["events_used"], answer["unknown_item_ids"]) == ("known", 2, ["unheard-of"])
    assert answer["model"] == {"name": "fake", "version": "bundle-fake-1"}
    assert answer["ranker"] is None
    assert answer["index"] == {"version": "snapshot-fake-1", "built_at": "2026-01-01T00:00:00Z"}
    assert answer["degraded"] == []
    assert answer["took_ms"] > 0
    assert len(answer["recommendation_id"]) == 32
    explained = answer["items"][0].get("explanation")
    assert ("modality_interest" in answer) == (level != "none")
    assert (explained is not None) == (level != "none")
    if explained:
        assert ("history" in explained, "contributions" in explained) == (level == "full", level == "full")
        assert sum(part["share"] for part in answer["modality_interest"]) == pytest.approx(1)


async def test_an_answer_names_the_ranker_that_ordered_it():
    rig = Rig()
    rig.servable.ranker = FakeRanker()
    ranker = {"name": "fake-ranker", "version": "bundle-fake-2"}
    async with rig.client() as client:
        response = await client.post("/v1/recommendations", json={"history": HISTORY, "k": 4, "explain": "full"})
        answer = read(RecommendationAnswer, response)
        assert (answer["ranker"], answer["model"]["name"], answer["degraded"]) == (ranker, "fake", [])
        assert "rerank;dur=" in response.headers["server-timing"]
        explained = read(ExplanationAnswer, await client.post("/v1/explanations", json={"history": HISTORY, "k": 2}))
        assert (explained["ranker"], explained["method"]) == (ranker, "shapley")
        refused = await client.post("/v1/explanations", json={"history": HISTORY, "method": "grad_x_input"})
        assert "it offers shapley, occlusion" in assert_problem(refused, "validation-error", "/method").errors[0].detail
        for name in ranker.values():
            said = read(ModelModalities, await client.get(f"/v1/models/{name}/modalities"))
            assert (said["model"], said["explanation_methods"]) == (ranker, ["shapley", "occlusion"])
        popular = read(RecommendationAnswer, await client.post("/v1/recommendations", json={"k": 4}))
        assert popular["ranker"] is None
        rig.servable.ranker.fail["score"] = RuntimeError("boom")
        broken = read(RecommendationAnswer, await client.post("/v1/recommendations", json={"history": HISTORY}))
        assert (broken["ranker"], broken["degraded"]) == (None, ["rerank_failed"])
        page = (await client.get("/metrics")).text
    assert 'prismrec_degraded_answers_total{reason="rerank_failed"} 1.0' in page
    assert 'prismrec_stage_duration_seconds_count{stage="rerank"} 3.0' in page


@pytest.mark.parametrize("level", ["summary", "full"])
async def test_an_explanation_is_what_its_schema_says(client, level):
    body = {"history": HISTORY, "item_ids": ["i7", "i1"], "explain": level, "method": "occlusion"}
    answer = read(ExplanationAnswer, await client.post("/v1/explanations", json=body))
    assert {item["item_id"] for item in answer["items"]} == {"i7", "i1"}
    assert answer["method"] == "occlusion"
    assert isinstance(answer["caveats"], list)
    for item in answer["items"] if level == "full" else ():
        total = sum(part["value"] for part in item["contributions"]) + item["residual"]
        assert total == pytest.approx(item["score"], abs=1e-5)
        assert {past["item_id"] for past in item["history"]} == {"i3", "i9"}
        assert set(item["history"][0]["by_modality"]) == {"visual", "text"}


async def test_lists_of_items_are_what_their_schema_says(client):
    similar = read(ItemsAnswer, await client.get("/v1/items/i3/similar?k=5&modality=text"))
    assert {item["source"] for item in similar["items"]} == {"similar"}
    assert "i3" not in [item["item_id"] for item in similar["items"]]
    popular = read(ItemsAnswer, await client.get("/v1/popular?k=3"))
    assert [item["item_id"] for item in popular["items"]] == ["i0", "i1", "i2"]


async def test_an_answer_to_events_is_what_its_schema_says(client):
    body = {"events": [{"event_id": "x"}]}
    answer = read(EventsAnswer, await client.post("/v1/events", json=body))
    assert (answer["accepted"], answer["duplicates"], len(answer["rejected"])) == (0, 0, 1)


async def test_who_is_unknown_is_answered_with_what_is_popular(client):
    answer = read(RecommendationAnswer, await client.post("/v1/recommendations", json={"user_id": "nobody", "k": 2}))
    assert answer["user_state"] == "cold"
    assert [item["source"] for item in answer["items"]] == ["popular", "popular"]
    answer = read(RecommendationAnswer, await client.post("/v1/recommendations", json={"k": 2}))
    assert answer["user_state"] == "anonymous"


async def test_a_store_that_is_away_degrades_recommendations_and_refuses_events(rig, client):
    rig.store.away = True
    try:
        answer = read(RecommendationAnswer, await client.post("/v1/recommendations", json={"user_id": "u", "k": 2}))
        assert answer["degraded"] == ["store_unavailable"]
        event = {"event_id": "e", "user_id": "u", "item_id": "i", "type": "t", "occurred_at": "2026-01-01T00:00:00Z"}
        response = await client.post("/v1/events", json={"events": [event]})
        problem = assert_problem(response, "store-unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert "fake store" not in problem.detail, "what the store says is for the log"
    finally:
        rig.store.away = False


async def test_the_next_recommendation_sees_what_was_acknowledged(rig, client):
    event = {"event_id": "seen", "session_id": "s", "item_id": "i3", "type": "t", "occurred_at": "2026-01-01T00:00:00Z"}
    assert (await client.post("/v1/events", json={"events": [event, event]})).json()["duplicates"] == 1
    answer = (await client.post("/v1/recommendations", json={"session_id": "s", "k": 49})).json()
    assert (answer["user_state"], answer["events_used"]) == ("known", 1)
    assert "i3" not in [item["item_id"] for item in answer["items"]]


def _request(**fields):
    from api_schemas.recommend import RecommendationRequest

    return query_of(RecommendationRequest.model_validate_json(json.dumps(fields)))


def test_a_history_is_sorted_by_time_when_every_entry_has_one_and_left_alone_otherwise():
    old, new = (
        {"item_id": "old", "occurred_at": "2026-01-01T00:00:00Z"},
        {
            "item_id": "new",
            "occurred_at": "2026-01-01T02:00:00+01:00",
        },
    )
    assert [item.item_id for item in _request(history=[new, old]).history] == ["old", "new"]
    assert [item.item_id for item in _request(history=[new, old, {"item_id": "when"}]).history] == [
        "new",
        "old",
        "when",
    ]


def test_a_body_is_translated_whole():
    query = _request(
        user_id="u",
        k=7,
        filter={"categories_any": ["a"], "attributes": {"brand": "x", "size": [1, 2.5], "new": True}},
        exclude_item_ids=["a", "a"],
        candidate_item_ids=["b", "c"],
        include_seen=True,
        min_score=0,
        explain="summary",
    )
    assert (query.subject, query.k, query.history) == ("u:u", 7, None)
    assert query.filter.attributes == {"brand": ("x",), "size": (1, 2.5), "new": (True,)}
    assert query.exclude_item_ids == frozenset({"a"})
    assert query.candidate_item_ids == ("b", "c")
    assert (query.include_seen, query.min_score, query.explain) == (True, 0.0, "summary")
    assert _request(session_id="s").subject == "s:s"
    assert _request().subject is None


async def test_the_openapi_document_knows_every_field_of_every_answer(rig):
    document = rig.app.openapi()
    for path, method, kind in (
        ("/v1/recommendations", "post", "RecommendationAnswer"),
        ("/v1/explanations", "post", "ExplanationAnswer"),
        ("/v1/events", "post", "EventsAnswer"),
        ("/v1/items/{item_id}/similar", "get", "ItemsAnswer"),
        ("/v1/popular", "get", "ItemsAnswer"),
    ):
        schema = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema["$ref"].rpartition("/")[2] == kind
    assert TypeAdapter(RecommendationAnswer).json_schema()["required"]
    assert ConfigDict  # the documents are made by pydantic


@pytest.mark.parametrize("name", ["fake", "bundle-fake-1"])
async def test_a_model_says_what_it_is_made_of_by_family_and_by_version(client, name):
    answer = read(ModelModalities, await client.get(f"/v1/models/{name}/modalities"))
    assert answer == {
        "model": {"name": "fake", "version": "bundle-fake-1"},
        "parts": ["visual", "text"],
        "modalities": [{"modality": "visual", "dim": 6, "mask": None}, {"modality": "text", "dim": 4, "mask": None}],
        "explanation_methods": ["grad_x_input", "decomposition", "occlusion"],
        "num_known_items": 0,
        "num_known_users": 0,
        "fold_in": None,
        "cold_items": None,
    }


@pytest.mark.parametrize("name", ["demure", "snapshot-fake-1", "FAKE", "fake%20"])
async def test_a_model_that_does_not_answer_is_not_found(client, name):
    problem = assert_problem(await client.get(f"/v1/models/{name}/modalities"), "not-found")
    assert "answers here" in problem.detail
