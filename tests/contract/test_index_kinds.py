"""Every index kind answers as its exact twin does: the same scores, each row once, filters inside, never too few."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from api_schemas.manifest import SearchSettings
from index import search
from index.bundle import Bundle
from index.check import sample_queries
from index.config import RebuildConfig
from index.exact import ExactIndex
from index.scan import ScanIndex
from index.selection import Selection
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.bundles import make_bundle, make_random_dataset, make_snapshot

NUM_ITEMS = 3_000
SCAN = "Flat, scanned"  # what an exact snapshot of a larger catalogue uses
FACTORIES = (
    "Flat",
    SCAN,
    "SQfp16",
    "IVF{nlist},Flat",
    "IVF16,PQ{dim}x4fs",
    "PQ{dim}x4fs",
    "HNSW16,SQfp16",
    "RR{dim},IVF16,SQ8",
)


@dataclass(frozen=True)
class Kind:
    snapshot: IndexSnapshot
    queries: np.ndarray  # [B, Q, D]
    twin: ExactIndex


@pytest.fixture(scope="module")
def random_dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("random") / "data"
    return make_random_dataset(path, num_items=NUM_ITEMS, dims={"visual": 24, "text": 16}, num_users=60)


@pytest.fixture(
    scope="module",
    params=[(1, "max"), (3, "max"), (3, "logsumexp")],
    ids=["one-query", "three-queries", "three-queries-summed"],
)
def store(request, tmp_path_factory, random_dataset) -> tuple[ArtifactStore, str]:
    num_queries, scorer = request.param
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    return store, make_bundle(store, random_dataset, num_queries=num_queries, scorer=scorer)


@pytest.fixture(scope="module", params=FACTORIES)
def kind(request, store, random_dataset) -> Kind:
    artefacts, bundle_version = store
    exact = request.param in ("Flat", SCAN)
    config = RebuildConfig(
        exact_max_items=NUM_ITEMS if exact else 0,
        factory=request.param,
        search=SearchSettings(nprobe=8, ef_search=64, refine=4),
        min_recall_at_100=0.9,
        recall_queries=20,
    )
    version = make_snapshot(artefacts, random_dataset, bundle=bundle_version, config=config)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == SCAN:
            patch.setattr("index.snapshot.SCAN_FROM_ITEMS", 1)
        snapshot = IndexSnapshot.open(*artefacts.open_snapshot(version))
    assert isinstance(snapshot._index, ScanIndex) == (request.param == SCAN)
    assert snapshot.manifest.exact == exact
    assert (snapshot.path / "index.faiss").exists() != snapshot.manifest.exact
    bundle = Bundle.open(artefacts.open_bundle(bundle_version)[0])
    queries = sample_queries(bundle, snapshot, [], num=12, seed=5)
    candidates = snapshot.candidates(np.arange(NUM_ITEMS))
    return Kind(snapshot, queries, ExactIndex(candidates, scorer=snapshot.manifest.scorer))


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shares = {"most": 0.9, "some": 0.75, "few": 0.02}
    return {name: rng.random(NUM_ITEMS) < share for name, share in shares.items()}


def test_scores_are_exact(kind):
    scores, rows = kind.snapshot.search(kind.queries, k=50)
    vectors = kind.snapshot.candidates(rows.ravel()).reshape(*rows.shape, -1)
    products = np.einsum("bkd,bqd->bkq", vectors, kind.queries)
    summed = kind.snapshot.manifest.scorer == "logsumexp"
    expected = np.logaddexp.reduce(products, axis=2) if summed else products.max(axis=2)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_answers_are_best_first_without_repeats(kind):
    scores, rows = kind.snapshot.search(kind.queries, k=200)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    assert all(len(np.unique(one)) == 200 for one in rows)
    assert rows.min() >= 0


def test_nearly_all_of_the_exact_answers_are_found(kind):
    scores, _ = kind.snapshot.search(kind.queries, k=100)
    expected, _ = kind.twin.search(kind.queries, k=100)
    found = (scores >= expected[:, -1:] - 1e-5).mean()
    assert found >= 0.85
    assert kind.snapshot.manifest.recall_at_100 >= 0.9
    if kind.snapshot.manifest.exact:
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_gives_what_its_users_get_alone(kind):
    scores, rows = kind.snapshot.search(kind.queries, k=30)
    for user in range(len(kind.queries)):
        alone_scores, alone_rows = kind.snapshot.search(kind.queries[user : user + 1], k=30)
        np.testing.assert_allclose(alone_scores[0], scores[user], rtol=1e-5, atol=1e-6)
        assert len(np.intersect1d(alone_rows[0], rows[user])) >= 29  # two equal scores may change places at the end


@pytest.mark.parametrize("name", ["most", "some", "few"])
def test_only_allowed_rows_are_answered_and_as_many_as_asked_for(kind, name):
    mask = masks()[name]
    for allowed in (mask, Selection(mask)):
        scores, rows = kind.snapshot.search(kind.queries, k=40, allowed=allowed)
        assert mask[rows].all()
        assert all(len(np.unique(one)) == 40 for one in rows)
        expected, _ = kind.twin.search(kind.queries, k=40, allowed_N=mask)
        assert (scores >= expected[:, -1:] - 1e-5).mean() >= (1 if name == "few" else 0.8)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_when_fewer_rows_are_allowed_than_asked_for_all_of_them_come_and_then_nothing(kind, count):
    mask = np.zeros(NUM_ITEMS, dtype=bool)
    mask[np.random.default_rng(count).permutation(NUM_ITEMS)[:count]] = True
    scores, rows = kind.snapshot.search(kind.queries, k=10, allowed=mask)
    expected_scores, expected_rows = kind.twin.search(kind.queries, k=10, allowed_N=mask)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    assert (rows[:, count:] == -1).all()
    assert np.isneginf(scores[:, count:]).all()


def test_more_than_the_catalogue_has_gives_the_whole_catalogue(kind):
    scores, rows = kind.snapshot.search(kind.queries[:2], k=NUM_ITEMS + 5)
    for user in range(2):
        np.testing.assert_array_equal(np.sort(rows[user, :NUM_ITEMS]), np.arange(NUM_ITEMS))
    assert (rows[:, NUM_ITEMS:] == -1).all()
    assert np.isneginf(scores[:, NUM_ITEMS:]).all()


def test_a_filter_that_leaves_half_of_a_long_answer_is_still_answered_in_full(kind, monkeypatch):
    monkeypatch.setattr(
        search, "MAX_FETCH", 100
    )  # an index that can not filter gives up here: the exact search answers
    mask = masks()["some"]
    _, rows = kind.snapshot.search(kind.queries[:3], k=60, allowed=mask)
    assert mask[rows].all()
    assert all(len(np.unique(one)) == 60 for one in rows)


def test_no_user_gives_no_answer(kind):
    scores, rows = kind.snapshot.search(kind.queries[:0], k=5)
    assert scores.shape == rows.shape == (0, 5)


def test_queries_of_any_memory_layout_are_taken(kind):
    strided = np.repeat(kind.queries, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(
        kind.snapshot.search(strided, k=5)[1], kind.snapshot.search(np.asfortranarray(kind.queries), k=5)[1]
    )


def test_what_can_not_be_searched_is_refused_and_named(kind):
    queries = kind.queries
    broken = queries.copy()
    broken[0, 0, 0] = np.nan
    for wrong, message in (
        (lambda: kind.snapshot.search(queries[:, 0], k=5), "queries: shape"),
        (lambda: kind.snapshot.search(queries[:, :, :3], k=5), "queries: shape"),
        (lambda: kind.snapshot.search(broken, k=5), "NaN"),
        (lambda: kind.snapshot.search(queries, k=0), "k: 0"),
        (lambda: kind.snapshot.search(queries, k=5, allowed=np.ones(7, dtype=bool)), "allowed"),
        (lambda: kind.snapshot.search(queries, k=5, allowed=np.ones(NUM_ITEMS)), "allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_searches_from_many_threads_do_not_disturb_each_other(kind):
    from concurrent.futures import ThreadPoolExecutor

    expected = [kind.snapshot.search(kind.queries[user : user + 1], k=20)[1] for user in range(12)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda turn: kind.snapshot.search(kind.queries[turn % 12][None], k=20)[1], range(240)))
    for turn, rows in enumerate(found):
        np.testing.assert_array_equal(rows, expected[turn % 12])


def test_it_answers_from_its_own_memory_when_the_files_are_gone(kind, store, random_dataset, tmp_path):
    import gc
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(kind.snapshot.path, copy)
    opened = IndexSnapshot.open(copy, kind.snapshot.manifest)
    shutil.rmtree(copy)
    gc.collect()  # and without what was only needed to open it
    np.testing.assert_array_equal(opened.search(kind.queries, k=9)[1], kind.snapshot.search(kind.queries, k=9)[1])
