"""A snapshot of two bundles: each model's tables are its own, are taken over, checked, verified and kept together."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from index import rebuild as job
from index.artefacts import MANIFEST, ArtefactError
from index.bundle import Bundle
from index.check import check_snapshot
from index.cli import app
from index.dataset import Dataset
from index.features import from_dataset
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.bundles import make_bundle
from tests.ranker_bundles import make_ranker_bundle

ROWS = np.arange(60)


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def data(toy_dataset) -> Dataset:
    return Dataset.open(toy_dataset)


@pytest.fixture
def pair(store, data) -> tuple[str, str]:
    return make_bundle(store, data), make_ranker_bundle(store, data)


def rebuilt(store, data, pair, **options):
    return rebuild(store, bundle_version=pair[0], ranker_version=pair[1], dataset=data, **options)


def bundles_of(store, manifest) -> list[Bundle]:
    return [Bundle.open(store.open_bundle(one.bundle_version)[0]) for one in manifest.encoded]


def test_each_model_has_tables_of_its_own(store, data, pair):
    made = rebuilt(store, data, pair)
    snapshot = IndexSnapshot.open(*store.open_snapshot(made.version))
    manifest = snapshot.manifest
    assert (manifest.bundle_version, manifest.ranker.bundle_version) == pair
    assert (made.num_encoded, made.num_encoded_by_ranker) == (60, 60)
    for tables, bundle in zip((snapshot, snapshot.ranker), bundles_of(store, manifest), strict=True):
        encoded = bundle.encode_items(from_dataset(data, slice(None), bundle.manifest.modalities))
        np.testing.assert_allclose(tables.candidates(ROWS), encoded.candidates, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(tables.history(ROWS), encoded.history, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(tables.states(ROWS), encoded.states, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(tables.presence(ROWS), encoded.presence)


def test_without_a_ranker_nothing_of_one_is_there(store, data, pair):
    made = rebuild(store, bundle_version=pair[0], dataset=data)
    snapshot = IndexSnapshot.open(*store.open_snapshot(made.version))
    assert snapshot.manifest.ranker is snapshot.ranker is made.num_encoded_by_ranker is None
    assert not (made.path / "ranker").exists()


def test_what_did_not_change_is_taken_over_for_each_model_from_wherever_it_is(store, data, pair, monkeypatch):
    retriever, ranker = pair
    rebuild(store, bundle_version=retriever, dataset=data)
    made = rebuilt(store, data, pair)
    assert (made.num_encoded, made.num_encoded_by_ranker) == (0, 60)
    other = make_bundle(store, data, seed=5)
    made = rebuilt(store, data, (other, ranker))
    assert (made.num_encoded, made.num_encoded_by_ranker) == (60, 0)
    opened = []
    open_snapshot = IndexSnapshot.open
    monkeypatch.setattr(
        job.IndexSnapshot, "open", lambda *args, **kw: opened.append(args) or open_snapshot(*args, **kw)
    )
    made = rebuilt(store, data, (other, ranker))
    assert (made.num_encoded, made.num_encoded_by_ranker) == (0, 0)
    assert len(opened) == 2, "one earlier snapshot has both, and the new one is opened for its check"
    snapshot = open_snapshot(*store.open_snapshot(made.version))
    encoded = bundles_of(store, snapshot.manifest)[1].encode_items(
        from_dataset(data, slice(None), snapshot.manifest.modalities)
    )
    np.testing.assert_allclose(snapshot.ranker.candidates(ROWS), encoded.candidates, rtol=1e-5, atol=1e-6)


def test_an_earlier_snapshot_with_damaged_tables_of_the_ranker_is_passed_over(store, data, pair):
    earlier = rebuilt(store, data, pair)
    (earlier.path / "ranker/candidates.npy").write_bytes(b"damaged")
    made = rebuilt(store, data, pair)
    assert (made.num_encoded, made.num_encoded_by_ranker) == (60, 60)


def test_a_ranker_retrieves_nothing_and_a_retriever_ranks_nothing(store, data, pair):
    retriever, ranker = pair
    with pytest.raises(ValueError, match=f"bundle: {ranker} is a ranker, .* give it as the ranker"):
        rebuild(store, bundle_version=ranker, dataset=data)
    with pytest.raises(ValueError, match=rf"ranker: {retriever} is none, .* \(scorer max\): give it as the bundle"):
        rebuild(store, bundle_version=retriever, ranker_version=retriever, dataset=data)
    assert store.current() is None


def test_models_of_other_modalities_do_not_work_together(store, data):
    narrow = make_ranker_bundle(store, data, modalities=["visual", "text"])
    with pytest.raises(ValueError, match=f"ranker: {narrow} reads the modalities .* train both on the same ones"):
        rebuilt(store, data, (make_bundle(store, data), narrow))


def test_a_ranker_that_gives_nan_stops_the_rebuild(store, data, pair, monkeypatch):
    encode = Bundle.encode_items

    def broken(self, inputs):
        encoded = encode(self, inputs)
        if self.manifest.is_ranker:
            encoded.candidates[7] = np.nan
        return encoded

    monkeypatch.setattr(Bundle, "encode_items", broken)
    with pytest.raises(ValueError, match="output candidate holds NaN or infinity at row 7"):
        rebuilt(store, data, pair)
    assert store.current() is None
    assert [entry.kind for entry in store.list()] == ["bundle", "bundle"]


def test_a_ranker_that_does_not_give_its_golden_answers_stops_the_rebuild(store, data, pair, monkeypatch):
    def refuse(self):
        if self.manifest.is_ranker:
            raise ArtefactError(self.path, "golden")

    monkeypatch.setattr(Bundle, "check_golden", refuse)
    with pytest.raises(ArtefactError, match=f"{pair[1]}: golden"):
        rebuilt(store, data, pair)
    assert store.current() is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("candidates.npy", "ranker/candidates.npy: has 4 bytes"),
        ("states/text.npy", "ranker/states/text.npy: has 4 bytes"),
    ],
)
def test_a_damaged_table_of_the_ranker_is_refused_by_name(store, data, pair, name, reason):
    made = rebuilt(store, data, pair)
    (made.path / "ranker" / name).write_bytes(b"oops")
    with pytest.raises(ArtefactError, match=reason):
        store.open_snapshot(made.version)


def test_tables_of_other_widths_than_the_ranker_has_are_refused(store, data, pair):
    made = rebuilt(store, data, pair)
    path, manifest = store.open_snapshot(made.version)
    wrong = manifest.model_copy(update={"ranker": manifest.ranker.model_copy(update={"dim": 9})})
    with pytest.raises(ArtefactError, match=r"ranker/candidates.npy: holds float32 60x8, expected float32 60x9"):
        IndexSnapshot.open(path, wrong)
    snapshot = IndexSnapshot.open(path, manifest)
    retriever, ranker = bundles_of(store, manifest)
    with pytest.raises(ArtefactError, match="ranker: dim is 8, its bundle has 16"):
        check_snapshot(snapshot, retriever, snapshot.queries, ranker=retriever, min_recall_at_100=0)
    with pytest.raises(ArtefactError, match="has a ranker, and none was given"):
        check_snapshot(snapshot, retriever, snapshot.queries, min_recall_at_100=0)
    assert check_snapshot(snapshot, retriever, snapshot.queries, ranker=ranker, min_recall_at_100=0.9)


def test_a_snapshot_without_its_ranker_is_not_opened_and_pruning_keeps_both_bundles(store, data, pair):
    made = rebuilt(store, data, pair)
    unused = make_ranker_bundle(store, data, seed=9)
    assert store.prune(keep=0) == (unused,)
    assert store.list()[-1].bundle_versions == pair
    (store.path_of(pair[1]) / "ranker.onnx").write_bytes(b"oops")
    store.open_snapshot(made.version)
    with pytest.raises(ArtefactError, match=r"ranker.onnx: has 4 bytes"):
        store.set_current(made.version)
    shutil.rmtree(store.path_of(pair[1]))
    with pytest.raises(ArtefactError, match=f"needs bundle {pair[1]}, which is not in the store"):
        store.open_snapshot(made.version)


def test_another_ranker_of_the_same_name_is_not_taken_for_it(store, data, pair):
    made = rebuilt(store, data, pair)
    path = store.path_of(pair[1]) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"family": "other"}))
    with pytest.raises(ArtefactError, match=f"was made with another bundle {pair[1]} than the store has"):
        store.open_snapshot(made.version)


def test_the_commands_know_of_both(store, toy_dataset, pair):
    def run(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    options = ("--store", store.root, "--data", toy_dataset)
    made = run("rebuild", *options, "--bundle", pair[0], "--ranker", pair[1])
    assert made.exit_code == 0, made.output
    assert "60 items (60 encoded, 60 for the ranker), Flat" in made.stdout
    assert "ranker: encode items: 60 of 60" in made.stderr
    assert f"bundle {pair[0]}  ranker {pair[1]}  current" in run("list", "--store", store.root).stdout
    checked = run("check", "--store", store.root)
    assert f"bundle {pair[0]} and ranker {pair[1]} reproduced the golden answers" in checked.stdout
    wrong = run("rebuild", *options, "--bundle", pair[1])
    assert wrong.exit_code == 1
    assert "is a ranker, which finds no items by itself" in wrong.stderr.splitlines()[-1]
    plain = run("rebuild", *options, "--bundle", pair[0])
    assert "60 items (0 encoded), Flat" in plain.stdout
    assert run("rollback", "--store", store.root).exit_code == 0
    assert store.open_snapshot(store.current())[1].ranker.bundle_version == pair[1]
