"""A ranker's bundle scores as its reference does, is explained without gradients, and refused where it does not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from api_schemas.manifest import RANKER_METHODS
from index import bundle as bundle_module
from index.artefacts import MANIFEST, ArtefactError
from index.bundle import Bundle
from index.dataset import Dataset
from index.decompose import decompose
from index.explain import METHODS, explain
from index.features import from_dataset
from index.known import open_known_users
from index.store import ArtifactStore
from tests.bundles import make_bundle
from tests.ranker_bundles import QUERY_DIM, make_ranker_bundle, open_reference, ranker_graph

LENGTH, DIM = 6, 8


@pytest.fixture(scope="module", params=[True, False], ids=["one row", "own rows"])
def case(request, tmp_path_factory, toy_dataset):
    store = ArtifactStore(tmp_path_factory.mktemp("ranker"))
    dataset = Dataset.open(toy_dataset)
    version = make_ranker_bundle(store, dataset, dim=DIM, history_length=LENGTH, history_is_candidate=request.param)
    bundle = Bundle.open(store.open_bundle(version)[0])
    return bundle, open_reference(bundle.manifest), from_dataset(dataset, slice(0, 12), bundle.manifest.modalities)


@pytest.fixture
def folder(case, tmp_path) -> Path:
    shutil.copytree(case[0].path, tmp_path / "copy")
    return tmp_path / "copy"


def queries_of(num_users: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_users, 1, QUERY_DIM)).astype(np.float32)


def test_its_golden_cases_are_reproduced(case):
    case[0].check_golden()


@pytest.mark.parametrize(("num_users", "num_items"), [(1, 12), (3, 5), (0, 4), (2, 0)])
def test_it_scores_every_user_with_every_item_as_the_reference_does(case, num_users, num_items):
    bundle, model, inputs = case
    queries, candidates = queries_of(num_users), bundle.encode_items(inputs).candidates[:num_items]
    scores = bundle.score(queries, candidates)
    assert scores.shape == (num_users, num_items)
    np.testing.assert_allclose(scores, model.rank(queries, candidates), rtol=1e-4, atol=1e-5)


def test_many_pairs_are_scored_in_pieces_with_the_same_result(case, monkeypatch):
    bundle, _, inputs = case
    queries, candidates = queries_of(3), bundle.encode_items(inputs).candidates
    whole = bundle.score(queries, candidates)
    monkeypatch.setattr(bundle_module, "_PAIRS_AT_ONCE", 7)
    np.testing.assert_allclose(bundle.score(queries, candidates), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scorer", ["max", "logsumexp"])
def test_other_models_score_by_inner_products(toy_dataset, tmp_path, scorer):
    store = ArtifactStore(tmp_path)
    bundle = Bundle.open(store.open_bundle(make_bundle(store, toy_dataset, num_queries=3, scorer=scorer))[0])
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((2, 3, 16), np.float32), rng.standard_normal((5, 16), np.float32)
    products = queries @ candidates.T
    expected = products.max(axis=1) if scorer == "max" else np.logaddexp.reduce(products, axis=1)
    np.testing.assert_allclose(bundle.score(queries, candidates), expected, rtol=1e-5)


def test_known_users_have_queries_of_the_rankers_own_width(case):
    bundle, model, _ = case
    known = open_known_users(bundle.path, bundle.manifest)
    np.testing.assert_array_equal(known.vectors[known.row("zoë")], model.users[1])


def given_to(bundle, inputs, num_items: int = 4) -> dict:
    encoded = bundle.encode_items(inputs)
    return {
        "states_LMS": encoded.states[:num_items],
        "presence_LM": encoded.presence[:num_items],
        "candidate_states_KMS": encoded.states[num_items:],
        "candidate_presence_KM": encoded.presence[num_items:],
    }


def score_of(bundle, given) -> np.ndarray:
    """The ranker's scores, by its graphs alone."""
    rows = bundle.encode_states(given["states_LMS"], given["presence_LM"]).history
    history, mask = np.zeros((1, LENGTH, rows.shape[1]), np.float32), np.zeros((1, LENGTH), np.bool_)
    history[0, : len(rows)], mask[0, : len(rows)] = rows, given["presence_LM"].any(axis=1)
    candidates = bundle.encode_states(given["candidate_states_KMS"], given["candidate_presence_KM"]).candidates
    return bundle.score(bundle.encode_users(history, mask), candidates)[0]


@pytest.mark.parametrize("method", RANKER_METHODS)
@pytest.mark.parametrize("num_items", [0, 1, 4])
def test_what_is_explained_is_the_rankers_score(case, method, num_items):
    bundle, _, inputs = case
    given = given_to(bundle, inputs, num_items)
    arrays = explain(bundle, method=method, **given)
    np.testing.assert_allclose(arrays.scores_K, score_of(bundle, given), rtol=1e-4, atol=1e-4)
    assert all(np.isfinite(getattr(arrays, name)).all() for name in arrays.__slots__)
    total = arrays.contributions_KM.sum(axis=1) + arrays.residual_K
    np.testing.assert_allclose(total, arrays.scores_K, rtol=1e-4, atol=1e-4)
    assert arrays.additive == (method == "shapley")


def test_the_items_and_cells_of_a_rankers_shapley_are_those_of_occlusion(case):
    bundle, _, inputs = case
    given = given_to(bundle, inputs)
    shapley, occlusion = (explain(bundle, method=method, **given) for method in RANKER_METHODS)
    np.testing.assert_array_equal(shapley.history_KL, occlusion.history_KL)
    np.testing.assert_array_equal(shapley.grid_KLM, occlusion.grid_KLM)
    without_last = {**given, "states_LMS": given["states_LMS"][:-1], "presence_LM": given["presence_LM"][:-1]}
    lost = occlusion.scores_K - score_of(bundle, without_last)
    np.testing.assert_allclose(occlusion.history_KL[:, -1], lost, rtol=1e-3, atol=1e-4)


def test_shapleys_residual_is_the_score_of_an_empty_history(case):
    bundle, _, inputs = case
    given = given_to(bundle, inputs)
    nothing = {**given, "states_LMS": given["states_LMS"][:0], "presence_LM": given["presence_LM"][:0]}
    found = explain(bundle, method="shapley", **given).residual_K
    np.testing.assert_allclose(found, score_of(bundle, nothing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(RANKER_METHODS)))
def test_a_method_that_needs_gradients_is_refused(case, method):
    bundle, _, inputs = case
    with pytest.raises(ValueError, match=f"method: {method} needs gradients"):
        explain(bundle, method=method, **given_to(bundle, inputs))


def test_without_a_history_a_part_has_what_the_score_loses_without_it(case):
    bundle, model, inputs = case
    encoded = bundle.encode_items(inputs)
    arrays = decompose(
        bundle,
        queries_QD=model.users[0],
        candidate_states_KMS=encoded.states,
        candidate_presence_KM=encoded.presence,
    )
    np.testing.assert_allclose(arrays.scores_K, model.rank(model.users[:1], encoded.candidates)[0], rtol=1e-4)
    text = encoded.presence.copy()
    text[:, 1] = False
    without = model.rank(model.users[:1], bundle.encode_states(encoded.states, text).candidates)[0]
    np.testing.assert_allclose(arrays.contributions_KM[:, 1], arrays.scores_K - without, rtol=1e-3, atol=1e-4)
    assert not arrays.additive
    assert arrays.history_KL.shape == (12, 0)


def edited(folder: Path, edit) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


EDITS = {
    "no ranker": (lambda m: m["graphs"].pop("ranker"), "scorer: is ranker, but the graphs are"),
    "no scorer": (lambda m: m.update(scorer="max", query_dim=None), "scorer: is max, but the graphs are"),
    "no query width": (lambda m: m.update(query_dim=None), "queries is .* ask for"),
    "another query width": (lambda m: m.update(query_dim=QUERY_DIM + 1), "queries is .* ask for"),
    "no user encoder": (lambda m: m["graphs"].pop("user_encoder"), "graphs: user_encoder is missing"),
    "gradients": (lambda m: m.update(explanation_methods=["grad_x_input"]), "explanation_methods: grad_x_input"),
    "file": (lambda m: m["graphs"]["ranker"].update(file="none.onnx"), "none.onnx: is not a graph that can be loaded"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_bundle_that_does_not_fit_its_manifest_is_refused(folder, name):
    edit, message = EDITS[name]
    edited(folder, edit)
    with pytest.raises(ArtefactError, match=message):
        Bundle.open(folder)


def test_a_ranker_that_reads_items_of_another_width_is_refused(folder, case):
    _, model, _ = case
    wide = replace(model, default=np.zeros(DIM + 1), to_hidden=np.zeros((DIM + 1, QUERY_DIM), np.float32))
    onnx.save(ranker_graph(wide), folder / "ranker.onnx")
    with pytest.raises(ArtefactError, match=r"ranker.onnx: input candidates is .* the manifest says"):
        Bundle.open(folder)
    edited(folder, lambda m: m["graphs"]["ranker"]["inputs"][1].update(shape=["candidates", DIM + 1]))
    with pytest.raises(ArtefactError, match=r"ranker.onnx: input candidates is .* sizes ask for"):
        Bundle.open(folder)


def test_a_ranker_that_differs_from_its_golden_answers_is_refused(folder, case):
    _, model, _ = case
    onnx.save(ranker_graph(model, divide_by=2.0), folder / "ranker.onnx")
    with pytest.raises(ArtefactError, match="ranker/out/scores: differs from the model by"):
        Bundle.open(folder).check_golden()
