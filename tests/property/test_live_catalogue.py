"""Whatever becomes of the items: a version and its delta answer as a catalogue of what there is would.

The oracle is a plain dictionary of items and a brute-force score; the version, its index and its encoders are real.
"""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.dataset import Dataset
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.items import ItemChange, ItemRecord, ItemRecords, encode_fields
from service.recommend.types import Filter, HistoryItem, ItemId, Query
from service.runtime import live, overlay
from service.runtime.live import LiveCatalogue
from service.runtime.servable import load_servable
from tests.fakes import recommender_of

NUM_ITEMS = 60
LATER = Deadline.after(3_600.0)
PAST = ("i0004", "i0016")

ids = st.sampled_from([f"i{number:04d}" for number in range(0, NUM_ITEMS, 4)] + ["new1", "new2", "new3"])
metadata = st.fixed_dictionaries(
    {}, optional={"title": st.sampled_from(["a", "b"]), "categories": st.sampled_from([["travel"], ["x", "y"], []])}
)


@dataclass
class Log:
    """The store in a list; keeps one record an item, as the real ones do."""

    records: dict[str, ItemRecord] = field(default_factory=dict)
    seq: int = 0

    def change(self, change: ItemChange) -> None:
        kind, fields, known = change.kind, dict(change.fields), self.records.get(change.item_id)
        if kind == "patch" and known is not None:
            kind, fields = known.kind, {**known.fields, **fields}
        self.seq += 1
        self.records[change.item_id] = ItemRecord(change.item_id, self.seq, kind, fields)

    async def changes_seq(self):
        return self.seq

    async def changed_since(self, seq, *, limit):
        later = sorted((one for one in self.records.values() if one.seq > seq), key=lambda one: one.seq)
        return ItemRecords(tuple(later[:limit]), self.seq, 0, len(self.records))


@dataclass
class World:
    """What there is: the oracle."""

    row_like: dict[str, int]
    """By item the row of the data set whose vectors it has."""
    metadata: dict[str, dict]
    hidden: set[str] = field(default_factory=set)

    def visible(self, category=None) -> set[str]:
        return {
            item_id
            for item_id in self.row_like
            if item_id not in self.hidden
            and (category is None or category in (self.metadata[item_id].get("categories") or ()))
        }


steps = st.one_of(
    st.tuples(st.just("put"), ids, st.integers(0, NUM_ITEMS - 1), metadata, st.booleans()),
    st.tuples(st.just("patch"), ids, metadata, st.sampled_from([None, True, False])),
    st.tuples(st.just("delete"), ids),
    st.just(("look",)),
)


@pytest.fixture(scope="module")
def base(toy_store):
    servable = load_servable(ArtifactStore(toy_store.store), toy_store.snapshot)
    yield servable, Dataset.open(toy_store.dataset)
    servable.release()


def step(world: World, log: Log, data: Dataset, what) -> None:
    kind, item_id = what[0], ItemId(what[1])
    if kind == "put":
        _, _, row, said, available = what
        raw = {
            name: np.asarray(data.features(name)[row], np.float32)
            for name in data.modality_names
            if data.presence(name)[row]
        }
        log.change(ItemChange(item_id, "put", encode_fields(said, available=available, modalities=raw)))
        world.row_like[item_id], world.metadata[item_id] = row, dict(said)
        (world.hidden.discard if available else world.hidden.add)(item_id)
    elif item_id not in world.row_like:
        return  # the service refuses it
    elif kind == "patch":
        _, _, said, available = what
        log.change(ItemChange(item_id, "patch", encode_fields(said, available=available)))
        world.metadata[item_id] = {**world.metadata[item_id], **said}
        if available is not None:
            (world.hidden.discard if available else world.hidden.add)(item_id)
    else:
        log.change(ItemChange(item_id, "delete"))
        del world.row_like[item_id], world.metadata[item_id]
        world.hidden.discard(item_id)


async def check(world: World, catalogue: LiveCatalogue, servable) -> None:
    view = await catalogue.fresh(servable)
    recommender = recommender_of(view)
    for category in (None, "travel", "x"):
        expected = world.visible(category)
        restriction = Filter(categories_any=(category,)) if category else Filter()
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
            assert set(shown) <= world.visible() - {item_id}
            like = world.row_like[item_id]
            _, rows = servable.similar(like, k=100, modality=modality)
            near = {like, *rows.tolist()} if len(rows) else set()
            assert set(shown) == {one for one in world.visible() if world.row_like[one] in near} - {item_id}
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
        items = data.items().to_pylist()
        world = World(
            {item["item_id"]: row for row, item in enumerate(items)}, {item["item_id"]: item for item in items}
        )
        log = Log()
        catalogue = LiveCatalogue(log)
        catalogue.prepare(servable)
        for one in [*what, ("look",)]:
            if one[0] == "look":
                await check(world, catalogue, servable)
            else:
                step(world, log, data, one)

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
