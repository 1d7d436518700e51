"""An opened snapshot: tables, look-ups, similar items, and what it refuses to open."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from api_schemas.manifest import SnapshotManifest
from index.artefacts import MANIFEST, ArtefactError
from index.bundle import Bundle
from index.config import RebuildConfig
from index.dataset import Dataset
from index.features import from_dataset
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.bundles import make_snapshot


@pytest.fixture(scope="module", params=[True, False], ids=["history-is-candidate", "own-history"])
def case(request, tmp_path_factory, toy_dataset):
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    version = make_snapshot(store, toy_dataset, dim=8, history_length=6, history_is_candidate=request.param)
    path, manifest = store.open_snapshot(version)
    bundle = Bundle.open(store.open_bundle(manifest.bundle_version)[0])
    dataset = Dataset.open(toy_dataset)
    inputs = from_dataset(dataset, slice(None), manifest.modalities)
    return IndexSnapshot.open(path, manifest), bundle.encode_items(inputs), inputs, dataset


def test_tables_hold_what_the_encoder_gives(case):
    snapshot, encoded, inputs, _ = case
    rows = np.array([59, 0, 7, 7])
    np.testing.assert_allclose(snapshot.candidates(rows), encoded.candidates[rows], rtol=1e-6)
    np.testing.assert_allclose(snapshot.history(rows), encoded.history[rows], rtol=1e-6)
    np.testing.assert_allclose(snapshot.states(rows), encoded.states[rows], rtol=1e-6)
    np.testing.assert_array_equal(snapshot.presence(rows), inputs.presence[rows])
    assert snapshot.parts == ("visual", "text", "category")


def test_the_history_table_is_stored_only_when_it_is_another(case):
    snapshot, *_ = case
    assert (snapshot.path / "history.npy").exists() != snapshot.manifest.history_is_candidate
    assert not (snapshot.path / "index.faiss").exists()


def test_ids_metadata_and_popularity_are_those_of_the_dataset(case):
    snapshot, _, _, dataset = case
    assert snapshot.item_ids(range(60)) == dataset.item_ids
    assert snapshot.rows(["i0059", "?", "i0000"]).tolist() == [59, -1, 0]
    assert snapshot.metadata([10, 3, 10]) == [
        {
            "title": table["title"],
            "description": table["description"],
            "image_url": table["image_url"],
            "categories": table["categories"],
            "attributes": {name: table[name] for name in ("year", "brand", "available")},
        }
        for table in (dataset.items().slice(row, 1).to_pylist()[0] for row in (10, 3, 10))
    ]
    counts = np.zeros(60)
    for item_id in dataset.interactions()["item_id"].to_pylist():
        counts[dataset.item_ids.index(item_id)] += 1
    np.testing.assert_array_equal(snapshot.popularity, counts)
    popular = snapshot.popular_rows
    assert popular.tolist() == sorted(range(60), key=lambda row: (-counts[row], row))
    np.testing.assert_array_equal(popular[snapshot.popularity_positions(np.arange(60))], np.arange(60))


def test_nothing_loaded_can_be_written_to(case):
    snapshot, *_ = case
    for table in (snapshot.popular_rows, snapshot.popularity, snapshot._candidates_ND, snapshot.selection().mask_N):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1
    rows = snapshot.candidates([0])
    rows[:] = 9  # what is handed out is the caller's own
    assert not (snapshot.candidates([0]) == 9).any()


def test_unknown_rows_are_an_error_and_never_the_last_row(case):
    snapshot, *_ = case
    query = np.ones((1, 8), np.float32)
    for use in (
        snapshot.candidates,
        snapshot.history,
        snapshot.states,
        snapshot.presence,
        snapshot.item_ids,
        snapshot.metadata,
        snapshot.popularity_positions,
        lambda rows: snapshot.score(query, rows),
        lambda rows: snapshot.similar(rows[0], k=2),
    ):
        for row in (-1, 60):
            with pytest.raises(IndexError):
                use([row])
        if use != snapshot.similar:
            use([0])


def test_rows_may_be_none_at_all(case):
    snapshot, *_ = case
    assert snapshot.candidates([]).shape == (0, 8)
    assert snapshot.states([]).shape == (0, 3, 8)
    assert snapshot.metadata([]) == snapshot.item_ids([]) == []
    assert snapshot.rows([]).shape == (0,)


@pytest.mark.parametrize("modality", [None, "visual", "text", "category"])
def test_similar_items_are_those_of_the_largest_cosine_without_the_item(case, modality):
    snapshot, encoded, inputs, _ = case
    table, present = encoded.candidates, np.ones(60, bool)
    if modality is not None:
        column = snapshot.parts.index(modality)
        table, present = encoded.states[:, column], inputs.presence[:, column]
    with np.errstate(invalid="ignore"):
        unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for row in (0, 30):
        allowed = np.arange(60) % 2 == 0
        for mask in (None, allowed):
            cosines = np.where(
                present & (np.arange(60) != row) & (True if mask is None else mask), unit @ unit[row], -2
            )
            scores, rows = snapshot.similar(row, k=9, part=modality, allowed=mask)
            np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:9], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(cosines[rows], scores, rtol=1e-4, atol=1e-5)
            assert row not in rows


def test_an_item_without_the_modality_has_no_similar_ones_and_is_nobodys(case):
    snapshot, *_ = case
    scores, rows = snapshot.similar(7, k=5, part="visual")  # the toy's item 7 has no picture
    assert scores.shape == rows.shape == (0,)
    assert 7 not in snapshot.similar(0, k=60, part="visual")[1]
    assert len(snapshot.similar(0, k=60)[1]) == 59
    assert len(snapshot.similar(0, k=3, allowed=np.zeros(60, bool))[1]) == 0
    with pytest.raises(ValueError, match="part: 'sound'"):
        snapshot.similar(0, k=3, part="sound")


def test_a_score_is_the_largest_over_the_queries(case):
    snapshot, encoded, *_ = case
    queries = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    rows = [5, 0, 5]
    np.testing.assert_allclose(
        snapshot.score(queries, rows), (encoded.candidates[rows] @ queries.T).max(axis=1), rtol=1e-5
    )


def test_after_closing_every_call_is_an_error_but_what_was_handed_out_stays(toy_dataset, tmp_path):
    store = ArtifactStore(tmp_path)
    snapshot = IndexSnapshot.open(*store.open_snapshot(make_snapshot(store, toy_dataset)))
    popular = snapshot.popular_rows
    expected = popular.tolist()
    snapshot.close()
    with pytest.raises(AttributeError):
        snapshot.rows(["i0000"])
    assert popular.tolist() == expected
    snapshot.close()


@pytest.fixture
def approximate(tmp_path, toy_dataset) -> Path:
    store = ArtifactStore(tmp_path / "store")
    config = RebuildConfig(exact_max_items=0, factory="SQ8", min_recall_at_100=0.5)
    return store.open_snapshot(make_snapshot(store, toy_dataset, config=config))[0]


def manifest_of(path: Path, **changes) -> SnapshotManifest:
    return SnapshotManifest.model_validate({**json.loads((path / MANIFEST).read_text()), **changes})


def test_a_snapshot_with_other_sizes_than_its_manifest_says_is_refused_and_the_file_named(approximate):
    IndexSnapshot.open(approximate, manifest_of(approximate))
    for changes, message in (
        ({"num_items": 59}, "candidates.npy: holds float32 60x16, expected float32 59x16"),
        ({"dim": 15}, "candidates.npy: holds float32 60x16, expected float32 60x15"),
        ({"state_dim": 3}, "visual.npy: holds float32 60x16, expected float32 60x3"),
        ({"history_is_candidate": False}, "history.npy: is missing"),
        ({"modalities": [{"name": "sound", "dim": 3}]}, "sound.npy: is missing"),
    ):
        with pytest.raises(ArtefactError, match=message):
            IndexSnapshot.open(approximate, manifest_of(approximate, **changes))


def test_an_index_file_that_does_not_belong_here_is_refused(approximate, tmp_path, toy_dataset):
    import faiss

    manifest, index = manifest_of(approximate), approximate / "index.faiss"
    vectors = np.zeros((60, 16), np.float32)
    for factory, metric, count, message in (
        ("SQ8", faiss.METRIC_INNER_PRODUCT, 59, "has 59 vectors of 16, expected 60 of 16"),
        ("SQ8", faiss.METRIC_L2, 60, "does not search by inner product"),
    ):
        other = faiss.index_factory(16, factory, metric)
        other.train(vectors)
        other.add(vectors[:count])
        faiss.write_index(other, str(index))
        with pytest.raises(ArtefactError, match=f"index.faiss: {message}"):
            IndexSnapshot.open(approximate, manifest)
    index.write_bytes(b"no index")
    with pytest.raises(ArtefactError, match=r"index.faiss: is not an index"):
        IndexSnapshot.open(approximate, manifest)
    index.unlink()
    with pytest.raises(ArtefactError, match=r"index.faiss: is missing"):
        IndexSnapshot.open(approximate, manifest)


@pytest.mark.parametrize(
    "name",
    ["items.arrow", "ids.arrow", "posting_keys.arrow", "posting_rows.npy", "content.npy", "norms.npy", "presence.npy"],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut"])
def test_every_file_that_is_not_what_it_should_be_is_refused_and_named(approximate, name, damage):
    path = approximate / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 100, "cut": content[: len(content) - 9]}[damage])
    with pytest.raises(ArtefactError, match=name):
        IndexSnapshot.open(approximate, manifest_of(approximate))


def test_a_table_of_python_objects_is_never_loaded(approximate):
    np.save(approximate / "content.npy", np.array([{"a": 1}] * 60, dtype=object), allow_pickle=True)
    with pytest.raises(ArtefactError, match=r"content.npy"):
        IndexSnapshot.open(approximate, manifest_of(approximate))


def test_a_snapshot_opens_from_a_copy_of_its_folder(approximate, tmp_path):
    shutil.copytree(approximate, tmp_path / "elsewhere")
    snapshot = IndexSnapshot.open(tmp_path / "elsewhere", manifest_of(approximate))
    assert snapshot.item_ids([3]) == ["i0003"]
