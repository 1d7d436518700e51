"""What if: both slates of one version, and what moved, on a model whose answers can be computed by hand."""

import numpy as np
import pytest

from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.errors import InvalidQuery
from service.recommend.job import Job
from service.recommend.types import Filter, HistoryItem, ItemId, Query, Without
from service.recommend.what_if import NO_HISTORY, NOTHING_LEFT
from tests.fakes import WIDTHS, FakeRanker
from tests.unit.recommend.house import USER, House, ids, inline, right_answer


async def ask(house: House, *, modalities=(), item_ids=(), **query):
    without = Without(tuple(modalities), frozenset(map(ItemId, item_ids)))
    return await house.recommender.what_if(Query(**query, without=without), deadline=Deadline.after(5))


async def test_without_a_past_item_the_second_slate_is_that_of_the_others(house):
    found = await ask(house, item_ids=["i3"], history=inline("i3", "i9", "i14"), k=50)
    assert ids(found.before) == right_answer(house.servable, [3, 9, 14], without={3, 9, 14})
    assert ids(found.after) == right_answer(house.servable, [9, 14], without={3, 9, 14})
    assert (found.before.events_used, found.after.events_used) == (3, 2)


async def test_without_a_modality_the_past_items_are_made_anew_from_what_is_left(house):
    found = await ask(house, modalities=["text"], history=inline("i3", "i9"), k=50)
    servable = house.servable
    user = servable.states(np.array([3, 9]))[:, 0].mean(axis=0)
    scores = servable.history(np.arange(50)) @ user
    assert ids(found.after) == [f"i{row}" for row in np.argsort(-scores, kind="stable") if row not in (3, 9)]
    assert [item.score for item in found.after.items] == pytest.approx([scores[int(i[1:])] for i in ids(found.after)])


async def test_what_moved_is_told_of_every_item_of_either_slate(house):
    found = await ask(house, item_ids=["i3"], history=inline("i3", "i9", "i14"), k=10)
    before = {item.item_id: item for item in found.before.items}
    after = {item.item_id: item for item in found.after.items}
    assert [change.item_id for change in found.changes] == [
        *after, *[item_id for item_id in before if item_id not in after]
    ]  # fmt: skip
    assert {change.kind for change in found.changes} >= {"entered", "left"}
    for change in found.changes:
        one, other = before.get(change.item_id), after.get(change.item_id)
        if one is None or other is None:
            assert change.kind == ("entered" if one is None else "left")
            assert change.rank_change is change.score_change is None
        else:
            assert change.rank_change == one.rank - other.rank
            assert change.score_change == pytest.approx(other.score - one.score)
            assert change.kind == ("same" if one.rank == other.rank else "up" if one.rank > other.rank else "down")


async def test_a_stored_history_is_read_once_for_both(house):
    await house.saw("i3", "i9")
    found = await ask(house, item_ids=["i9"], subject=USER, k=50)
    assert ids(found.after) == right_answer(house.servable, [3], without={3, 9})
    assert found.before.user_state == found.after.user_state == "known"


async def test_an_item_that_brought_its_vectors_may_be_switched_off_in_part(house):
    brought = HistoryItem(ItemId("new"), None, {name: np.ones(width, np.float32) for name, width in WIDTHS.items()})
    history = (*inline("i3"), brought)
    without_all = await ask(house, item_ids=["new"], history=history, k=50)
    assert ids(without_all.after) == right_answer(house.servable, [3], without={3})
    only_text = HistoryItem(ItemId("new"), None, {"visual": np.ones(WIDTHS["visual"], np.float32)})
    without_text = await ask(house, modalities=["text"], history=history, k=50)
    wanted = await ask(house, modalities=["text"], history=(*inline("i3"), only_text), k=50)
    assert ids(without_text.after) == ids(wanted.after)


@pytest.mark.parametrize("off", [{"modalities": ["visual", "text"]}, {"item_ids": ["i3", "i9"]}])
async def test_where_nothing_is_left_the_second_slate_is_that_of_somebody_without_a_history(house, off):
    found = await ask(house, **off, history=inline("i3", "i9"), k=4)
    assert {item.source for item in found.after.items} == {"popular"}
    assert found.after.events_used == 0
    assert NOTHING_LEFT in found.caveats
    assert all(change.score_change is None for change in found.changes)


async def test_without_a_history_nothing_changes_and_it_says_so(house):
    found = await ask(house, modalities=["text"], k=4)
    assert ids(found.before) == ids(found.after)
    assert NO_HISTORY in found.caveats
    house.servable.known_users["ann"] = np.ones((1, 8), np.float32)
    found = await ask(house, modalities=["text"], subject=USER, k=4)
    assert {change.kind for change in found.changes} == {"same"}
    assert NO_HISTORY in found.caveats


async def test_what_is_switched_off_in_an_unknown_way_is_refused_by_name(house):
    with pytest.raises(InvalidQuery) as refused:
        await ask(house, modalities=["text", "smell"], history=inline("i3"))
    assert refused.value.pointer == "/without/modalities/1"
    found = await ask(house, item_ids=["never-seen"], history=inline("i3"), k=9)
    assert {change.kind for change in found.changes} == {"same"}


async def test_both_slates_pass_the_same_filter(house):
    found = await ask(house, item_ids=["i3"], history=inline("i3", "i9"), k=50, filter=Filter(categories_any=("c3",)))
    shown = {f"i{row}" for row in range(50) if row % 5 == 3} - {"i3", "i9"}
    assert set(ids(found.before)) == set(ids(found.after)) == shown


async def test_a_ranker_orders_both_slates():
    house = House(ranker=FakeRanker(num_candidates=50))
    found = await ask(house, item_ids=["i9"], history=inline("i3", "i9"), k=5)
    alone = await house.recommend(history=inline("i3"), k=5, exclude_item_ids=frozenset({ItemId("i9")}))
    assert ids(found.after) == ids(alone)
    assert found.before.ranker == found.after.ranker == house.servable.ranker.card.version


async def test_what_is_taken_from_one_user_is_not_taken_from_another_of_the_same_batch(house):
    never = Deadline.after(60)
    query = Query(history=inline("i3", "i9"), k=50)
    whole = Job(house.servable, query, never)
    altered = Job(house.servable, Query(history=query.history, k=50, without=Without(("text",))), never)
    together = answer_jobs([whole, altered, whole])
    for job, answer in zip((whole, altered, whole), together, strict=True):
        (alone,) = answer_jobs([job])
        assert alone.rows == answer.rows
