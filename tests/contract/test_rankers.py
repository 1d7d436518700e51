"""Every ranker's bundle computes what the model computes, whatever is missing: the tests enrol from the union."""

import numpy as np
import pytest
import torch

from api_schemas.manifest import RANKER_METHODS
from index.dataset import Dataset
from index.explain import explain
from index.features import ModelInputs, from_dataset
from index.store import ArtifactStore
from tests.contract.test_exported_graphs import COMMON_FILES, DIM, LENGTH, Exported, encode, raw_items, subsets
from tests.factor_runs import RANKER_FAMILIES, config_of, publishable, run
from tests.id_bundles import without
from training.evaluate_bundle import judge_bundle
from training.factors.serving import check_servable
from training.golden import ParityError, check_parity

VARIANTS = {
    "neumf": ['model.modalities=["text", "category"]', 'conditioning.kind="scale"'],
    "nfm": ['model.loss="bpr"'],
    "vecf": ["model.regions.visual=4", "model.regions.text=2", 'model.reconstructed="text"'],
}
"""Of each family what is harder than the default; `tests.integration.test_factor_training` has that."""


@pytest.fixture(scope="module", params=RANKER_FAMILIES)
def ranker(request, toy_dataset, tmp_path_factory) -> Exported:
    sizes = [f"model.dim={DIM}", f"model.history_length={LENGTH}"]
    config = config_of(request.param, *sizes, *VARIANTS.get(request.param, []))
    store = ArtifactStore(tmp_path_factory.mktemp("ranker"))
    trained = run(config, toy_dataset, store.root / "checkpoints")
    check_servable(trained.served, config)
    exported = Exported(store, **publishable(trained, config, Dataset.open(toy_dataset)))
    exported.trained = trained
    return exported


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def catalogue(ranker: Exported, dataset: Dataset) -> ModelInputs:
    return from_dataset(dataset, slice(None), ranker.manifest.modalities)


def test_items_agree_with_the_model_for_every_set_of_modalities(ranker, rng):
    presence = subsets(ranker.num_modalities)
    items = raw_items(ranker, rng, presence)
    out = ranker.agrees("item_encoder", items)
    parts = ranker.model.part_presence(torch.tensor(presence)).numpy()
    again = ranker.agrees("state_encoder", {"states": out["states"], "presence": parts})
    for name in ("candidate", "history"):
        np.testing.assert_array_equal(again[name], out[name])
        assert not out[name][0].any(), "an item without any modality is zero"
    for column, modality in enumerate(ranker.model.modalities):
        items[modality.name][~presence[:, column]] = np.nan
    for name, value in ranker.run("item_encoder", items).items():
        np.testing.assert_array_equal(value, out[name], err_msg=name)


def test_users_agree_with_the_model_for_every_length(ranker, rng):
    lengths = np.arange(LENGTH + 1)
    history = rng.normal(size=(len(lengths), LENGTH, ranker.model.history_dim)).astype(np.float32)
    mask = np.arange(LENGTH) < lengths[:, None]
    out = ranker.agrees("user_encoder", {"history": history, "mask": mask})["queries"]
    assert out.shape == (LENGTH + 1, 1, ranker.manifest.query_dim)
    np.testing.assert_allclose(out[0, 0], ranker.default, atol=2e-6)
    junk = np.where(mask[..., None], history, np.float32(np.nan))
    np.testing.assert_array_equal(ranker.run("user_encoder", {"history": junk, "mask": mask})["queries"], out)


@pytest.mark.parametrize(("num_users", "num_items"), [(1, 1), (1, 7), (5, 1), (4, 60)])
def test_scores_agree_with_the_model_for_any_number_of_users_and_items(ranker, rng, toy_dataset, num_users, num_items):
    inputs = without(catalogue(ranker, Dataset.open(toy_dataset)), 0)
    candidates = ranker.bundle.encode_items(inputs).candidates[:num_items]
    queries = rng.normal(size=(num_users, 1, ranker.manifest.query_dim)).astype(np.float32)
    scores = ranker.agrees("ranker", {"queries": queries, "candidates": candidates})["scores"]
    assert scores.shape == (num_users, num_items)
    np.testing.assert_allclose(ranker.bundle.score(queries, candidates), scores, atol=1e-5)


def test_a_ranker_is_published_with_what_it_learned_and_no_explainer(ranker, toy_dataset):
    dataset, manifest, trained = Dataset.open(toy_dataset), ranker.manifest, ranker.trained
    assert (manifest.scorer, manifest.num_queries, manifest.parts[-1]) == ("ranker", 1, "id")
    assert tuple(manifest.explanation_methods) == RANKER_METHODS
    assert set(manifest.faithfulness) <= set(RANKER_METHODS)
    assert manifest.graphs["ranker"].inputs[0].shape == ["batch", 1, manifest.query_dim]
    assert manifest.graphs["ranker"].outputs[0].shape == ["batch", "candidates"]
    tables = {"known_users.arrow", "known_queries.npy", "warm_items.arrow", "warm_states.npy", "stages.json"}
    files = (COMMON_FILES - {"explainer.onnx"}) | {"ranker.onnx"} | tables
    assert {entry.path for entry in manifest.files} == files
    encoded = encode(ranker, catalogue(ranker, dataset), dataset.item_ids)
    np.testing.assert_allclose(encoded.candidates, trained.served.tables.items_ID, atol=2e-5)
    np.testing.assert_allclose(encoded.history, trained.served.tables.rows_IH, atol=2e-5)
    judged = judge_bundle(ranker.bundle, dataset, which="test", num_explained=2, on_progress=lambda *_: None)
    assert judged.metrics == pytest.approx(trained.metrics["test_from_history"], abs=1e-6)
    assert judged.metrics_of_known == pytest.approx(manifest.metrics, abs=1e-6)
    assert judged.faithfulness == manifest.faithfulness


@pytest.mark.parametrize("method", RANKER_METHODS)
def test_scores_of_items_that_lack_a_modality_are_explained(ranker, toy_dataset, method):
    dataset = Dataset.open(toy_dataset)
    complete = catalogue(ranker, dataset)
    for column in range(ranker.num_modalities):
        for ids in (dataset.item_ids, [f"new-{item_id}" for item_id in dataset.item_ids]):
            items = encode(ranker, without(complete, column), ids)
            assert np.isfinite(items.candidates).all()
            arrays = explain(
                ranker.bundle,
                method=method,
                states_LMS=items.states[3:8],
                presence_LM=items.presence[3:8],
                candidate_states_KMS=items.states[[0, 1, 20]],
                candidate_presence_KM=items.presence[[0, 1, 20]],
            )
            allowed_K = 1e-5 * (1 + np.abs(arrays.scores_K))
            missed_K = arrays.contributions_KM.sum(axis=1) + arrays.residual_K - arrays.scores_K
            assert (np.abs(missed_K) < allowed_K).all()
            assert (np.abs(arrays.contributions_KM[:, column]) < allowed_K).all()


def test_a_graph_of_other_weights_is_refused(ranker):
    with np.load(ranker.path / "golden.npz") as arrays:
        golden = dict(arrays)
    check_parity(ranker.path, ranker.graphs, golden)
    golden["ranker/out/scores"] = golden["ranker/out/scores"] * 1.001
    with pytest.raises(ParityError, match=r"ranker\.onnx: scores"):
        check_parity(ranker.path, ranker.graphs, golden)


def test_the_model_is_left_as_it_was(ranker):
    assert ranker.model.training
    for name, value in ranker.model.state_dict().items():
        assert torch.equal(value, ranker.before[name]), name
