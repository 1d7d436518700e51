"""A diverse slate: k distinct items of the pool, with their own scores; more diversity, more categories."""

import asyncio
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.recommend.deadline import Deadline
from service.recommend.diversity import diversify, pool_size
from service.recommend.types import HistoryItem, ItemId, Query
from tests.fakes import FakeRanker, FakeServable, recommender_of

NUM_ITEMS = 40
SERVABLE = FakeServable(NUM_ITEMS)
STEPS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)

pools = st.lists(
    st.tuples(st.integers(0, NUM_ITEMS - 1), st.floats(-10, 10)), max_size=NUM_ITEMS, unique_by=lambda pick: pick[0]
).map(lambda picks: sorted(picks, key=lambda pick: -pick[1]))


def category(row: int) -> int:
    return row % 5


def bare(rows):
    """Metadata of a catalogue without categories."""
    return [{"title": f"Item {row}"} for row in rows.tolist()]


@given(pools, st.integers(1, NUM_ITEMS), st.floats(0, 1), st.booleans())
@settings(max_examples=150, deadline=None)
def test_k_distinct_items_of_the_pool_are_chosen_the_best_first(pool, k, diversity, has_categories):
    with mock.patch.object(SERVABLE, "metadata", SERVABLE.metadata if has_categories else bare):
        picks = diversify(SERVABLE, pool, k=k, diversity=diversity)
    assert len(picks) == len(set(picks)) == min(k, len(pool))
    assert set(picks) <= set(pool)
    if diversity < 1 and pool:
        assert picks[0] == pool[0]


@given(pools, st.integers(1, NUM_ITEMS))
@settings(max_examples=60, deadline=None)
def test_none_leaves_the_order_alone_and_asks_nothing(pool, k):
    with mock.patch.object(SERVABLE, "metadata", None):
        assert diversify(SERVABLE, pool, k=k, diversity=0) == pool[:k]


@given(pools, st.integers(1, NUM_ITEMS))
@settings(max_examples=60, deadline=None)
def test_all_of_it_takes_the_categories_in_turns(pool, k):
    picks = diversify(SERVABLE, pool, k=k, diversity=1)
    there = {category(row) for row, _ in pool}
    assert len({category(row) for row, _ in picks}) == min(len(there), k)


@given(pools, st.integers(1, NUM_ITEMS), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_every_choice_is_the_one_of_most_worth_as_the_definition_says(pool, k, diversity):
    picks = diversify(SERVABLE, pool, k=k, diversity=diversity)
    scores = np.array([score for _, score in pool])
    span = np.ptp(scores) if pool else 0
    scaled = {pick: (pick[1] - scores.min()) / span if span > 0 else 0.0 for pick in pool}
    for place, pick in enumerate(picks):
        counts = {c: sum(category(row) == c for row, _ in picks[:place]) for c in range(5)}
        worth = {p: (1 - diversity) * scaled[p] - diversity * counts[category(p[0])] for p in pool}
        assert worth[pick] >= max(worth[other] for other in set(pool) - set(picks[:place])) - 1e-9


def mean_categories(diversity: float, *, k: int = 5) -> float:
    recommender = recommender_of(SERVABLE)
    counts = []
    for row in range(NUM_ITEMS):
        query = Query(history=(HistoryItem(ItemId(f"i{row}")),), k=k, diversity=diversity)
        slate = asyncio.run(recommender.recommend(query, deadline=Deadline.after(60)))
        assert len(slate.items) == k
        counts.append(len({item.metadata["categories"][0] for item in slate.items}))
    return float(np.mean(counts))


def test_more_diversity_never_has_fewer_categories_on_average():
    means = [mean_categories(diversity) for diversity in STEPS]
    assert means == sorted(means)
    assert means[-1] == 5 > means[0]


def test_without_categories_the_slate_grows_more_unlike_itself():
    def likeness(diversity):
        units = SERVABLE.history(np.arange(NUM_ITEMS))
        units = units / np.linalg.norm(units, axis=1, keepdims=True)
        scores = units @ units[7]
        pool = [(row, float(scores[row])) for row in np.argsort(-scores, kind="stable").tolist()]
        with mock.patch.object(SERVABLE, "metadata", bare):
            rows = [row for row, _ in diversify(SERVABLE, pool, k=6, diversity=diversity)]
        cosines = units[rows] @ units[rows].T
        return float(cosines[np.triu_indices(len(rows), 1)].mean())

    assert likeness(0) > likeness(0.5) > likeness(0.9)


@pytest.mark.parametrize("ranker", [None, FakeRanker(NUM_ITEMS, num_candidates=30)])
def test_scores_are_those_of_the_model_that_ordered_the_items(ranker):
    with mock.patch.object(SERVABLE, "ranker", ranker):
        ask = recommender_of(SERVABLE).recommend
        history = tuple(HistoryItem(ItemId(f"i{row}")) for row in (3, 9))
        plain = asyncio.run(ask(Query(history=history, k=40), deadline=Deadline.after(60)))
        diverse = asyncio.run(ask(Query(history=history, k=8, diversity=0.6), deadline=Deadline.after(60)))
    scores = {item.item_id: item.score for item in plain.items}
    assert all(item.score == pytest.approx(scores[item.item_id], abs=1e-5) for item in diverse.items)
    assert [item.rank for item in diverse.items] == list(range(1, 9))
    assert len({item.metadata["categories"][0] for item in diverse.items}) == 5
    assert diverse.ranker == (None if ranker is None else ranker.card.version)


def test_the_fallback_is_diverse_too():
    slate = asyncio.run(recommender_of(SERVABLE).recommend(Query(k=5, diversity=1.0), deadline=Deadline.after(60)))
    assert [item.item_id for item in slate.items] == ["i0", "i1", "i2", "i3", "i4"]
    blocked = Query(k=3, diversity=1.0, candidate_item_ids=tuple(ItemId(f"i{row}") for row in (0, 5, 10, 1, 6, 2)))
    slate = asyncio.run(recommender_of(SERVABLE).recommend(blocked, deadline=Deadline.after(60)))
    assert [item.item_id for item in slate.items] == ["i0", "i1", "i2"]


def test_the_pool_is_bounded_and_never_smaller_than_the_slate():
    assert [pool_size(k) for k in (1, 20, 200, 500, 1_500)] == [5, 100, 1_000, 1_000, 1_500]
