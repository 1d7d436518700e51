"""The recommender over fakes: what is in an answer, and what becomes of it when a neighbour fails."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from service.recommend.deadline import Deadline
from service.recommend.errors import (
    DeadlineExceeded,
    InvalidQuery,
    ItemNotFound,
    NoServable,
    Overloaded,
    StoreUnavailable,
)
from service.recommend.recommender import Recommender
from service.recommend.types import Filter, HistoryItem, ItemId, Query, session_subject
from service.runtime.registry import ServableRegistry
from tests.fakes import WIDTHS
from tests.unit.recommend.house import USER, House, ids, inline, right_answer


async def test_the_best_items_by_the_model_come_first_without_what_was_seen(house):
    slate = await house.recommend(history=inline("i3", "i4"), k=6)
    assert ids(slate) == right_answer(house.servable, [3, 4], without={3, 4})[:6]
    assert [item.rank for item in slate.items] == [1, 2, 3, 4, 5, 6]
    assert {item.source for item in slate.items} == {"model"}
    assert [item.score for item in slate.items] == sorted((item.score for item in slate.items), reverse=True)
    assert slate.items[0].metadata["title"].startswith("Item ")
    assert (slate.user_state, slate.events_used, slate.degraded) == ("anonymous", 2, ())
    assert {"encode", "search"} <= slate.timings_ms.keys()


async def test_the_stored_history_is_used_and_the_inline_one_follows_it(house):
    await house.saw("i1", "i2")
    slate = await house.recommend(subject=USER, history=inline("i3"), k=5)
    assert ids(slate) == right_answer(house.servable, [1, 2, 3], without={1, 2, 3})[:5]
    assert (slate.user_state, slate.events_used) == ("known", 3)
    assert "store" in slate.timings_ms


async def test_the_next_answer_knows_what_was_just_stored(house):
    await house.saw("i1")
    first = ids(await house.recommend(subject=USER, k=1))[0]
    await house.saw(first)
    slate = await house.recommend(subject=USER, k=5)
    assert slate.events_used == 2
    assert first not in ids(slate)


async def test_an_item_that_occurs_again_counts_once_at_its_latest_place(house):
    slate = await house.recommend(history=inline("i1", "i2", "i3", "i4", "i5", "i1", "i1", "i1", "i6"), k=3)
    assert ids(slate) == right_answer(house.servable, [3, 4, 5, 1, 6], without=set(range(1, 7)))[:3]
    assert slate.events_used == house.servable.history_length == 5


async def test_all_that_was_seen_is_left_out_not_only_what_is_encoded(house):
    seen = [f"i{row}" for row in range(40)]
    await house.saw(*seen)
    slate = await house.recommend(subject=USER, k=20)
    assert set(ids(slate)) == {f"i{row}" for row in range(40, 50)}
    assert slate.events_used == 5


async def test_what_was_seen_is_welcome_again_when_the_query_says_so(house):
    slate = await house.recommend(history=inline("i3", "i4"), include_seen=True, k=50)
    assert ids(slate) == right_answer(house.servable, [3, 4], without=set())


@pytest.mark.parametrize(
    ("subject", "stored", "history", "state", "source"),
    [
        (None, [], (), "anonymous", "popular"),
        (None, [], ("i3",), "anonymous", "model"),
        (USER, [], (), "cold", "popular"),
        (USER, ["gone"], (), "cold", "popular"),
        (USER, ["i1"], (), "known", "model"),
        (USER, [], ("i1",), "known", "model"),
        (session_subject("s"), [], (), "cold", "popular"),
    ],
)
async def test_the_user_state_says_why_popular_items_are_shown(house, subject, stored, history, state, source):
    await house.saw(*stored)
    slate = await house.recommend(subject=subject, history=inline(*history), k=4)
    assert (slate.user_state, {item.source for item in slate.items}) == (state, {source})
    assert slate.degraded == ()
    if source == "popular":
        assert ids(slate) == ["i0", "i1", "i2", "i3"]
        assert slate.events_used == 0


async def test_unknown_ids_are_listed_once_in_order_and_change_nothing_else(house):
    await house.saw("old", "i1")
    slate = await house.recommend(subject=USER, history=inline("new", "i2", "new"), k=4)
    assert slate.unknown_item_ids == ("old", "new")
    assert ids(slate) == right_answer(house.servable, [1, 2], without={1, 2})[:4]


async def test_an_unknown_item_is_encoded_from_the_vectors_that_it_brings(house):
    raw = {name: vectors[7] for name, vectors in house.servable.raw.items()}
    brought = (HistoryItem(ItemId("new"), modalities=raw), *inline("i3"))
    slate = await house.recommend(history=brought, k=5)
    assert ids(slate) == right_answer(house.servable, [7, 3], without={3})[:5]
    assert (slate.events_used, slate.unknown_item_ids) == (2, ("new",))


async def test_a_known_item_is_what_the_catalogue_says_whatever_vectors_it_brings(house):
    other = {"visual": house.servable.raw["visual"][9]}
    slate = await house.recommend(history=(HistoryItem(ItemId("i3"), modalities=other),), k=5)
    assert ids(slate) == right_answer(house.servable, [3], without={3})[:5]


async def test_vectors_of_zeros_say_nothing(house):
    nothing = {name: np.zeros(width, dtype=np.float32) for name, width in WIDTHS.items()}
    slate = await house.recommend(history=(HistoryItem(ItemId("new"), modalities=nothing),), k=2)
    assert (slate.events_used, slate.unknown_item_ids) == (0, ("new",))
    assert {item.source for item in slate.items} == {"popular"}


@pytest.mark.parametrize(
    ("modalities", "pointer"),
    [
        ({"smell": np.ones(6, dtype=np.float32)}, "/history/1/modalities/smell"),
        ({"a/b~c": np.ones(6, dtype=np.float32)}, "/history/1/modalities/a~1b~0c"),
        ({"visual": np.ones(5, dtype=np.float32)}, "/history/1/modalities/visual"),
        ({"visual": np.ones((6, 1), dtype=np.float32)}, "/history/1/modalities/visual"),
        ({"text": np.array([1, 2, np.nan, 4], dtype=np.float32)}, "/history/1/modalities/text"),
        ({"text": np.array([1, 2, np.inf, 4], dtype=np.float32)}, "/history/1/modalities/text"),
    ],
)
async def test_a_wrong_vector_is_refused_by_name_before_anything_is_computed(house, modalities, pointer):
    history = (*inline("i1"), HistoryItem(ItemId("new"), modalities=modalities))
    with pytest.raises(InvalidQuery) as refused:
        await house.recommend(history=history)
    assert refused.value.pointer == pointer
    assert house.servable.calls == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"k": 0}, "/k"),
        ({"min_score": float("nan")}, "/min_score"),
        ({"explain": "full", "method": "shapley"}, "/method"),
    ],
)
async def test_what_can_not_be_answered_is_refused_by_field(house, query, pointer):
    with pytest.raises(InvalidQuery) as refused:
        await house.recommend(**query)
    assert refused.value.pointer == pointer


async def test_exactly_the_candidates_are_scored_and_unknown_ones_are_listed(house):
    candidates = tuple(map(ItemId, ("i9", "nope", "i8", "i9", "i3", "i40")))
    slate = await house.recommend(history=inline("i3"), candidate_item_ids=candidates, k=10)
    order = right_answer(house.servable, [3], without=set())
    assert ids(slate) == [item_id for item_id in order if item_id in {"i9", "i8", "i40"}]
    assert slate.unknown_item_ids == ("nope",)
    assert "search" not in house.servable.calls


async def test_candidates_of_a_cold_user_come_by_popularity(house):
    slate = await house.recommend(candidate_item_ids=tuple(map(ItemId, ("i9", "i2", "i30"))), k=2)
    assert ids(slate) == ["i2", "i9"]


async def test_no_candidate_that_is_known_gives_an_empty_slate(house):
    slate = await house.recommend(history=inline("i3"), candidate_item_ids=(ItemId("nope"),), k=2)
    assert (slate.items, slate.unknown_item_ids) == ((), ("nope",))


async def test_a_filter_restricts_the_search_itself_so_that_the_answer_is_full(house):
    wanted = Filter(categories_any=("c1",), attributes={"colour": ("red",)})
    slate = await house.recommend(history=inline("i1"), filter=wanted, k=4)
    order = right_answer(house.servable, [1], without={1})
    assert ids(slate) == [item_id for item_id in order if int(item_id[1:]) % 10 == 1][:4]
    assert len(slate.items) == 4


async def test_a_narrow_filter_finds_popular_items_far_down_the_list():
    house = House(num_items=3_000)
    slate = await house.recommend(candidate_item_ids=None, filter=Filter(categories_any=("c4",)), k=500)
    assert ids(slate) == [f"i{row}" for row in range(4, 2_500, 5)]
    assert len(slate.items) == 500 - 0


async def test_more_exclusions_than_are_over_fetched_still_give_a_full_slate():
    house = House(num_items=1_000)
    order = right_answer(house.servable, [3], without={3})
    excluded = frozenset(map(ItemId, order[:900]))
    slate = await house.recommend(history=inline("i3"), exclude_item_ids=excluded, k=50)
    assert ids(slate) == order[900:950]


async def test_every_score_shown_reaches_the_least_score(house):
    order = await house.recommend(history=inline("i3"), k=50)
    floor = order.items[4].score
    slate = await house.recommend(history=inline("i3"), k=50, min_score=floor)
    assert ids(slate) == ids(order)[:5]


async def test_a_store_that_is_away_degrades_the_answer(house):
    house.store.away = True
    slate = await house.recommend(subject=USER, history=inline("i3"), k=5)
    assert slate.degraded == ("store_unavailable",)
    assert ids(slate) == right_answer(house.servable, [3], without={3})[:5]


async def test_a_store_that_does_not_answer_in_time_degrades_the_answer(house):
    house.store.hang = True
    slate = await house.recommend(subject=USER, k=5)
    assert slate.degraded == ("store_unavailable",)
    assert (slate.user_state, len(slate.items)) == ("cold", 5)


async def test_a_store_that_hangs_leaves_time_for_the_answer(house):
    house.recommender._inputs.store_timeout_s = 100.0
    house.store.hang = True
    slate = await house.recommend(subject=USER, k=5, timeout_s=0.1)
    assert slate.degraded == ("store_unavailable",)


@pytest.mark.parametrize("stage", ["encode_users", "search"])
async def test_a_model_that_fails_leaves_popular_items_and_says_so(house, stage):
    house.servable.fail[stage] = RuntimeError("boom")
    slate = await house.recommend(history=inline("i0", "i3"), k=5)
    assert slate.degraded == ("model_failed",)
    assert ids(slate) == ["i1", "i2", "i4", "i5", "i6"]
    assert not house.recommender.model_ok
    del house.servable.fail[stage]
    assert (await house.recommend(history=inline("i0"), k=5)).degraded == ()
    assert house.recommender.model_ok


async def test_a_failing_model_is_logged_once_an_outage(house, logs):
    for fails in (True, True, False, True):
        house.servable.fail = {"search": RuntimeError("boom")} if fails else {}
        await house.recommend(history=inline("i3"))
    assert [entry["event"] for entry in logs] == ["model_broke", "model_broke"]
    assert str(logs[0]["exc_info"]) == "boom"


async def test_queries_that_are_not_finite_count_as_a_failed_model(house):
    house.servable.encode_users = lambda history, mask: np.full((len(mask), 1, 8), np.nan, dtype=np.float32)
    assert (await house.recommend(history=inline("i3"))).degraded == ("model_failed",)


async def test_a_deadline_that_is_over_is_an_error_and_computes_nothing(house):
    with pytest.raises(DeadlineExceeded):
        await house.recommend(history=inline("i3"), timeout_s=-1)
    assert house.servable.calls == []


async def test_too_many_requests_are_refused_at_once_and_room_comes_back(house):
    house.store.hang = True
    house.recommender._inputs.store_timeout_s = 100.0
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(house.recommend(subject=USER, timeout_s=100)) for _ in range(8)]
        await asyncio.sleep(0)
        assert house.admission.in_flight == 8
        with pytest.raises(Overloaded):
            await house.recommend()
        for task in tasks:
            task.cancel()
    assert house.admission.in_flight == 0
    assert house.servable.holds == 1
    house.store.hang = False
    assert (await house.recommend()).items


async def test_without_a_version_there_is_no_answer(house):
    recommender = Recommender(
        servables=ServableRegistry(),
        history=house.store,
        compute=house.compute,
        admission=house.admission,
        store_timeout_s=1,
    )
    with pytest.raises(NoServable):
        await recommender.recommend(Query(), deadline=Deadline.after(1))
    assert house.admission.in_flight == 0


async def test_the_store_error_never_reaches_the_caller_of_a_recommendation(house):
    async def broken(subject, *, limit):
        raise StoreUnavailable("OOM command not allowed")

    house.store.history = broken
    assert (await house.recommend(subject=USER)).degraded == ("store_unavailable",)


async def test_similar_items_never_hold_the_item_itself(house):
    listing = await house.recommender.similar(ItemId("i3"), k=50, deadline=Deadline.after(1))
    vectors = house.servable.history(np.arange(50))
    order = [f"i{row}" for row in np.argsort(-(vectors @ vectors[3]), kind="stable") if row != 3]
    assert [item.item_id for item in listing.items] == order
    assert {item.source for item in listing.items} == {"similar"}


async def test_similar_items_by_one_modality_and_a_filter(house):
    listing = await house.recommender.similar(
        ItemId("i3"), k=5, modality="text", restriction=Filter(categories_none=("c1",)), deadline=Deadline.after(1)
    )
    states = house.servable.states(np.arange(50))[:, 1]
    rows = [row for row in np.argsort(-(states @ states[3]), kind="stable") if row != 3 and row % 5 != 1]
    assert [item.item_id for item in listing.items] == [f"i{row}" for row in rows[:5]]


async def test_similar_to_what_is_unknown_says_so(house):
    with pytest.raises(ItemNotFound):
        await house.recommender.similar(ItemId("nope"), k=5, deadline=Deadline.after(1))
    with pytest.raises(InvalidQuery) as refused:
        await house.recommender.similar(ItemId("i1"), k=5, modality="smell", deadline=Deadline.after(1))
    assert refused.value.pointer == "/modality"


async def test_popular_items_come_in_their_order_and_pass_the_filter(house):
    listing = await house.recommender.popular(
        k=3, restriction=Filter(categories_any=("c2", "c3")), deadline=Deadline.after(1)
    )
    assert [item.item_id for item in listing.items] == ["i2", "i3", "i7"]
    assert [item.score for item in listing.items] == pytest.approx([0.96, 0.94, 0.86])


async def test_an_answer_is_the_same_every_time(house):
    await house.saw("i1", "i2", "i9")
    query = {"subject": USER, "history": inline("i7"), "k": 20, "explain": "full"}
    first, second = await house.recommend(**query), await house.recommend(**query)
    assert replace(first, timings_ms={}) == replace(second, timings_ms={})


async def test_a_user_whom_the_model_knows_needs_no_history(house):
    own = np.random.default_rng(5).standard_normal((1, 8)).astype(np.float32)
    house.servable.known_users["ann"] = own
    slate = await house.recommend(subject=USER, k=3, explain="full")
    scores = house.servable.history(np.arange(50)) @ own[0]
    assert ids(slate) == [f"i{row}" for row in np.argsort(-scores, kind="stable")[:3]]
    assert (slate.user_state, slate.events_used, slate.explanation.method) == ("known", 0, "decomposition")
    assert "encode_users" not in house.servable.calls
    await house.saw("i3")
    assert ids(await house.recommend(subject=USER, k=3)) == right_answer(house.servable, [3], without={3})[:3]


async def test_a_known_user_is_answered_while_the_store_is_away(house):
    house.servable.known_users["ann"] = np.ones((1, 8), np.float32)
    house.store.away = True
    slate = await house.recommend(subject=USER, k=3)
    assert {item.source for item in slate.items} == {"model"}
    assert slate.degraded == ("store_unavailable",)


async def test_a_known_user_gets_what_is_popular_when_the_search_fails(house):
    house.servable.known_users["ann"] = np.ones((1, 8), np.float32)
    house.servable.fail["search"] = RuntimeError("boom")
    slate = await house.recommend(subject=USER, k=3, explain="full")
    assert ids(slate) == ["i0", "i1", "i2"]
    assert slate.degraded == ("model_failed",)
