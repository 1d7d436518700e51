"""The options of the serving kit on a trained toy: each is exported, and its graphs compute what was measured."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from index.bundle import Bundle
from index.dataset import Dataset
from index.store import ArtifactStore
from tests.factor_runs import publishable
from training.config import parse_config
from training.export import export_graphs, graphs_of
from training.factors.encoders import AttentionEncoder
from training.factors.fold_in import FoldInMap, ItemTables
from training.factors.serving import check_servable
from training.factors.trainer import train_factors
from training.progress import Unwatched
from training.publish import publish_bundle

LENGTH = 5
RUN = f"""
name = "kit"
[model]
kind = "vbpr"
dim = 4
history_length = {LENGTH}
[split]
kind = "interactions"
[optim]
batch_size = 256
epochs = 20
lr = 3e-2
[eval]
every_epochs = 20
[export]
faithfulness_users = 2
[serving.learned]
steps = 30
batch_size = 64
"""


def trained(folder: Path, checkpoints: Path, *overrides: str):
    config = parse_config(RUN, overrides)
    return config, train_factors(config, Dataset.open(folder), checkpoints=checkpoints, observer=Unwatched())


@pytest.fixture(scope="module")
def made(toy_dataset, tmp_path_factory):
    return trained(toy_dataset, tmp_path_factory.mktemp("kit"), "serving.cold_items=knn", "serving.neighbours=3")


@pytest.fixture(scope="module")
def attentive(made, tmp_path_factory):
    """The same model with attention far from flat, and its graphs' folder."""
    served = made[1].served
    model = deepcopy(served.model)
    torch.manual_seed(1)
    model.users = AttentionEncoder(model.users, item_scale=0.5)
    torch.nn.init.normal_(model.users.attention_D, std=2.0)
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(model, folder)
    return model, folder


def answer(folder: Path, name: str, inputs: dict) -> dict:
    session = ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def agree(found: dict, expected: dict) -> None:
    for name, value in found.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=2e-5 * max(np.abs(expected[name]).max(), 0.1))


def test_attention_is_exported_and_reads_a_history_of_any_length_as_it_was_measured(made, attentive):
    model, folder = attentive
    items_ID = made[1].served.tables.items_ID
    rng = np.random.default_rng(0)
    histories = [rng.permutation(len(items_ID))[:length] for length in (0, 1, LENGTH, LENGTH + 3)]
    fold_in = FoldInMap("attention", LENGTH, model.users, None, None)
    expected = fold_in.queries(ItemTables(items_ID), histories)[:, 0]
    vectors = rng.normal(size=(4, LENGTH, model.dim)).astype(np.float32)  # junk where there is no item
    mask = np.zeros((4, LENGTH), bool)
    for row, history in enumerate(histories):
        kept = history[-LENGTH:]
        vectors[row, : len(kept)], mask[row, : len(kept)] = items_ID[kept].numpy(), True
    found = answer(folder, "user_encoder", {"history": vectors, "mask": mask})["queries"][:, 0]
    agree({"queries": found}, {"queries": expected.detach().numpy()})
    np.testing.assert_allclose(found[0], model.users.default_D.detach().numpy(), atol=1e-7)


def test_attention_is_explained_by_its_own_gradients(attentive):
    model, folder = attentive
    assert model.user_map is None
    rng = np.random.default_rng(2)
    parts, shape = len(model.part_names), (4, LENGTH, len(model.part_names))
    inputs = {
        "states": rng.normal(size=(*shape, model.dim)).astype(np.float32),
        "presence": np.ones(shape, bool),
        "mask": np.arange(LENGTH) < np.array([0, 1, 3, LENGTH])[:, None],
        "candidate_states": rng.normal(size=(3, parts, model.dim)).astype(np.float32),
        "candidate_presence": np.ones((3, parts), bool),
    }
    found = answer(folder, "explainer", inputs)
    agree(found, graphs_of(model)["explainer"](inputs))
    items = torch.from_numpy(inputs["states"]).sum(dim=2).requires_grad_()
    candidates = torch.from_numpy(inputs["candidate_states"]).sum(dim=1)
    scores = model.encode_users(items, torch.from_numpy(inputs["mask"]))[:, 0] @ candidates.T
    np.testing.assert_allclose(found["scores"], scores.detach(), atol=1e-4)
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), items)
    np.testing.assert_allclose(found["item_interest"][:, 1], gradient.mean(dim=-1), atol=1e-4)


def test_nearest_items_stand_in_for_what_is_not_learned_and_are_exported(made, attentive, toy_dataset):
    config, result = made
    served = result.served
    check_servable(served, config)
    assert served.imputation == "knn"
    _, folder = attentive
    graph = graphs_of(served.model)["item_encoder"]
    rng = np.random.default_rng(3)
    presence = np.array([[True, True, True], [True, False, True], [False, False, False]])
    raw = {one.name: rng.normal(size=(3, one.dim)).astype(np.float32) for one in served.model.modalities}
    agree(answer(folder, "item_encoder", {**raw, "presence": presence}), graph({**raw, "presence": presence}))
    # The table of known items lies in the one graph that needs it.
    size = {name: (folder / f"{name}.onnx").stat().st_size for name in ("item_encoder", "explainer")}
    table = 4 * served.model.imputer.prediction.similarity.linears[0].weight.numel()
    assert size["item_encoder"] > table
    assert b"learned_NF" not in (folder / "explainer.onnx").read_bytes()


def test_a_trained_encoder_is_kept_if_it_finds_more_and_the_manifest_says_what_was_tried(toy_dataset, tmp_path):
    config, result = trained(toy_dataset, tmp_path / "run", "serving.fold_in=softmax")
    figures = result.served.fold_in_figures
    assert set(figures.tried) == {"affine", "softmax"}
    assert figures.kind == ("softmax" if figures.tried["softmax"] > figures.tried["affine"] else "affine")
    assert result.served.model.user_map is not None
    dataset, store = Dataset.open(toy_dataset), ArtifactStore(tmp_path / "store")
    version = publish_bundle(store, **publishable(result, config, dataset))
    path, manifest = store.open_bundle(version)
    assert manifest.fold_in == figures
    assert manifest.explanation_methods[0] == "decomposition"
    Bundle.open(path).check_golden()


def test_attention_is_trained_on_others_than_those_it_is_judged_on(toy_dataset, tmp_path):
    _, result = trained(toy_dataset, tmp_path, "serving.fold_in=attention")
    figures = result.served.fold_in_figures
    assert set(figures.tried) == {"affine", "attention"}
    assert figures.kind == ("attention" if figures.tried["attention"] > figures.tried["affine"] else "affine")
    assert not any(parameter.requires_grad for parameter in result.served.fold_in.encoder.parameters())
