"""The rebuild: bounded, incremental, checked, and without a trace when it fails."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import rebuild as job
from index.artefacts import ArtefactError
from index.bundle import Bundle
from index.catalogue import UserHistory
from index.check import check_snapshot, exact_scores, measure_recall, sample_queries
from index.config import RebuildConfig
from index.dataset import Dataset
from index.dataset_write import DatasetWriter
from index.exact import ExactIndex
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.bundles import make_bundle, make_random_dataset


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def opened(store: ArtifactStore, version: str) -> IndexSnapshot:
    return IndexSnapshot.open(*store.open_snapshot(version))


def dataset(path, features: np.ndarray, *, ids=None, present=None, events=()) -> Dataset:
    """A dataset of one modality."""
    ids = ids or [f"i{row}" for row in range(len(features))]
    present = np.ones(len(features), bool) if present is None else present
    with DatasetWriter(path, name="made") as writer:
        writer.add_items(pa.table({"item_id": ids}))
        writer.add_modality("text", dim=features.shape[1], batches=[(features, present)], dtype=np.float32)
        writer.add_interactions(interactions(events))
        return writer.publish()


def interactions(events) -> pa.Table:
    names, types = ("user_id", "item_id", "timestamp"), (pa.string(), pa.string(), pa.int64())
    columns = ([user for user, _ in events], [item for _, item in events], range(len(events)))
    return pa.table({name: pa.array(column, dtype) for name, column, dtype in zip(names, columns, types, strict=True)})


def random_features(num_items: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_items, 8)).astype(np.float32)


@pytest.mark.parametrize("batch_rows", [1, 7, 60, 1000])
def test_the_size_of_a_batch_changes_nothing(store, toy_dataset, batch_rows):
    data = Dataset.open(toy_dataset)
    bundle = make_bundle(store, data)
    config = RebuildConfig(batch_rows=batch_rows, num_threads=1)
    made = opened(store, rebuild(store, bundle_version=bundle, dataset=data, config=config).version)
    loaded = Bundle.open(store.open_bundle(bundle)[0])
    from index.features import from_dataset

    encoded = loaded.encode_items(from_dataset(data, slice(None), loaded.manifest.modalities))
    np.testing.assert_allclose(made.candidates(np.arange(60)), encoded.candidates, rtol=1e-5, atol=1e-7)


def test_unchanged_items_are_copied_and_changed_ones_encoded(store, tmp_path):
    features = random_features(50)
    first = dataset(tmp_path / "first", features)
    bundle = make_bundle(store, first)
    config = RebuildConfig(batch_rows=16)
    assert rebuild(store, bundle_version=bundle, dataset=first, config=config).num_encoded == 50
    same = rebuild(store, bundle_version=bundle, dataset=first, config=config)
    assert same.num_encoded == 0

    order = np.random.default_rng(1).permutation(50)
    changed, present = features[order].copy(), np.ones(53, bool)
    changed = np.concatenate([changed, random_features(3, seed=9)])
    changed[4] += 0.1
    present[5] = False
    ids = [f"i{row}" for row in order] + ["new-0", "new-1", "new-2"]
    second = dataset(tmp_path / "second", changed, ids=ids, present=present)
    made = rebuild(store, bundle_version=bundle, dataset=second, config=config)
    assert made.num_encoded == 5

    fresh = ArtifactStore(tmp_path / "other")
    anew = rebuild(fresh, bundle_version=make_bundle(fresh, first), dataset=second, config=config)
    assert anew.num_encoded == 53
    left, right = opened(store, made.version), opened(fresh, anew.version)
    rows = np.arange(53)
    for table in ("candidates", "history", "states"):
        np.testing.assert_allclose(getattr(left, table)(rows), getattr(right, table)(rows), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(left.presence(rows), right.presence(rows))
    np.testing.assert_array_equal(left.content_N2, right.content_N2)


def test_another_bundle_encodes_everything_anew(store, tmp_path):
    data = dataset(tmp_path / "data", random_features(20))
    rebuild(store, bundle_version=make_bundle(store, data), dataset=data)
    made = rebuild(store, bundle_version=make_bundle(store, data, seed=3), dataset=data)
    assert made.num_encoded == 20


def test_a_damaged_earlier_snapshot_is_no_hindrance(store, tmp_path):
    data = dataset(tmp_path / "data", random_features(20))
    bundle = make_bundle(store, data)
    earlier = rebuild(store, bundle_version=bundle, dataset=data)
    (earlier.path / "candidates.npy").write_bytes(b"damaged")
    made = rebuild(store, bundle_version=bundle, dataset=data)
    assert made.num_encoded == 20
    assert store.current() == made.version


def test_popularity_counts_the_interactions_and_equal_items_keep_their_order(store, tmp_path):
    events = [("u", "i2"), ("u", "i4"), ("v", "i2"), ("w", "i4"), ("w", "i2"), ("x", "i0")]
    data = dataset(tmp_path / "data", random_features(6), events=events)
    snapshot = opened(store, rebuild(store, bundle_version=make_bundle(store, data), dataset=data).version)
    assert snapshot.popularity.tolist() == [1, 0, 3, 0, 2, 0]
    assert snapshot.popular_rows.tolist() == [2, 4, 0, 1, 3, 5]


def test_a_catalogue_of_one_item_without_any_interaction_can_be_served(store, tmp_path):
    data = dataset(tmp_path / "data", random_features(1))
    made = rebuild(store, bundle_version=make_bundle(store, data), dataset=data)
    assert made.recall_at_100 == 1
    assert opened(store, made.version).popular_rows.tolist() == [0]


def assert_untouched(store: ArtifactStore, before) -> None:
    assert store.current() == before[0]
    assert store.list() == before[1]
    assert list(store.root.rglob(".tmp-*")) == []
    if before[0] is not None:
        store.open_snapshot(before[0])


def corrupted(data: Dataset, name: str, edit) -> Dataset:
    """Change a feature file after the dataset was written."""
    array = np.load(data.path / name)
    edit(array)
    np.save(data.path / name, array)
    return Dataset.open(data.path)


def test_features_that_are_not_finite_stop_the_rebuild_and_leave_everything_as_it_was(store, tmp_path):
    good = dataset(tmp_path / "good", random_features(20))
    bundle = make_bundle(store, good)
    rebuild(store, bundle_version=bundle, dataset=good)
    before = store.current(), store.list()

    def spoil(array):
        array[13, 2] = np.inf

    bad = corrupted(dataset(tmp_path / "bad", random_features(20, seed=2)), "features/text.npy", spoil)
    with pytest.raises(ValueError, match="text: row 13 holds NaN or infinity"):
        rebuild(store, bundle_version=bundle, dataset=bad, config=RebuildConfig(batch_rows=5))
    assert_untouched(store, before)


def test_an_encoder_that_gives_nan_stops_the_rebuild(store, tmp_path, monkeypatch):
    data = dataset(tmp_path / "data", random_features(20))
    bundle = make_bundle(store, data)
    rebuild(store, bundle_version=bundle, dataset=data)
    before = store.current(), store.list()
    encode = Bundle.encode_items

    def broken(self, inputs):
        encoded = encode(self, inputs)
        states = encoded.states.copy()
        states[len(inputs) // 2] = np.nan
        return dataclasses.replace(encoded, states=states)

    monkeypatch.setattr(Bundle, "encode_items", broken)
    other = dataset(tmp_path / "other", random_features(20, seed=5))
    with pytest.raises(ValueError, match="the encoder's output states holds NaN or infinity at row 10"):
        rebuild(store, bundle_version=bundle, dataset=other)
    assert_untouched(store, before)


def test_a_dataset_with_other_modalities_or_widths_is_refused(store, tmp_path, toy_dataset):
    data = dataset(tmp_path / "data", random_features(20))
    bundle = make_bundle(store, data)
    with pytest.raises(ValueError, match=r"text: shape \(60, 24\), expected \(60, 8\)"):
        rebuild(store, bundle_version=bundle, dataset=Dataset.open(toy_dataset))
    assert store.current() is None


def test_an_interaction_of_an_unknown_item_is_named(store, tmp_path):
    data = dataset(tmp_path / "data", random_features(4), events=[("u", "i0"), ("u", "i1")])
    pq.write_table(interactions([("u", "i0"), ("u", "who")]), data.path / "interactions.parquet")
    with pytest.raises(ValueError, match=r"interactions.parquet: row 1: no item 'who'"):
        rebuild(store, bundle_version=make_bundle(store, data), dataset=data)


def test_an_index_that_can_not_reach_the_recall_is_not_published(store, tmp_path, monkeypatch):
    monkeypatch.setattr("index.check._MAX_REFINE", 8)  # so few items would soon all be scored exactly
    data = Dataset.open(make_random_dataset(tmp_path / "data", num_items=1500, dims={"text": 16}, num_users=10))
    bundle = make_bundle(store, data)
    before = store.current(), store.list()
    config = RebuildConfig(exact_max_items=0, factory="PQ1x4fs", min_recall_at_100=1.0, recall_queries=10)
    with pytest.raises(ArtefactError, match=r"PQ1x4fs has recall@100 0\.\d+, the floor is 1\.0"):
        rebuild(store, bundle_version=bundle, dataset=data, config=config)
    assert_untouched(store, before)


def test_a_search_that_finds_too_little_is_widened_until_it_finds_enough(store, tmp_path):
    data = Dataset.open(make_random_dataset(tmp_path / "data", num_items=3000, dims={"text": 16}, num_users=10))
    bundle = make_bundle(store, data)
    config = RebuildConfig(
        exact_max_items=0, factory="IVF64,Flat", search={"nprobe": 1}, min_recall_at_100=0.97, recall_queries=30
    )
    made = rebuild(store, bundle_version=bundle, dataset=data, config=config)
    manifest = store.open_snapshot(made.version)[1]
    assert made.recall_at_100 >= 0.97
    assert manifest.search.nprobe > 1
    assert manifest.search.refine == 4
    assert manifest.recall_at_100 == made.recall_at_100


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("NOPE", "factory: 'NOPE' can not be built"),
        ("PQ7x4fs", "factory: 'PQ7x4fs' can not be built"),
        ("IVF{lists}", "another placeholder"),
    ],
)
def test_a_factory_string_that_faiss_does_not_know_is_refused_and_named(store, tmp_path, factory, message):
    data = dataset(tmp_path / "data", random_features(50))
    config = RebuildConfig(exact_max_items=0, factory=factory)
    with pytest.raises(ValueError, match=message):
        rebuild(store, bundle_version=make_bundle(store, data), dataset=data, config=config)


def test_a_bundle_that_does_not_give_its_golden_answers_is_not_used(store, tmp_path, monkeypatch):
    data = dataset(tmp_path / "data", random_features(20))
    bundle = make_bundle(store, data)
    encode = job.Bundle.encode_users
    monkeypatch.setattr("index.bundle._compare", _differs)
    with pytest.raises(ArtefactError, match=r"golden.npz"):
        rebuild(store, bundle_version=bundle, dataset=data)
    assert store.current() is None
    assert encode is job.Bundle.encode_users


def _differs(path, name, value, expected, *, atol):
    raise ArtefactError(path, f"{name}: differs")


def test_progress_reaches_the_end_of_every_stage(store, tmp_path):
    data = dataset(tmp_path / "data", random_features(20), events=[("u", "i0")])
    heard = {}
    rebuild(
        store,
        bundle_version=make_bundle(store, data),
        dataset=data,
        config=RebuildConfig(batch_rows=8),
        report=lambda stage, done, total: heard.setdefault(stage, []).append((done, total)),
    )
    assert list(heard) == ["write items", "count interactions", "encode items", "search exactly", "check values"]
    assert heard["encode items"] == [(8, 20), (16, 20), (20, 20)]
    assert all(steps[-1][0] == steps[-1][1] for steps in heard.values())


def test_the_recall_is_the_share_of_the_exact_answers_that_is_found(store, tmp_path, monkeypatch):
    data = dataset(tmp_path / "data", random_features(300))
    version = rebuild(store, bundle_version=make_bundle(store, data), dataset=data).version
    snapshot = opened(store, version)
    bundle = Bundle.open(store.open_bundle(snapshot.manifest.bundle_version)[0])
    queries = sample_queries(
        bundle, snapshot, [UserHistory(np.array([3, 4, 5]), np.zeros(3, np.float32))], num=4, seed=0
    )
    monkeypatch.setattr("index.check._EXACT_ROWS", 77)
    exact = exact_scores(snapshot, queries)
    expected, rows = ExactIndex(snapshot.candidates(np.arange(300))).search(queries, k=100)
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-6)
    assert measure_recall(snapshot, queries, exact) == 1
    worse = rows.copy()
    worse[:, :25] = rows[:, -1:]  # every found row but these 25 is right, and these tie with the last right one
    monkeypatch.setattr(
        IndexSnapshot, "search_index_alone", lambda self, one, *, k: (None, _unique_part(one, queries, worse))
    )
    assert measure_recall(snapshot, queries, exact) == pytest.approx(0.75, abs=0.001)


def _unique_part(one, queries, rows):
    user = next(position for position in range(len(queries)) if np.array_equal(queries[position], one[0]))
    return rows[user : user + 1, 25:]


def test_a_snapshot_of_another_bundle_does_not_pass_the_check(store, tmp_path, toy_dataset):
    data = dataset(tmp_path / "data", random_features(20))
    snapshot = opened(store, rebuild(store, bundle_version=make_bundle(store, data), dataset=data).version)
    other = Bundle.open(store.open_bundle(make_bundle(store, toy_dataset, dim=4))[0])
    with pytest.raises(ArtefactError, match="dim is 16, its bundle has 4"):
        check_snapshot(snapshot, other, np.zeros((1, 1, 16), np.float32), min_recall_at_100=0)
