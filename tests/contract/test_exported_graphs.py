"""The exported graphs compute what the network computes, whatever is missing and however long the history."""

from typing import get_args

import numpy as np
import onnxruntime as ort
import pytest
import torch

from api_schemas.manifest import Modality
from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import explain
from index.features import ModelInputs, pad_vectors
from index.store import ArtifactStore
from training.config import parse_config
from training.export import EXPLAINER_OUTPUTS, graphs_of
from training.faithfulness import JudgedUsers
from training.golden import ParityError, check_parity
from training.models import ContentFamily, FeatureSpec
from training.publish import publish_bundle

LENGTH, DIM = 6, 11
CONFIG = f"""
name = "parity"
[model]
kind = "%s"
dim = {DIM}
history_length = {LENGTH}
"""


def networks() -> list[str]:
    """One kind for each network class in the union: kinds that share a network share its graphs."""
    spec = FeatureSpec(())
    kinds = {type(config().build(spec)): config().kind for config in get_args(ContentFamily)}
    return list(kinds.values())


class Exported:
    """A published bundle of random, far from flat weights, and the model that it was made from."""

    def __init__(self, kind: str, dataset: Dataset, store: ArtifactStore) -> None:
        config = parse_config(CONFIG % kind)
        torch.manual_seed(0)
        modalities = [Modality(name=one.name, dim=one.dim) for one in dataset.manifest.modalities]
        self.model = config.model.build(FeatureSpec(tuple(modalities)))
        with torch.no_grad():
            for parameter in self.model.parameters():
                torch.nn.init.normal_(parameter, std=0.6)
        self.model.train()
        self.before = {name: value.clone() for name, value in self.model.state_dict().items()}
        judged = JudgedUsers([np.arange(8), np.arange(3), np.arange(0)], ["visual", None, "text"])
        self.progress: list[tuple[str, int, int]] = []
        self.version = publish_bundle(
            store,
            model=self.model,
            config=config,
            dataset=dataset,
            metrics={"valid": {"recall@20": 0.5}},
            judged=judged,
            on_progress=lambda *what: self.progress.append(what),
        )
        self.path, self.manifest = store.open_bundle(self.version)
        self.bundle = Bundle.open(self.path)
        self.graphs = graphs_of(self.model)
        self.num_modalities = len(self.model.modalities)

    def run(self, graph: str, inputs: dict) -> dict:
        session = ort.InferenceSession(str(self.path / f"{graph}.onnx"), providers=["CPUExecutionProvider"])
        return dict(zip(self.graphs[graph].outputs, session.run(list(self.graphs[graph].outputs), inputs), strict=True))

    def agrees(self, graph: str, inputs: dict) -> dict:
        """Assert parity on these inputs, and that nothing is NaN; return the exported graph's outputs.

        2e-5 of a tensor's largest value: both sides sum in float32 (6e-8) a few hundred terms, in another order.
        Gradients where the attention is all but decided lose most: 1.2e-5 was seen with AVX-512, less with AVX2.
        """
        found, expected = self.run(graph, inputs), self.graphs[graph](inputs)
        for name, value in found.items():
            assert np.isfinite(value).all(), name
            np.testing.assert_allclose(
                value, expected[name], rtol=0, atol=2e-5 * max(np.abs(expected[name]).max(), 0.1)
            )
        return found


@pytest.fixture(scope="module", params=networks())
def exported(request, toy_dataset, tmp_path_factory) -> Exported:
    """Exported once: tracing a gradient takes a while."""
    return Exported(request.param, Dataset.open(toy_dataset), ArtifactStore(tmp_path_factory.mktemp("exported")))


@pytest.fixture
def rng() -> np.random.Generator:
    """Other numbers than those of golden.npz."""
    return np.random.default_rng(1)


def histories(exported: Exported, rng, *, lengths) -> dict:
    """Explainer inputs: histories of these lengths, complete items, junk in the padding, three candidates."""
    shape = (len(lengths), LENGTH, exported.num_modalities)
    return {
        "states": rng.normal(size=(*shape, DIM)).astype(np.float32),
        "presence": np.ones(shape, dtype=np.bool_),
        "mask": np.arange(LENGTH) < np.array(lengths)[:, None],
        "candidate_states": rng.normal(size=(3, exported.num_modalities, DIM)).astype(np.float32),
        "candidate_presence": np.ones((3, exported.num_modalities), dtype=np.bool_),
    }


def raw_items(exported: Exported, rng, presence) -> dict:
    raw = {m.name: rng.normal(size=(len(presence), m.dim)).astype(np.float32) for m in exported.model.modalities}
    return {**{name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in raw.items()}, "presence": presence}


def subsets(num_modalities: int) -> np.ndarray:
    """All of them, from none to all."""
    return (np.arange(2**num_modalities)[:, None] >> np.arange(num_modalities) & 1).astype(np.bool_)


def test_items_agree_with_the_model_for_every_set_of_modalities(exported, rng):
    presence = subsets(exported.num_modalities)
    out = exported.agrees("item_encoder", raw_items(exported, rng, presence))
    again = exported.agrees("state_encoder", {"states": out["states"], "presence": presence})
    np.testing.assert_array_equal(again["candidate"], out["candidate"])
    assert not out["candidate"][0].any(), "an item without any modality is zero"
    assert not out["states"][~presence].any()


def test_users_agree_with_the_model_for_every_length(exported, rng):
    lengths = np.arange(LENGTH + 1)
    history = rng.normal(size=(len(lengths), LENGTH, DIM)).astype(np.float32)
    mask = np.arange(LENGTH) < lengths[:, None]
    out = exported.agrees("user_encoder", {"history": history, "mask": mask})
    default = exported.model.default_query.detach().numpy()
    np.testing.assert_allclose(out["queries"][0], default, atol=1e-7)


def test_explanations_agree_with_the_model_for_every_length_and_each_modality_missing(exported, rng):
    complete = histories(exported, rng, lengths=range(LENGTH + 1))
    exported.agrees("explainer", complete)
    for column in range(exported.num_modalities):
        for side in ("presence", "candidate_presence"):
            lacking = {**complete, side: complete[side].copy()}
            lacking[side][..., column] = False
            out = exported.agrees("explainer", lacking)
            if side == "presence":
                assert not out["modality_interest"][..., column].any()
            else:
                assert not out["contributions"][..., column].any()
    none = {**complete, "presence": np.zeros_like(complete["presence"])}
    exported.agrees("explainer", none)


def test_an_empty_history_gives_the_default_query_and_no_interest(exported, rng):
    out = exported.agrees("explainer", histories(exported, rng, lengths=[0]))
    np.testing.assert_allclose(out["queries"][0], exported.model.default_query.detach().numpy(), atol=1e-7)
    for name in EXPLAINER_OUTPUTS[1:5]:
        assert not out[name].any(), name


def test_what_lies_in_absent_modalities_and_padding_changes_nothing(exported, rng):
    inputs = histories(exported, rng, lengths=[2, LENGTH])
    inputs["presence"][1, 3, 0] = False
    inputs["candidate_presence"][0, 1] = False
    nan = {name: value.copy() for name, value in inputs.items()}
    nan["states"][0, 2:] = nan["states"][1, 3, 0] = nan["candidate_states"][0, 1] = np.nan
    nan["presence"][0, 2:] = False
    expected = exported.run("explainer", inputs)
    for name, value in exported.run("explainer", nan).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)

    items = raw_items(exported, rng, ~np.eye(exported.num_modalities, dtype=np.bool_))
    expected = exported.run("item_encoder", items)
    for column, modality in enumerate(exported.model.modalities):
        items[modality.name][column] = np.nan
    for name, value in exported.run("item_encoder", items).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_history_item_without_any_modality_is_no_item(exported, rng):
    inputs = histories(exported, rng, lengths=[4])
    inputs["presence"][0, 1] = False
    without = {name: value.copy() for name, value in inputs.items()}
    for name in ("states", "presence", "mask"):
        without[name][0] = np.roll(np.delete(inputs[name][0], 1, axis=0), 0, axis=0)[[0, 1, 2, 3, 4, 4]]
    without["mask"][0] = np.arange(LENGTH) < 3
    out, expected = exported.run("explainer", inputs), exported.run("explainer", without)
    np.testing.assert_allclose(out["queries"], expected["queries"], atol=1e-6)
    np.testing.assert_allclose(out["scores"], expected["scores"], atol=1e-5)
    assert not out["item_interest"][0, :, 1].any()

    history = rng.normal(size=(1, LENGTH, DIM)).astype(np.float32)
    history[0, 1] = 0.0
    mask, fewer = np.ones((1, LENGTH), dtype=np.bool_), np.ones((1, LENGTH), dtype=np.bool_)
    fewer[0, 1] = False
    np.testing.assert_array_equal(
        exported.bundle.encode_users(history, mask), exported.bundle.encode_users(history, fewer)
    )


def test_a_batch_gives_what_its_rows_give_alone(exported, rng):
    inputs = histories(exported, rng, lengths=[0, 1, 4, LENGTH])
    together = exported.run("explainer", inputs)
    for row in range(4):
        alone = {**inputs, **{name: inputs[name][row : row + 1] for name in ("states", "presence", "mask")}}
        for name, value in exported.run("explainer", alone).items():
            np.testing.assert_allclose(value[0], together[name][row], atol=5e-6 * max(np.abs(value).max(), 1))
    one = {**inputs, **{name: inputs[name][1:2] for name in ("candidate_states", "candidate_presence")}}
    np.testing.assert_allclose(exported.run("explainer", one)["scores"][:, 0], together["scores"][:, 1], atol=2e-6)


def test_a_longer_history_is_cut_to_its_last_items(exported, rng):
    states = rng.normal(size=(LENGTH + 3, exported.num_modalities, DIM)).astype(np.float32)
    presence = np.ones(states.shape[:2], dtype=np.bool_)
    candidate = {"candidate_states_KMS": states[:1], "candidate_presence_KM": presence[:1]}
    long = explain(exported.bundle, method="decomposition", states_LMS=states, presence_LM=presence, **candidate)
    last = {"states_LMS": states[3:], "presence_LM": presence[3:]}
    short = explain(exported.bundle, method="decomposition", **last, **candidate)
    np.testing.assert_array_equal(long.scores_K, short.scores_K)
    np.testing.assert_array_equal(long.history_KL, np.concatenate([np.zeros((1, 3)), short.history_KL], axis=1))
    np.testing.assert_array_equal(long.grid_KLM[:, 3:], short.grid_KLM)

    rows = exported.bundle.encode_states(states, presence).history
    padded, mask = pad_vectors(rows, length=LENGTH)
    query = exported.bundle.encode_users(padded[None], mask[None])[0]
    np.testing.assert_allclose(query @ rows[0], long.scores_K[:1], atol=1e-4)


def test_the_model_is_left_as_it_was(exported):
    assert exported.model.training
    for name, value in exported.model.state_dict().items():
        assert torch.equal(value, exported.before[name]), name
    assert all(parameter.requires_grad for parameter in exported.model.parameters())


def test_the_bundle_says_what_it_is(exported, toy_dataset):
    manifest = exported.manifest
    assert manifest.version == exported.version
    assert manifest.metrics == {"recall@20": 0.5}
    assert manifest.data_fingerprint == Dataset.open(toy_dataset).fingerprint()
    assert manifest.graphs["explainer"].outputs[2].shape == ["batch", "candidates", LENGTH, exported.num_modalities]
    assert {entry.path for entry in manifest.files} >= {"config.toml", "metrics.json", "golden.npz", "explainer.onnx"}
    assert parse_config((exported.path / "config.toml").read_text()).model.dim == DIM
    assert exported.progress[-1] == ("explanations", 3, 3)
    exported.bundle.check_golden()


def test_no_path_of_the_machine_is_in_a_graph(exported):
    for graph in exported.graphs.values():
        content = (exported.path / graph.file).read_bytes()
        assert b".py" not in content, graph.file


def test_a_graph_of_other_weights_is_refused(exported):
    with np.load(exported.path / "golden.npz") as arrays:
        golden = dict(arrays)
    check_parity(exported.path, exported.graphs, golden)
    golden["explainer/out/modality_interest"] = golden["explainer/out/modality_interest"] * 1.001
    with pytest.raises(ParityError, match=r"explainer\.onnx: modality_interest"):
        check_parity(exported.path, exported.graphs, golden)


def test_encoding_through_the_bundle_takes_no_items_too(exported):
    none = ModelInputs(
        tuple(np.zeros((0, m.dim), np.float32) for m in exported.model.modalities),
        np.zeros((0, exported.num_modalities), np.bool_),
    )
    assert exported.bundle.encode_items(none).history.shape == (0, DIM)
    empty = np.zeros((0, exported.num_modalities, DIM), np.float32)
    assert exported.bundle.encode_states(empty, none.presence).candidates.shape == (0, DIM)
