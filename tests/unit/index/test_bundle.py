"""A bundle runs its graphs as the reference does, and refuses to load what does not fit its manifest."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.artefacts import MANIFEST, ArtefactError
from index.bundle import EXPLAINER_OUTPUTS, Bundle
from index.dataset import Dataset
from index.features import from_dataset
from index.store import ArtifactStore
from tests.bundles import make_bundle, reference

LENGTH, DIM = 6, 8


@pytest.fixture(scope="module", params=[(1, True), (2, False)], ids=["plain", "two-queries-own-history"])
def case(request, tmp_path_factory, toy_dataset):
    num_queries, history_is_candidate = request.param
    options = {"dim": DIM, "num_queries": num_queries, "history_is_candidate": history_is_candidate}
    store = ArtifactStore(tmp_path_factory.mktemp("bundle"))
    dataset = Dataset.open(toy_dataset)
    path, manifest = store.open_bundle(make_bundle(store, dataset, history_length=LENGTH, **options))
    model = reference(manifest.modalities, **options)
    return Bundle.open(path), model, from_dataset(dataset, slice(0, 12), manifest.modalities)


@pytest.fixture
def folder(case, tmp_path) -> Path:
    shutil.copytree(case[0].path, tmp_path / "copy")
    return tmp_path / "copy"


def histories(bundle, inputs):
    encoded = bundle.encode_items(inputs)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(inputs), (4, LENGTH))
    mask = np.arange(LENGTH) < np.array([0, 1, 3, LENGTH])[:, None]
    return encoded, rows, mask


def test_items_are_encoded_as_by_the_reference(case):
    bundle, model, inputs = case
    encoded, expected = bundle.encode_items(inputs), model.encode_items(inputs)
    for name, value in (("candidate", encoded.candidates), ("history", encoded.history), ("states", encoded.states)):
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_where_history_and_candidate_are_one_they_are_one_array(case):
    bundle, model, inputs = case
    encoded = bundle.encode_items(inputs)
    assert (encoded.history is encoded.candidates) == model.history_is_candidate


def test_users_of_any_length_are_encoded_as_by_the_reference_alone_and_together(case):
    bundle, model, inputs = case
    encoded, rows, mask = histories(bundle, inputs)
    history = encoded.history[rows]
    queries = bundle.encode_users(history, mask)
    np.testing.assert_allclose(queries, model.encode_users(history, mask), rtol=1e-5, atol=1e-6)
    for user in range(len(rows)):
        alone = bundle.encode_users(history[user : user + 1], mask[user : user + 1])
        np.testing.assert_allclose(alone[0], queries[user], rtol=1e-5, atol=1e-6)


def test_what_lies_in_masked_places_changes_nothing(case):
    bundle, _, inputs = case
    encoded, rows, mask = histories(bundle, inputs)
    history = encoded.history[rows]
    other = np.where(mask[..., None], history, 1e6).astype(np.float32)
    np.testing.assert_allclose(bundle.encode_users(other, mask), bundle.encode_users(history, mask), rtol=1e-6)


def test_no_items_give_empty_tables(case):
    bundle, model, inputs = case
    nothing = type(inputs)(tuple(values[:0] for values in inputs.features), inputs.presence[:0])
    encoded = bundle.encode_items(nothing)
    assert encoded.candidates.shape == (0, DIM)
    assert encoded.history.shape == (0, model.history_dim)
    assert encoded.states.shape == (0, len(inputs.features), DIM)


def test_the_golden_cases_are_reproduced(case):
    case[0].check_golden()


def golden_with(folder: Path, **changes) -> None:
    with np.load(folder / "golden.npz") as arrays:
        content = {name: arrays[name] for name in arrays.files}
    content |= {name.replace("__", "/"): value for name, value in changes.items()}
    np.savez(folder / "golden.npz", **{name: value for name, value in content.items() if value is not None})


def test_an_output_that_differs_from_the_model_is_refused_and_named(folder, case):
    with np.load(folder / "golden.npz") as arrays:
        queries = arrays["user_encoder/out/queries"].copy()
    queries[2, 0, 1] += 1e-3
    golden_with(folder, user_encoder__out__queries=queries)
    with pytest.raises(ArtefactError, match=r"golden.npz: user_encoder/out/queries: differs from the model by 0\.001"):
        Bundle.open(folder).check_golden()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"user_encoder__out__queries": np.full((4, 1, DIM), np.nan, np.float32)},
            "shape|differs from the model by nan",
        ),
        ({"user_encoder__out__queries": np.zeros((4, 9, DIM), np.float32)}, "the graph gives shape"),
        ({"user_encoder__out__queries": None}, "has no case for user_encoder"),
        ({"user_encoder__in__mask": None}, "user_encoder does not run on it"),
        ({"user_encoder__in__mask": np.zeros((4, 1), np.float32)}, "user_encoder does not run on it"),
    ],
)
def test_golden_cases_that_do_not_fit_are_refused(folder, changes, message):
    golden_with(folder, **changes)
    with pytest.raises(ArtefactError, match=message):
        Bundle.open(folder).check_golden()


def test_golden_cases_with_python_objects_are_never_loaded(folder):
    golden_with(folder, user_encoder__in__mask=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtefactError, match=r"golden.npz: can not be read"):
        Bundle.open(folder).check_golden()


def edited(folder: Path, edit) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


EDITS = {
    "dim": (lambda m: m.update(dim=DIM + 1), "asks? for"),
    "states": (lambda m: m.update(state_dim=DIM + 1), "asks? for"),
    "length": (lambda m: m.update(history_length=LENGTH + 1), "asks? for"),
    "queries": (lambda m: m.update(num_queries=7), "asks? for"),
    "graph": (lambda m: m["graphs"].pop("explainer"), "explainer is missing"),
    "file": (lambda m: m["graphs"]["explainer"].update(file="config.toml"), "is not a graph that can be loaded"),
    "no file": (lambda m: m["graphs"]["explainer"].update(file="none.onnx"), "is not a graph that can be loaded"),
    "input name": (lambda m: m["graphs"]["user_encoder"]["inputs"][0].update(name="x"), "is only in"),
    "output name": (lambda m: m["graphs"]["user_encoder"]["outputs"][0].update(name="x"), "is only in"),
    "dtype": (lambda m: m["graphs"]["user_encoder"]["inputs"][1].update(dtype="int64"), "the manifest says int64"),
    "ages": (lambda m: m.update(history_ages=True), "user_encoder.onnx: has no input ages"),
    "rank": (lambda m: m["graphs"]["user_encoder"]["inputs"][1].update(shape=["batch"]), "the manifest says bool"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_bundle_whose_graphs_do_not_fit_its_manifest_is_refused(folder, name):
    edit, message = EDITS[name]
    edited(folder, edit)
    with pytest.raises(ArtefactError, match=message):
        Bundle.open(folder)


def test_a_graph_file_that_is_garbage_is_refused_in_one_line(folder):
    (folder / "item_encoder.onnx").write_bytes(b"\x08\x07garbage" * 50)
    with pytest.raises(ArtefactError, match=r"item_encoder.onnx: is not a graph") as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def test_the_explainer_gives_the_outputs_that_are_asked_for(case):
    bundle, _, inputs = case
    encoded, rows, mask = histories(bundle, inputs)
    given = {
        "states": encoded.states[rows],
        "presence": inputs.presence[rows],
        "mask": mask,
        "candidate_states": encoded.states[:3],
        "candidate_presence": inputs.presence[:3],
    }
    everything = bundle.explain(**given, outputs=EXPLAINER_OUTPUTS)
    assert list(everything) == list(EXPLAINER_OUTPUTS)
    some = bundle.explain(**given, outputs=["queries", "scores"])
    assert list(some) == ["queries", "scores"]
    np.testing.assert_array_equal(some["scores"], everything["scores"])
    queries = bundle.encode_users(encoded.history[rows], mask)
    np.testing.assert_allclose(everything["queries"], queries, rtol=1e-5, atol=1e-6)
