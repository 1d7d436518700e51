"""Re-ranking over fakes: whose order it is, what it never shows, and what the answer is when it fails or is late."""

import numpy as np
import pytest

from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, InvalidQuery, ModelNotFound
from service.recommend.job import Job
from service.recommend.recommender import RESERVE_S
from service.recommend.rerank import Reranking, rerank
from service.recommend.types import Filter, HistoryItem, ItemId, Query, user_subject
from tests.fakes import WIDTHS, FakeRanker, FakeServable
from tests.unit.recommend.house import USER, House, ids, inline, right_answer

NEVER = Deadline.after(3_600.0)


@pytest.fixture
def house() -> House:
    """A ranker that is given all items."""
    return House(ranker=FakeRanker(num_candidates=50))


def ranker_scores(ranker: FakeRanker, past: list[int]) -> np.ndarray:
    """Of every item, by hand; of a history only the last items count."""
    vectors = ranker.history(np.arange(ranker.num_items))
    return np.maximum(vectors[past[-ranker.history_length :]].mean(axis=0) * vectors, 0).sum(axis=1)


def ranked(scores: np.ndarray, among) -> list[str]:
    return [f"i{row}" for row in np.argsort(-scores, kind="stable") if row in among]


async def test_items_are_in_the_rankers_order_with_its_scores(house):
    slate = await house.recommend(history=inline("i3", "i4"), k=8)
    scores = ranker_scores(house.servable.ranker, [3, 4])
    expected = ranked(scores, set(range(50)) - {3, 4})[:8]
    assert ids(slate) == expected != right_answer(house.servable, [3, 4], without={3, 4})[:8]
    assert [item.score for item in slate.items] == pytest.approx(sorted(scores[int(i[1:])] for i in expected)[::-1])
    assert [item.rank for item in slate.items] == list(range(1, 9))
    assert (slate.ranker.model_name, slate.version.model_name) == ("fake-ranker", "fake")
    assert slate.degraded == ()
    assert {"encode", "search", "rerank"} <= slate.timings_ms.keys()


async def test_without_a_ranker_there_is_none_in_the_answer():
    slate = await House().recommend(history=inline("i3"))
    assert slate.ranker is None
    assert "rerank" not in slate.timings_ms


@pytest.mark.parametrize(("num_candidates", "k"), [(10, 4), (10, 10), (3, 7)])
async def test_only_the_retrievers_best_are_ordered_and_never_fewer_than_are_shown(num_candidates, k):
    house = House(ranker=FakeRanker(num_candidates=num_candidates))
    slate = await house.recommend(history=inline("i3", "i4"), k=k)
    best = right_answer(house.servable, [3, 4], without={3, 4})[: max(num_candidates, k)]
    scores = ranker_scores(house.servable.ranker, [3, 4])
    assert ids(slate) == ranked(scores, {int(item_id[1:]) for item_id in best})[:k]


async def test_what_is_seen_excluded_or_filtered_is_never_among_the_candidates(house):
    await house.saw("i7", "i8")
    slate = await house.recommend(
        subject=USER,
        history=inline("i9"),
        exclude_item_ids=frozenset({ItemId("i11")}),
        filter=Filter(attributes={"colour": ("red",)}),
        k=50,
    )
    assert ids(slate) == ranked(ranker_scores(house.servable.ranker, [7, 8, 9]), set(range(1, 50, 2)) - {7, 9, 11})


async def test_min_score_is_of_the_rankers_scores(house):
    scores = ranker_scores(house.servable.ranker, [3, 4])
    floor = float(np.sort(scores)[-5])
    slate = await house.recommend(history=inline("i3", "i4"), k=50, min_score=floor, include_seen=True)
    assert ids(slate) == ranked(scores, set(np.flatnonzero(scores >= floor)))
    none = await house.recommend(history=inline("i3", "i4"), min_score=1e6)
    assert (none.items, none.ranker.model_name, none.degraded) == ((), "fake-ranker", ())


async def test_named_candidates_are_ordered_by_the_ranker(house):
    named = tuple(map(ItemId, ("i20", "i3", "nope", "i40", "i20", "i12")))
    slate = await house.recommend(history=inline("i3", "i4"), candidate_item_ids=named)
    assert ids(slate) == ranked(ranker_scores(house.servable.ranker, [3, 4]), {20, 40, 12})
    assert slate.unknown_item_ids == ("nope",)


async def test_no_candidates_are_no_failure(house):
    slate = await house.recommend(history=inline("i3"), candidate_item_ids=(ItemId("nope"),))
    assert (slate.items, slate.degraded) == ((), ())


async def test_the_ranker_reads_as_many_past_items_as_it_can(house):
    slate = await house.recommend(history=inline("i1", "i2", "i3", "i4", "i5"), k=5)
    assert ids(slate) == ranked(ranker_scores(house.servable.ranker, [3, 4, 5]), set(range(50)) - {1, 2, 3, 4, 5})[:5]
    assert slate.events_used == 3
    longer = House(ranker=FakeRanker(num_candidates=50, length=8))
    slate = await longer.recommend(history=inline(*(f"i{row}" for row in range(9))), k=5)
    assert ids(slate) == ranked(ranker_scores(longer.servable.ranker, list(range(9))), set(range(9, 50)))[:5]
    assert slate.events_used == 8


async def test_items_that_bring_their_vectors_are_encoded_by_the_ranker_too(house):
    raw = {name: house.servable.ranker.raw[name][7] for name in WIDTHS}
    brought = (*inline("i3"), HistoryItem(ItemId("new"), modalities=raw))
    slate = await house.recommend(history=brought, k=5, include_seen=True, explain="full")
    assert ids(slate) == ranked(ranker_scores(house.servable.ranker, [3, 7]), set(range(50)))[:5]
    assert [past["item_id"] for past in slate.explanation.history] == ["i3", "new"]


async def test_a_user_without_a_history_is_ranked_by_what_the_ranker_has_learned(house):
    query = house.servable.history(np.array([5]))
    house.servable.known_users["ann"] = query
    slate = await house.recommend(subject=USER, k=5)
    assert slate.ranker is None, "the ranker does not know the user: the retriever's order stands"
    assert (ids(slate), slate.degraded) == (right_answer(house.servable, [5], without=set())[:5], ())
    house.servable.ranker.known_users["ann"] = house.servable.ranker.history(np.array([9]))
    slate = await house.recommend(subject=USER, k=5, explain="full")
    assert slate.ranker is not None
    assert ids(slate) == ranked(ranker_scores(house.servable.ranker, [9]), set(range(50)))[:5]
    assert (slate.explanation.method, slate.explanation.history) == ("occlusion", ())


async def test_popular_items_are_not_ranked(house):
    house.servable.ranker.known_users["ann"] = house.servable.ranker.history(np.array([9]))
    slate = await house.recommend(subject=USER, k=3)
    assert (ids(slate), slate.ranker) == (["i0", "i1", "i2"], None)
    house.servable.fail["search"] = RuntimeError("boom")
    slate = await house.recommend(history=inline("i3"), k=3)
    assert ({item.source for item in slate.items}, slate.degraded) == ({"popular"}, ("model_failed",))
    assert house.servable.ranker.calls == []


@pytest.mark.parametrize("method", ["score", "encode_users", "encode_items"])
async def test_a_ranker_that_fails_leaves_the_retrievers_order(house, method, logs):
    brought = HistoryItem(ItemId("new"), modalities={"text": np.ones(WIDTHS["text"], np.float32)})
    query = {"history": (*inline("i3", "i4"), brought), "k": 5, "min_score": -0.5}
    ranker, house.servable.ranker = house.servable.ranker, None
    plain = await house.recommend(**query)
    house.servable.ranker = ranker
    setattr(ranker, method, _fails)
    for _ in range(2):
        slate = await house.recommend(**query)
        assert (slate.items, slate.ranker, slate.degraded) == (plain.items, None, ("rerank_failed",))
        assert not house.recommender.ranker_ok
    assert [entry["event"] for entry in logs] == ["ranker_broke"]
    delattr(ranker, method)
    assert (await house.recommend(**query)).degraded == ()
    assert house.recommender.ranker_ok


def _fails(*_args, **_kwargs):
    raise RuntimeError("boom")


async def test_scores_that_are_not_finite_are_not_shown(house):
    house.servable.ranker.score = lambda _queries, rows: np.full(len(rows), np.nan)
    slate = await house.recommend(history=inline("i3"), k=5)
    assert slate.degraded == ("rerank_failed",)
    assert ids(slate) == right_answer(house.servable, [3], without={3})[:5]


def clocked(start: float = 0.0):
    now = [start]
    return now, Deadline.after(1.0, clock=lambda: now[0])


async def test_a_ranker_that_costs_more_time_than_is_left_is_not_asked(house):
    _, deadline = clocked()
    house.servable.ranker.rerank_cpu_s = 1.0 - RESERVE_S
    slate = await house.recommender.recommend(Query(history=inline("i3"), k=5), deadline=deadline)
    assert (slate.degraded, slate.ranker, house.servable.ranker.calls) == (("rerank_late",), None, [])
    assert ids(slate) == right_answer(house.servable, [3], without={3})[:5]
    house.servable.ranker.rerank_cpu_s = 0.9 - RESERVE_S
    slate = await house.recommender.recommend(Query(history=inline("i3"), k=5), deadline=deadline)
    assert slate.degraded == ()


async def test_a_ranker_asked_for_more_than_was_timed_needs_the_more_time():
    house = House(ranker=FakeRanker(num_candidates=10))
    house.servable.ranker.rerank_cpu_s = 0.3
    _, deadline = clocked()
    for k, degraded in ((30, ()), (40, ("rerank_late",))):
        slate = await house.recommender.recommend(Query(history=inline("i3"), k=k), deadline=deadline)
        assert slate.degraded == degraded


async def test_a_ranker_for_which_time_runs_out_on_the_way_is_left_out(house):
    now, deadline = clocked()
    house.servable.ranker.before["encode_users"] = lambda: now.__setitem__(0, 0.995)
    slate = await house.recommender.recommend(Query(history=inline("i3"), k=5), deadline=deadline)
    assert slate.degraded == ("rerank_late",)
    assert "score" not in house.servable.ranker.calls
    assert house.recommender.ranker_ok, "late is not broken"
    now, deadline = clocked()
    house.servable.ranker.before["encode_users"] = lambda: now.__setitem__(0, 1.5)
    with pytest.raises(DeadlineExceeded):
        await house.recommender.recommend(Query(history=inline("i3"), k=5), deadline=deadline)


def rerankings(servable: FakeServable, *queries: Query) -> list[Reranking]:
    jobs = [Job(servable, query, NEVER) for query in queries]
    return [
        Reranking(job, answer, answer.candidates, NEVER) for job, answer in zip(jobs, answer_jobs(jobs), strict=True)
    ]


def test_answers_that_wait_together_are_encoded_together_and_each_as_alone(house):
    servable = house.servable
    queries = [Query(history=inline(f"i{row}", f"i{row + 1}"), k=5) for row in range(6)]
    waiting = rerankings(servable, *queries)
    together = rerank(waiting)
    assert servable.ranker.calls == ["encode_users", *["score"] * 6]
    for one, answer in zip(waiting, together, strict=True):
        (alone,) = rerank([one])
        assert (alone.items, alone.rows, alone.ranker) == (answer.items, answer.rows, answer.ranker)
    assert rerank([]) == []


def test_what_fails_for_one_user_leaves_its_neighbours_their_order(house):
    servable = house.servable
    encode = servable.ranker.encode_users

    def picky(history_BLH, mask_BL):
        if (mask_BL.sum(axis=1) == 2).any():
            raise RuntimeError("boom")
        return encode(history_BLH, mask_BL)

    servable.ranker.encode_users = picky
    waiting = rerankings(servable, *(Query(history=inline(*past)) for past in (["i1"], ["i1", "i2"], ["i4"])))
    results = rerank(waiting)
    assert [getattr(result, "ranker", None) is servable.ranker for result in results] == [True, False, True]
    assert isinstance(results[1], RuntimeError)


async def test_what_is_explained_is_the_rankers_score_by_its_methods(house):
    house.servable.ranker.faithfulness = lambda method: {"deletion_auc": 0.1} if method == "shapley" else {}
    slate = await house.recommend(history=inline("i3", "i4"), k=3, explain="full")
    assert slate.explanation.method == "shapley"
    assert slate.explanation.faithfulness == {"deletion_auc": 0.1}
    assert "attribute" in house.servable.ranker.calls
    assert "attribute" not in house.servable.calls
    assert any("rated by occlusion" in caveat for caveat in slate.explanation.caveats)
    assert [line.item_id for line in slate.explanation.items] == ids(slate)


async def test_a_method_that_the_ranker_lacks_is_refused(house):
    with pytest.raises(InvalidQuery, match="'grad_x_input' is not offered by this model; it offers shapley, occlusion"):
        await house.explain(history=inline("i3"), method="grad_x_input")
    _, explanation = await house.explain(history=inline("i3"), method="occlusion")
    assert explanation.method == "occlusion"


async def test_where_the_retrievers_order_stands_its_scores_are_explained(house):
    house.servable.ranker.fail["score"] = RuntimeError("boom")
    slate, explanation = await house.explain(history=inline("i3"), method="shapley", k=3)
    assert slate.degraded == ("rerank_failed",)
    assert explanation.method == "grad_x_input", "the retriever's default: it does not offer what was asked for"
    for item, line in zip(slate.items, explanation.items, strict=True):
        assert line.score == pytest.approx(item.score, abs=1e-5)


async def test_named_items_have_the_rankers_scores_whatever_the_filters_say(house):
    wanted = tuple(map(ItemId, ("i9", "i3", "i9", "i30")))
    slate, explanation = await house.explain(history=inline("i3", "i4"), item_ids=wanted, min_score=1e6)
    scores = ranker_scores(house.servable.ranker, [3, 4])
    assert ids(slate) == [line.item_id for line in explanation.items] == ranked(scores, {9, 3, 30})
    assert [item.score for item in slate.items] == pytest.approx(sorted(scores[[9, 3, 30]])[::-1])
    assert slate.ranker is not None


async def test_named_items_of_a_cold_user_have_their_popularity(house):
    slate, _ = await house.explain(subject=user_subject("new"), item_ids=(ItemId("i9"), ItemId("i2")))
    assert (ids(slate), slate.ranker) == (["i2", "i9"], None)


def test_both_models_say_what_they_are(house):
    assert house.recommender.model("fake").methods == ("grad_x_input", "decomposition", "occlusion")
    assert house.recommender.model("fake-ranker").methods == ("shapley", "occlusion")
    assert house.recommender.model("bundle-fake-2").version.model_name == "fake-ranker"
    with pytest.raises(ModelNotFound):
        house.recommender.model("bundle-fake-3")
