"""Whatever is asked: no slate shows what must not be shown, repeats an item, or holds fewer items than there are."""

import asyncio
import math
from contextlib import suppress
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from index.dataset import Dataset
from index.store import ArtifactStore
from service.recommend import sources
from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.errors import ItemNotFound
from service.recommend.history import basis_for
from service.recommend.job import NO_HISTORY, Job
from service.recommend.ports import StoredHistory
from service.recommend.rerank import Reranking, rerank
from service.recommend.sources import encode_users
from service.recommend.types import Event, Filter, HistoryItem, ItemId, Query, Without, user_subject
from service.runtime import overlay
from service.runtime.live import LiveCatalogue
from service.runtime.servable import load_servable
from tests.fakes import WIDTHS, FakeRanker, FakeServable, FakeStore, recommender_of
from tests.live_world import NUM_ITEMS as NUM_LIVE
from tests.live_world import World, changes, ids

NUM_ITEMS = 24
SERVABLE = FakeServable(NUM_ITEMS, length=4)
NEVER = Deadline.after(3_600.0)

known_ids = st.integers(0, NUM_ITEMS - 1).map(lambda row: ItemId(f"i{row}"))
item_ids = st.one_of(known_ids, st.sampled_from([ItemId("x1"), ItemId("x2"), ItemId("")]))
categories = st.lists(st.sampled_from([f"c{number}" for number in range(6)]), max_size=2).map(tuple)
filters = st.builds(
    Filter,
    categories_any=categories,
    categories_all=categories,
    categories_none=categories,
    attributes=st.sampled_from([{}, {"colour": ("red",)}, {"colour": ("red", "blue")}, {"colour": ("green",)}]),
)
vectors = st.sampled_from(
    [None, {}, {"visual": np.ones(WIDTHS["visual"], np.float32)}, {"text": np.zeros(WIDTHS["text"], np.float32)}]
)
history_items = st.builds(HistoryItem, item_id=item_ids, modalities=vectors)
queries = st.builds(
    Query,
    subject=st.sampled_from([None, user_subject("ann")]),
    history=st.one_of(st.none(), st.lists(history_items, max_size=8).map(tuple)),
    k=st.integers(1, NUM_ITEMS + 5),
    filter=filters,
    exclude_item_ids=st.frozensets(item_ids, max_size=NUM_ITEMS),
    candidate_item_ids=st.one_of(st.none(), st.lists(item_ids, max_size=30).map(tuple)),
    include_seen=st.booleans(),
    min_score=st.one_of(st.none(), st.floats(-1, 2)),
    diversity=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
)
stored = st.builds(
    lambda ids, blocked: StoredHistory(tuple(ids), tuple(map(float, range(len(ids)))), tuple(blocked)),
    st.lists(item_ids, max_size=NUM_ITEMS),
    st.one_of(st.just(frozenset()), st.frozensets(item_ids, max_size=NUM_ITEMS)),
)


def make_job(query: Query, stored: StoredHistory) -> Job:
    return Job(SERVABLE, query, NEVER, stored if query.subject else StoredHistory())


jobs = st.builds(make_job, queries, stored)


def admissible(query: Query, stored: StoredHistory, passing: set[str] | None = None) -> set[str]:
    """Say in other words than the core's what may be shown, without regard to scores.

    `passing` is what there is, is not hidden and passes the query's filter; by default of the fake version.
    """
    if passing is None:
        passing = {f"i{row}" for row in np.flatnonzero(SERVABLE.select(query.filter).mask_N)}
    shown = passing - query.exclude_item_ids - set(stored.blocked_item_ids)
    if query.candidate_item_ids is not None:
        shown &= set(query.candidate_item_ids)
    if not query.include_seen:
        shown -= set(stored.item_ids) | {item.item_id for item in query.history or ()}
    return shown


def check(job: Job, items) -> None:
    shown = [item.item_id for item in items]
    allowed = admissible(job.query, job.stored)
    assert set(shown) <= allowed
    assert len(set(shown)) == len(shown) <= job.query.k
    assert [item.rank for item in items] == list(range(1, len(items) + 1))
    scores = [item.score for item in items]
    assert job.query.diversity or scores == sorted(scores, reverse=True)
    if job.query.min_score is None:
        assert len(shown) == min(job.query.k, len(allowed))
    else:
        assert all(score >= job.query.min_score for score in scores)


@given(jobs, st.sampled_from([sources.MAX_EXTRA, 3, 0]))
@settings(max_examples=150, deadline=None)
def test_a_slate_holds_nothing_that_is_hidden_repeats_nothing_and_is_full(job, max_extra):
    with mock.patch.object(sources, "MAX_EXTRA", max_extra):
        (answer,) = answer_jobs([job])
    check(job, answer.items)
    assert len(answer.basis.history) <= SERVABLE.history_length


@given(jobs, st.integers(1, NUM_ITEMS + 5))
@settings(max_examples=150, deadline=None)
def test_a_ranker_orders_the_best_that_may_be_shown_and_brings_in_nothing_else(job, num_candidates):
    ranker = FakeRanker(NUM_ITEMS, num_candidates=num_candidates, length=3)
    job = replace(job, query=replace(job.query, diversity=0.0))
    plain = replace(job.query, min_score=None, k=max(job.query.k, num_candidates))
    (retrieved,) = answer_jobs([replace(job, query=plain)])
    with mock.patch.object(SERVABLE, "ranker", ranker):
        (answer,) = answer_jobs([job])
        if answer.candidates is None:
            assert {item.source for item in answer.items} <= {"popular"}
            return
        (ordered,) = rerank([Reranking(job, answer, answer.candidates, NEVER)])
    check(job, ordered.items)
    check(job, answer.items)
    basis = basis_for(ranker, answer.candidates.past, job.query)
    scores = ranker.score(encode_users(ranker, [basis])[0], np.array(retrieved.rows, np.int64))
    floor = -math.inf if job.query.min_score is None else job.query.min_score
    brute = [
        retrieved.items[place].item_id for place in np.argsort(-scores, kind="stable") if scores[place].item() >= floor
    ]
    assert [item.item_id for item in ordered.items] == brute[: job.query.k]


@given(jobs)
@settings(max_examples=60, deadline=None)
def test_the_fallback_of_a_failed_model_passes_the_same_filter(job):
    broken = {"search": RuntimeError("boom"), "score": RuntimeError("boom")}
    with mock.patch.object(SERVABLE, "fail", broken), capture_logs():
        (answer,) = answer_jobs([job])
    check(job, answer.items)
    assert {item.source for item in answer.items} <= {"popular"}


@given(st.lists(jobs, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_jobs_answered_together_get_what_each_gets_alone(together):
    for answer, job in zip(answer_jobs(together), together, strict=True):
        (alone,) = answer_jobs([job])
        assert [item.item_id for item in answer.items] == [item.item_id for item in alone.items]
        assert np.allclose([item.score for item in answer.items], [item.score for item in alone.items], atol=1e-5)
        for field in ("rows", "user_state", "unknown_item_ids", "degraded"):
            assert getattr(answer, field) == getattr(alone, field)


@given(queries, st.sampled_from(["none", "summary", "full"]))
@settings(max_examples=60, deadline=None)
def test_a_whole_answer_is_well_formed_and_the_same_again(query, level):
    recommender = recommender_of(SERVABLE)
    query = replace(query, explain=level)
    first = asyncio.run(recommender.recommend(query, deadline=NEVER))
    second = asyncio.run(recommender.recommend(query, deadline=NEVER))
    assert replace(first, timings_ms={}) == replace(second, timings_ms={})
    check(Job(SERVABLE, query, NEVER), first.items)
    if first.explanation is None:
        assert level == "none"
        return
    shares = [part.share for part in first.explanation.modality_interest]
    assert not shares or math.isclose(sum(shares), 1, abs_tol=1e-6)
    for line in first.explanation.items:
        assert math.isclose(sum(line.contributions.values()) + line.residual, line.score, abs_tol=1e-4)


@given(known_ids, st.integers(1, NUM_ITEMS + 5), st.sampled_from([None, "visual", "text"]), filters)
@settings(max_examples=60, deadline=None)
def test_similar_and_popular_items_pass_the_filter_too(item_id, k, modality, restriction):
    recommender = recommender_of(SERVABLE)
    allowed = {f"i{row}" for row in np.flatnonzero(SERVABLE.select(restriction).mask_N)}
    similar = asyncio.run(recommender.similar(item_id, k=k, modality=modality, restriction=restriction, deadline=NEVER))
    popular = asyncio.run(recommender.popular(k=k, restriction=restriction, deadline=NEVER))
    for listing, pool in ((similar, allowed - {item_id}), (popular, allowed)):
        shown = [item.item_id for item in listing.items]
        assert set(shown) <= pool
        assert len(set(shown)) == len(shown) == min(k, len(pool))


@given(queries, st.integers(2, 4), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_path_shows_what_may_be_shown_and_pages_never_repeat(query, num_pages, has_ranker, fails):
    """Pages, what-if and explanations of what was shown: with and without a ranker, and while the model fails."""
    ranker = FakeRanker(NUM_ITEMS, num_candidates=6, length=3) if has_ranker else None
    broken = {"search": RuntimeError("boom"), "score": RuntimeError("boom")} if fails else {}
    with mock.patch.object(SERVABLE, "ranker", ranker), mock.patch.object(SERVABLE, "fail", broken), capture_logs():
        asyncio.run(_walk(query, num_pages))


async def _walk(query: Query, num_pages: int) -> None:
    recommender = recommender_of(SERVABLE)
    allowed, shown, after = admissible(query, NO_HISTORY), [], None
    for _ in range(num_pages):
        page = replace(query, store=True, after=after)
        off = replace(page, without=Without(("text",), frozenset({ItemId("i3")})))
        what_if = await recommender.what_if(off, deadline=NEVER)
        slate = await recommender.recommend(page, deadline=NEVER)
        for items in (slate.items, what_if.before.items, what_if.after.items):
            found = [item.item_id for item in items]
            assert set(found) <= allowed - set(shown)
            assert len(set(found)) == len(found) <= query.k
        again, explanation = await recommender.explain_shown(slate.recommendation_id, deadline=NEVER)
        wanted = [item.item_id for item in slate.items]
        assert [item.item_id for item in again.items] == [line.item_id for line in explanation.items] == wanted
        shown += wanted
        after = slate.recommendation_id


there = st.one_of(ids, ids, st.sampled_from([ItemId(f"i{number:04d}") for number in range(NUM_LIVE)] + [ItemId("x")]))
live_queries = st.builds(
    Query,
    subject=st.just(user_subject("ann")),
    history=st.one_of(st.none(), st.lists(st.builds(HistoryItem, item_id=there), max_size=4).map(tuple)),
    k=st.integers(1, NUM_LIVE + 5),
    filter=st.builds(
        Filter,
        categories_any=st.sampled_from([(), (), ("travel", "x")]),
        categories_all=st.sampled_from([(), (), ("y",)]),
        categories_none=st.sampled_from([(), ("music",), ("x",)]),
        attributes=st.sampled_from([{}, {}, {"year": tuple(range(1990, 2010))}]),
    ),
    exclude_item_ids=st.frozensets(there, max_size=12),
    candidate_item_ids=st.one_of(st.none(), st.none(), st.lists(there, max_size=30).map(tuple)),
    include_seen=st.booleans(),
    min_score=st.sampled_from([None, None, 0.0]),
    diversity=st.sampled_from([0.0, 0.4, 1.0]),
)


@pytest.fixture(scope="module")
def toy(toy_store):
    servable = load_servable(ArtifactStore(toy_store.store), toy_store.snapshot)
    yield servable, Dataset.open(toy_store.dataset)
    servable.release()


@given(
    st.lists(changes, max_size=10),
    st.lists(changes, max_size=4),
    live_queries,
    st.lists(there, max_size=6),
    st.frozensets(there, max_size=12),
    st.sampled_from([overlay.MAX_EXTRA, 2]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_hidden_deleted_blocked_or_filtered_is_shown_on_no_path(
    toy, before, between, query, events, blocked, max_extra
):
    """All at once, and changing while somebody turns pages."""
    servable, data = toy
    world, store = World.of(data), FakeStore()
    store.blocked[query.subject] = dict.fromkeys(blocked, 0.0)
    store.events[query.subject] = [
        Event(f"e{place}", query.subject, item_id, "click", float(place)) for place, item_id in enumerate(events)
    ]
    catalogue = LiveCatalogue(world.log)
    catalogue.prepare(servable)
    recommender = recommender_of(servable, history=store, catalogue=catalogue)

    async def walk() -> None:
        shown, after = set(), None
        for what in (before, between, ()):
            for change in what:
                world.change(data, change)
            await catalogue.fresh(servable)  # as a worker does that is told of a change with a history
            passing, page = world.passing(query.filter), replace(query, store=True, after=after)
            allowed = admissible(query, await store.history(query.subject, limit=100), passing) - shown
            for what_may_be, items in await _all_paths(recommender, page, allowed, passing):
                found = [item.item_id for item in items]
                assert set(found) <= what_may_be
                assert len(set(found)) == len(found) <= query.k
            slate = await recommender.recommend(page, deadline=NEVER)
            if query.min_score is None:
                assert len(slate.items) == min(query.k, len(allowed))
            shown |= {item.item_id for item in slate.items}
            after = slate.recommendation_id

    with mock.patch.object(overlay, "MAX_EXTRA", max_extra):
        asyncio.run(walk())


async def _all_paths(recommender, page, allowed, passing):
    """Return what may be shown and what is, of every path that recommends something."""
    off = replace(page, without=Without(("text",), frozenset({ItemId("i0004")})))
    what_if = await recommender.what_if(off, deadline=NEVER)
    explained, _ = await recommender.explain(replace(page, explain="summary"), deadline=NEVER)
    lists = {"k": page.k, "restriction": page.filter, "deadline": NEVER}
    paths = [
        (allowed, (await recommender.recommend(replace(page, store=False), deadline=NEVER)).items),
        (allowed, what_if.before.items),
        (allowed, what_if.after.items),
        (allowed, explained.items),
        (passing, (await recommender.popular(**lists)).items),
    ]
    with suppress(ItemNotFound):
        paths.append((passing - {"i0008"}, (await recommender.similar(ItemId("i0008"), **lists)).items))
    return paths
