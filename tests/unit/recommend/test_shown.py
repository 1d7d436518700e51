"""What was shown is explained as it was, continued without repeats, and never costs an answer."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from service.recommend import shown as shown_module
from service.recommend.deadline import Deadline
from service.recommend.errors import InvalidQuery, RecommendationNotFound, StoreUnavailable
from service.recommend.explain_shown import ITEMS_GONE, OTHER_MODEL
from service.recommend.recommender import Recommender
from service.recommend.shown import ShownSlates
from service.recommend.types import HistoryItem, ItemId, ServedVersion
from service.runtime.registry import ServableRegistry
from tests.fakes import WIDTHS, FakeRanker, FakeServable, FakeSlates, FakeSource
from tests.unit.recommend.house import USER, House, ids, inline


class Kept(House):
    """A house that keeps what it shows."""

    def __init__(self, *, max_pending: int = 100, **kwargs) -> None:
        super().__init__(**kwargs)
        self.slates = FakeSlates()
        self.dropped = 0
        self.shown = ShownSlates(self.slates, on_dropped=self._drop, max_pending=max_pending)
        self.recommender = Recommender(
            servables=FakeSource(self.servable),
            history=self.store,
            compute=self.compute,
            admission=self.admission,
            store_timeout_s=0.05,
            shown=self.shown,
        )

    def _drop(self, count: int) -> None:
        self.dropped += count

    async def written(self) -> None:
        """Write what waits."""
        await self.shown.flush()

    async def explained(self, slate, **kwargs):
        return await self.recommender.explain_shown(slate.recommendation_id, deadline=Deadline.after(5), **kwargs)


@pytest.fixture
def house():
    return Kept()


async def test_what_is_explained_is_what_was_shown_whatever_happened_since(house):
    await house.saw("i3", "i9")
    slate = await house.recommend(subject=USER, k=6, store=True, diversity=0.7)
    wanted = {item.item_id: item.score for item in slate.items}
    await house.written()
    await house.saw("i20", "i21")
    again, explanation = await house.explained(slate, method="grad_x_input")
    assert ids(again) == ids(slate)
    assert [item.rank for item in again.items] == list(range(1, 7))
    assert [line.item_id for line in explanation.items] == ids(slate)
    assert [line.score for line in explanation.items] == pytest.approx([wanted[i] for i in ids(slate)], abs=1e-5)
    assert [one["item_id"] for one in explanation.history] == ["i3", "i9"]
    assert OTHER_MODEL not in explanation.caveats


async def test_items_that_came_with_vectors_are_kept_with_them(house):
    vectors = {name: np.ones(width, np.float32) for name, width in WIDTHS.items()}
    history = (*inline("i3"), HistoryItem(ItemId("new"), None, vectors))
    slate = await house.recommend(history=history, k=3, store=True)
    await house.written()
    _, explanation = await house.explained(slate)
    assert [one["item_id"] for one in explanation.history] == ["i3", "new"]
    assert [line.score for line in explanation.items] == pytest.approx([item.score for item in slate.items], abs=1e-5)


async def test_popular_lines_stay_popular_although_the_model_works_again(house):
    house.servable.fail["search"] = RuntimeError("boom")
    slate = await house.recommend(history=inline("i3"), k=3, store=True)
    house.servable.fail.clear()
    _, explanation = await house.explained(slate)
    assert {line.reasons[0].code for line in explanation.items} == {"popular"}


async def test_some_of_the_items_may_be_asked_for_and_no_others(house):
    slate = await house.recommend(history=inline("i3"), k=4, store=True)
    second = slate.items[1].item_id
    again, explanation = await house.explained(slate, item_ids=(second,))
    assert [(item.item_id, item.rank) for item in again.items] == [(second, 2)]
    assert len(explanation.items) == 1
    with pytest.raises(InvalidQuery) as refused:
        await house.explained(slate, item_ids=(second, ItemId("i3")))
    assert refused.value.pointer == "/item_ids/1"


async def test_a_ranker_explains_what_it_ordered():
    house = Kept(ranker=FakeRanker())
    slate = await house.recommend(history=inline("i3", "i9"), k=4, store=True)
    again, explanation = await house.explained(slate)
    assert again.ranker == slate.ranker == house.servable.ranker.card.version
    assert explanation.method == "shapley"


async def test_the_model_that_made_it_explains_it_while_it_is_open_and_then_another_with_a_caveat():
    house, registry = Kept(), ServableRegistry()
    house.recommender._servables = registry
    registry.swap(house.servable)
    slate = await house.recommend(history=inline("i3"), k=50, store=True)
    for number, num_items in ((2, 50), (3, 20)):
        other = FakeServable(num_items, version=f"snapshot-fake-{number}", seed=number)
        other.version = replace(other.version, model_version=f"bundle-fake-{number}")
        registry.swap(other)
        again, explanation = await house.explained(slate)
        if number == 2:
            assert again.version == slate.version
            assert OTHER_MODEL not in explanation.caveats
        else:
            assert again.version == other.version
            assert {OTHER_MODEL, ITEMS_GONE} <= set(explanation.caveats)
            assert ids(again) == [item_id for item_id in ids(slate) if int(item_id[1:]) < 20]
    registry.close()
    assert house.servable.closed


async def test_pages_go_on_without_repeats_until_there_is_nothing_left(house):
    pages, after = [], None
    for _ in range(6):
        slate = await house.recommend(history=inline("i3"), k=10, store=True, after=after)
        after = slate.recommendation_id
        pages.append(ids(slate))
        await house.written()
    whole = ids(await house.recommend(history=inline("i3"), k=50))
    assert [item for page in pages for item in page] == whole
    assert [len(page) for page in pages] == [10, 10, 10, 10, 9, 0]


async def test_a_chain_that_is_too_long_is_refused(house, monkeypatch):
    monkeypatch.setattr(shown_module, "MAX_CHAIN", 5)
    first = await house.recommend(k=4, store=True)
    second = await house.recommend(k=4, store=True, after=first.recommendation_id)
    with pytest.raises(InvalidQuery) as refused:
        await house.recommend(k=4, after=second.recommendation_id)
    assert refused.value.pointer == "/after"


async def test_what_was_not_to_be_kept_is_unknown(house):
    slate = await house.recommend(history=inline("i3"), k=3)
    await house.written()
    for ask in (house.explained(slate), house.recommend(k=3, after=slate.recommendation_id)):
        with pytest.raises(RecommendationNotFound):
            await ask
    assert house.slates.slates == {}


async def test_a_store_that_is_away_costs_no_answer_and_is_counted(house):
    house.slates.away = True
    slate = await house.recommend(history=inline("i3"), k=3, store=True)
    assert len(slate.items) == 3
    await house.written()
    assert house.dropped == 1
    with pytest.raises(StoreUnavailable):
        await house.explained(slate)


async def test_more_than_there_is_room_for_are_dropped_and_counted():
    house = Kept(max_pending=2)
    slates = [await house.recommend(k=3, store=True) for _ in range(5)]
    assert house.dropped == 3
    await house.written()
    assert set(house.slates.slates) == {slate.recommendation_id for slate in slates[:2]}


async def test_the_background_task_writes_what_comes_and_what_comes_later(house):
    task = asyncio.create_task(house.shown.serve())
    for count in (1, 2):
        await house.recommend(k=3, store=True)
        async with asyncio.timeout(30):
            await house.slates.kept.acquire()
        assert len(house.slates.slates) == count
    task.cancel()
    await asyncio.wait([task])


async def test_who_is_forgotten_is_gone_from_what_waits_too(house):
    kept = await house.recommend(subject=USER, k=3, store=True)
    await house.written()
    waiting = await house.recommend(subject=USER, k=3, store=True)
    other = await house.recommend(k=3, store=True)
    await house.shown.forget(USER)
    await house.written()
    assert set(house.slates.slates) == {other.recommendation_id}
    for slate in (kept, waiting):
        with pytest.raises(RecommendationNotFound):
            await house.explained(slate)


async def test_a_registry_gives_what_is_most_like_the_version_that_was_named():
    def made(model: str, index: str) -> FakeServable:
        servable = FakeServable(2, version=index)
        servable.version = ServedVersion("fake", model, index, datetime(2026, 1, 1, tzinfo=UTC))
        return servable

    registry = ServableRegistry()
    old, new = made("m1", "x1"), made("m2", "x2")
    registry.swap(old)
    registry.swap(new)
    for wanted, given in ((old, old), (new, new), (made("m1", "x0"), old), (made("m9", "x2"), new)):
        with registry.acquire(registry.like(wanted.version)) as servable:
            assert servable is given
    registry.close()
