"""Whatever becomes of the items: a version and its delta answer as a catalogue of what there is would.

The oracle is a plain dictionary of items and a brute-force score; the version, its index and its encoders are real.
"""

import asyncio

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.dataset import Dataset
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.types import Filter, HistoryItem, ItemId, Query
from service.runtime import live, overlay
from service.runtime.live import LiveCatalogue
from service.runtime.servable import load_servable
from tests.fakes import recommender_of
from tests.live_world import NUM_ITEMS, Log, World, changes

LATER = Deadline.after(3_600.0)
PAST = ("i0004", "i0016")

steps = st.one_of(changes, st.just(("look",)))


@pytest.fixture(scope="module")
def base(toy_store):
    servable = load_servable(ArtifactStore(toy_store.store), toy_store.snapshot)
    yield servable, Dataset.open(toy_store.dataset)
    servable.release()


async def check(world: World, catalogue: LiveCatalogue, servable) -> None:
    view = await catalogue.fresh(servable)
    recommender = recommender_of(view)
    for category in (None, "travel", "x"):
        restriction = Filter(categories_any=(category,)) if category else Filter()
        expected = world.passing(restriction)
        popular = await recommender.popular(k=100, restriction=restriction, deadline=LATER)
        assert {item.item_id for item in popular.items} == expected
        scores = [item.score for item in popular.items]
        assert scores == sorted(scores, reverse=True)
        assert 0 < min(scores, default=1) <= max(scores, default=1) <= 1

        history = tuple(HistoryItem(ItemId(item_id)) for item_id in PAST)
        query = Query(history=history, k=100, filter=restriction, include_seen=True)
        slate = await recommender.recommend(query, deadline=LATER)
        assert {item.item_id for item in slate.items} == expected
        assert len(slate.items) == len(expected)
        used = [world.row_like[item_id] for item_id in PAST if item_id in world.row_like]
        assert slate.events_used == len(used)
        if used:
            assert {item.source for item in slate.items} <= {"model"}
            queries = servable.encode_users(*_padded(servable, used))
            brute = servable.score(queries[0], np.arange(NUM_ITEMS))
            assert [item.score for item in slate.items] == pytest.approx(
                sorted((brute[world.row_like[item_id]] for item_id in expected), reverse=True), abs=1e-5
            )
            few = await recommender.recommend(
                Query(history=history, k=3, filter=restriction, include_seen=True), deadline=LATER
            )
            assert few.items == slate.items[:3]
        for item in slate.items:
            said = world.metadata[item.item_id]
            assert item.metadata.get("title") == said.get("title")

    for item_id in sorted(world.row_like)[::9]:
        for modality in (None, "text"):
            listing = await recommender.similar(ItemId(item_id), k=100, modality=modality, deadline=LATER)
            shown = [item.item_id for item in listing.items]
            assert len(set(shown)) == len(shown)
            assert set(shown) <= world.passing(Filter()) - {item_id}
            like = world.row_like[item_id]
            _, rows = servable.similar(like, k=100, modality=modality)
            near = {like, *rows.tolist()} if len(rows) else set()
            assert set(shown) == {one for one in world.passing(Filter()) if world.row_like[one] in near} - {item_id}
    for item_id in ("i0000", "new1"):
        assert (view.rows([item_id])[0] >= 0) == (item_id in world.row_like)


def _padded(servable, rows):
    history = np.zeros((1, servable.history_length, 16), np.float32)
    history[0, : len(rows)] = servable.history(np.array(rows))
    return history, np.arange(servable.history_length)[None] < len(rows)


@given(st.lists(steps, max_size=14), st.sampled_from([overlay.MAX_EXTRA, 2]), st.sampled_from([live.PAGE, 2]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_version_and_its_delta_answer_as_the_catalogue_that_there_is(base, what, max_extra, page):
    servable, data = base

    async def run():
        world = World.of(data)
        catalogue = LiveCatalogue(world.log)
        catalogue.prepare(servable)
        for one in [*what, ("look",)]:
            if one[0] == "look":
                await check(world, catalogue, servable)
            else:
                world.change(data, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "MAX_EXTRA", max_extra)
        patch.setattr(live, "PAGE", page)
        asyncio.run(run())


def test_without_changes_the_version_itself_answers(base):
    servable, _ = base

    async def run():
        catalogue = LiveCatalogue(Log())
        catalogue.prepare(servable)
        assert await catalogue.fresh(servable) is servable
        assert catalogue.at(servable, 0) is servable
        assert catalogue.at(servable, 1) is None

    asyncio.run(run())
