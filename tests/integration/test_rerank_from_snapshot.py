"""Re-ranking with a real ranker's bundle: against its model in NumPy, over hot swaps, and when its files are spoilt."""

import asyncio
import gc
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from index.artefacts import MANIFEST, ArtefactError, sha256_of
from index.dataset import Dataset
from index.features import from_dataset
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from service.recommend.deadline import Deadline
from service.recommend.errors import InvalidQuery
from service.recommend.types import Filter, HistoryItem, ItemId, Query, user_subject
from service.runtime.servable import load_servable
from tests.bundles import make_bundle, make_snapshot, reference
from tests.fakes import recommender_of
from tests.integration.test_hot_swap import running
from tests.ranker_bundles import make_ranker_bundle, open_reference, ranker_graph

LATER = Deadline.after(3_600.0)
LENGTH = 6
PAST = (3, 14, 15, 9)
ROWS = np.arange(60)


class Bench:
    """A servable of a linear retriever and a ranker, and both models in NumPy."""

    def __init__(self, store: ArtifactStore, data: Dataset, *, num_candidates: int, **options) -> None:
        self.bundle = make_bundle(store, data, dim=12, history_length=9, seed=3)
        self.ranker = make_ranker_bundle(store, data, history_length=LENGTH, **options)
        version = make_snapshot(store, data, bundle=self.bundle, ranker=self.ranker)
        self.num_candidates = num_candidates
        self.servable = load_servable(store, version, num_candidates=num_candidates)
        self.recommender = recommender_of(self.servable)
        self.data = data
        manifest = store.open_bundle(self.ranker)[1]
        self.inputs = from_dataset(data, slice(None), manifest.modalities)
        self.model = open_reference(manifest)
        self.retriever = reference(manifest.modalities, dim=12, seed=3)

    def retrieved(self, past) -> np.ndarray:
        """All rows in the retriever's order."""
        encoded = self.retriever.encode_items(self.inputs)
        user = encoded["history"][list(past)[-9:]].mean(axis=0)
        return np.argsort(-(encoded["candidate"] @ user), kind="stable")

    def scores(self, past) -> np.ndarray:
        encoded = self.model.encode_items(self.inputs)
        rows = encoded["history"][list(past)[-LENGTH:]]
        queries = self.model.encode_users(rows[None], np.ones((1, len(rows)), bool))
        return self.model.rank(queries, encoded["candidate"])[0]

    def expected(self, past, *, allowed=ROWS, k=20) -> list[str]:
        """Re-rank by brute force what the retriever finds among the rows that may be shown."""
        shown = set(allowed.tolist()) - set(past)
        candidates = [row for row in self.retrieved(past).tolist() if row in shown][: max(k, self.num_candidates)]
        scores = self.scores(past)
        return [item(row) for row in sorted(candidates, key=lambda row: -scores[row])][:k]

    async def recommend(self, **query):
        return await self.recommender.recommend(Query(**query), deadline=LATER)


@pytest.fixture(
    scope="module", params=[(500, False), (12, True)], ids=["all candidates, own rows", "twelve candidates, one row"]
)
def bench(request, toy_dataset, tmp_path_factory):
    num_candidates, history_is_candidate = request.param
    made = Bench(
        ArtifactStore(tmp_path_factory.mktemp("store")),
        Dataset.open(toy_dataset),
        num_candidates=num_candidates,
        history_is_candidate=history_is_candidate,
    )
    yield made
    made.servable.release()
    assert made.servable.closed


def item(row: int) -> ItemId:
    return ItemId(f"i{row:04d}")


def inline(*rows: int) -> tuple[HistoryItem, ...]:
    return tuple(HistoryItem(item(row)) for row in rows)


async def test_order_and_scores_are_those_of_the_ranker(bench):
    slate = await bench.recommend(history=inline(*PAST), k=10)
    assert [line.item_id for line in slate.items] == bench.expected(PAST, k=10)
    scores = bench.scores(PAST)
    assert [line.score for line in slate.items] == pytest.approx(
        [scores[int(line.item_id[1:])] for line in slate.items], rel=1e-4, abs=1e-4
    )
    assert (slate.ranker.model_name, slate.ranker.model_version) == ("toy-ranker", bench.ranker)
    assert slate.version.model_version == bench.bundle
    assert slate.degraded == ()


async def test_a_filter_is_of_the_candidates(bench):
    (category,) = bench.servable.metadata(np.array([20]))[0]["categories"][:1]
    restriction = Filter(categories_any=(category,))
    allowed = np.flatnonzero(bench.servable.select(restriction).mask_N)
    slate = await bench.recommend(history=inline(*PAST), k=5, filter=restriction)
    assert [line.item_id for line in slate.items] == bench.expected(PAST, allowed=allowed, k=5)


async def test_an_unknown_item_with_a_known_ones_vectors_counts_like_it(bench):
    vectors = {name: np.asarray(bench.data.features(name)[15], np.float32) for name in bench.servable.modalities}
    brought = (*inline(3, 14), HistoryItem(ItemId("new"), modalities=vectors), *inline(9))
    slate = await bench.recommend(history=brought, k=10, include_seen=True)
    known = await bench.recommend(history=inline(*PAST), k=10, include_seen=True)
    assert [line.item_id for line in slate.items] == [line.item_id for line in known.items]
    assert slate.ranker is not None


@pytest.mark.parametrize("past", [tuple(range(LENGTH + 2)), (5,)])
async def test_the_ranker_reads_its_own_length_of_history(bench, past):
    slate = await bench.recommend(history=inline(*past), k=7)
    assert [line.item_id for line in slate.items] == bench.expected(past, k=7)
    assert slate.events_used == min(len(past), LENGTH)


async def test_a_user_that_the_ranker_alone_knows_gets_what_is_popular(bench):
    slate = await bench.recommend(subject=user_subject("ann"), k=5)
    assert ({line.source for line in slate.items}, slate.ranker) == ({"popular"}, None)


@pytest.mark.parametrize("method", ["shapley", "occlusion"])
async def test_explanations_are_of_the_rankers_scores(bench, method):
    slate, explanation = await bench.recommender.explain(
        Query(history=inline(*PAST), k=5, method=method), deadline=LATER
    )
    assert explanation.method == method
    assert explanation.faithfulness["deletion_auc"] == 0.3
    for line, why in zip(slate.items, explanation.items, strict=True):
        assert why.score == pytest.approx(line.score, rel=1e-4, abs=1e-4)
        total = sum(why.contributions.values()) + why.residual
        assert total == pytest.approx(line.score, rel=1e-4, abs=1e-4)
        assert why.additive == (method == "shapley")
        assert [past["item_id"] for past in why.history] == [item(row) for row in PAST]
    assert sum(share.share for share in explanation.modality_interest) == pytest.approx(1)


async def test_named_items_and_their_explanations_have_the_rankers_scores(bench):
    named = (item(3), item(40), item(7))
    slate, explanation = await bench.recommender.explain(Query(history=inline(*PAST)), item_ids=named, deadline=LATER)
    scores = bench.scores(PAST)
    assert [line.item_id for line in slate.items] == sorted(named, key=lambda one: -scores[int(one[1:])])
    assert [line.item_id for line in explanation.items] == [line.item_id for line in slate.items]


async def test_methods_of_the_retriever_are_not_offered(bench):
    with pytest.raises(InvalidQuery, match="it offers shapley, occlusion"):
        await bench.recommender.explain(Query(history=inline(*PAST), method="decomposition"), deadline=LATER)


def test_what_re_ranking_costs_is_timed_at_load(bench):
    assert 0 < bench.servable.ranker.rerank_cpu_s < 1
    assert bench.servable.ranker.num_candidates == bench.num_candidates


class Versions:
    """A store with one snapshot with a ranker and one without, of the same retriever."""

    def __init__(self, root, dataset) -> None:
        self.store = ArtifactStore(root / "store")
        self.data = Dataset.open(dataset)
        self.bundle = make_bundle(self.store, self.data, dim=8, history_length=5)
        self.ranker = make_ranker_bundle(self.store, self.data)
        self.plain = make_snapshot(self.store, self.data, bundle=self.bundle)
        self.ranked = make_snapshot(self.store, self.data, bundle=self.bundle, ranker=self.ranker)

    def point(self, version: str) -> None:
        """Write CURRENT without the checks that `set_current` makes."""
        new = self.store.root / ".tmp-current"
        new.write_text(version + "\n")
        new.replace(self.store.root / "CURRENT")


@pytest.fixture
def versions(tmp_path, toy_dataset) -> Versions:
    return Versions(tmp_path, toy_dataset)


async def test_swaps_between_snapshots_with_and_without_a_ranker_mix_nothing(versions):
    async with running(versions.store) as service:
        expected = {}
        for version in (versions.plain, versions.ranked):
            versions.point(version)
            await service.reloader.check()
            expected[version] = [line.item_id for line in (await service.recommend()).items]
        assert expected[versions.plain] != expected[versions.ranked]
        served, stop = set(), False

        async def caller(level: str) -> None:
            while not stop:
                slate = await service.recommend(explain=level)
                version = slate.version.index_version
                served.add(version)
                assert [line.item_id for line in slate.items] == expected[version]
                assert (slate.ranker is not None) == (version == versions.ranked)
                assert slate.degraded == ()
                if level != "none":
                    method = "shapley" if version == versions.ranked else "interest_gradient"
                    assert slate.explanation.method == method

        async with asyncio.TaskGroup() as group:
            for level in ("none", "none", "summary"):
                group.create_task(caller(level))
            for round_number in range(6):
                service.registry.forget_previous()  # so that each swap loads and closes for real
                versions.point((versions.plain, versions.ranked)[round_number % 2])
                await service.reloader.check()
            stop = True
        assert served == {versions.plain, versions.ranked}


def test_a_closed_version_lets_go_of_the_rankers_files(versions):
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{versions.store.root}/versions")

    before = mapped()
    servable = load_servable(versions.store, versions.ranked)
    assert mapped() > before
    servable.release()
    with pytest.raises(AttributeError):
        servable.ranker.history(ROWS)
    del servable
    gc.collect()
    assert mapped() == before


def _other_scores(versions: Versions, bundle) -> None:
    model = open_reference(versions.store.open_bundle(versions.ranker)[1])
    onnx.save(ranker_graph(model, divide_by=2.0), bundle / "ranker.onnx")


SPOILS = {
    "a cut graph": lambda v: (v.store.path_of(v.ranker) / "ranker.onnx").write_bytes(b"cut"),
    "other scores": lambda v: _other_scores(v, v.store.path_of(v.ranker)),
    "no bundle": lambda v: shutil.rmtree(v.store.path_of(v.ranker)),
    "a cut table": lambda v: (v.store.path_of(v.ranked) / "ranker/history.npy").write_bytes(b"cut"),
    "a missing table": lambda v: (v.store.path_of(v.ranked) / "ranker/states/text.npy").unlink(),
    "a table too many": lambda v: (v.store.path_of(v.ranked) / "ranker/more.npy").write_bytes(b"x"),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
async def test_a_version_whose_ranker_is_spoilt_is_refused_and_the_old_one_goes_on(versions, spoil):
    async with running(versions.store) as service:
        versions.point(versions.plain)
        await service.reloader.check()
        before = (await service.recommend()).items
        spoil(versions)
        versions.point(versions.ranked)
        await service.reloader.check()
        status = service.reloader.status()
        assert (status.current, status.refused.version, status.refused.final) == (versions.plain, versions.ranked, True)
        assert (await service.recommend()).items == before


def republished(versions: Versions, change, **ranker_update) -> str:
    """Return a snapshot with a copy of the ranker's bundle that was changed, all hashes being right."""
    store = versions.store
    _, manifest = store.open_bundle(versions.ranker)
    with store.stage("bundle") as stage:
        shutil.copytree(store.path_of(versions.ranker), stage.path, dirs_exist_ok=True)
        change(stage.path)
        ranker = stage.publish(manifest)
    path, snapshot = store.open_snapshot(versions.ranked)
    named = {"bundle_version": ranker, "bundle_sha256": sha256_of(store.path_of(ranker) / MANIFEST), **ranker_update}
    with store.stage("snapshot") as stage:
        shutil.copytree(path, stage.path, dirs_exist_ok=True)
        return stage.publish(snapshot.model_copy(update={"ranker": snapshot.ranker.model_copy(update=named)}))


def test_a_ranker_that_does_not_give_its_golden_answers_is_refused(versions):
    version = republished(versions, lambda path: _other_scores(versions, path))
    with pytest.raises(ArtefactError, match="ranker/out/scores: differs from the model by"):
        load_servable(versions.store, version)


def test_tables_that_are_not_of_the_ranker_are_refused(versions):
    version = republished(versions, lambda path: None, history_is_candidate=True)
    with pytest.raises(ArtefactError, match="ranker: history_is_candidate is True, its bundle has False"):
        load_servable(versions.store, version)


def test_a_ranker_in_the_place_of_the_retriever_is_refused(versions):
    path, snapshot = versions.store.open_snapshot(versions.ranked)
    swapped = {**dict(snapshot.ranker), "ranker": None}
    wrong = snapshot.model_copy(update=swapped)
    with pytest.raises(ArtefactError):
        IndexSnapshot.open(path, wrong)
    with versions.store.stage("snapshot") as stage:
        shutil.copytree(path, stage.path, dirs_exist_ok=True)
        version = stage.publish(wrong)
    with pytest.raises(ArtefactError, match="scorer is max, its bundle has ranker"):
        load_servable(versions.store, version)
