"""The exported graphs compute what the network computes, whatever is missing and however long the history.

One suite for content models, for id-based ones and for small ones with rows of their own: the service can not tell
them apart.
"""

import re
from typing import get_args

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest
import torch

from api_schemas.manifest import Modality
from index.bundle import Bundle, EncodedItems
from index.dataset import Dataset
from index.explain import METHODS, explain
from index.features import ModelInputs, from_dataset, pad_vectors
from index.item_encoder import ItemEncoder
from index.ranking import over_queries
from index.store import ArtifactStore
from tests.factor_runs import FACTOR_FAMILIES, OWN_ENCODERS, WITH_BIAS, config_of, publishable, run
from tests.id_bundles import without
from tests.servables import TOYS, toy_model
from tests.skips import ROOT
from training.config import RunConfig, parse_config
from training.evaluate_bundle import judge_bundle
from training.export import EXPLAINER_OUTPUTS, graphs_of
from training.factors.served import ServedById
from training.factors.served_concepts import ServedConcepts
from training.factors.serving import check_servable
from training.faithfulness import JudgedUsers
from training.golden import TOLERANCE, ParityError, check_parity
from training.models import ContentFamily, FeatureSpec, ServableModel
from training.publish import publish_bundle

LENGTH, DIM = 6, 11
LEARNED_USERS = [
    *(kind for kind in FACTOR_FAMILIES if f"{kind}+bias" not in WITH_BIAS),
    *WITH_BIAS,
    "lightgcn",
    "mmgcn",
]
"""What can have a bias has one: its graphs have all parts then. Graph families are served by the same graphs: one that
is ids alone, one of content."""
ID_BASED = [*LEARNED_USERS, *OWN_ENCODERS, "popularity"]
OPTIONS = {"base-ids-positions": "ids = true\npositions = true", "sasrec-ids": "ids = true"}
"""The one network that takes a history for a set unless it learns places, and one that always reads its order."""
COMMON_FILES = {
    *("item_encoder.onnx", "state_encoder.onnx", "user_encoder.onnx", "explainer.onnx"),
    *("golden.npz", "config.toml", "metrics.json"),
}
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
    """A published bundle, and the model that it was made from."""

    def __init__(self, store: ArtifactStore, *, model: ServableModel, config: RunConfig, **bundle) -> None:
        self.config, self.model = config, model.train()
        self.before = {name: value.clone() for name, value in model.state_dict().items()}
        self.trainable = [parameter.requires_grad for parameter in model.parameters()]
        self.progress: list[tuple[str, int, int]] = []
        self.version = publish_bundle(
            store, model=model, config=config, on_progress=lambda *what: self.progress.append(what), **bundle
        )
        self.path, self.manifest = store.open_bundle(self.version)
        self.bundle = Bundle.open(self.path)
        self.graphs = graphs_of(model)
        self.num_modalities, self.num_parts = len(model.modalities), len(model.part_names)
        self.default = default_query(model).detach().numpy()
        self._sessions: dict[str, ort.InferenceSession] = {}

    def run(self, graph: str, inputs: dict) -> dict:
        if graph not in self._sessions:
            file = str(self.path / f"{graph}.onnx")
            self._sessions[graph] = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs = self.graphs[graph].outputs
        return dict(zip(outputs, self._sessions[graph].run(list(outputs), inputs), strict=True))

    def agrees(self, graph: str, inputs: dict) -> dict:
        """Assert parity on these inputs, and that nothing is NaN; return the exported graph's outputs.

        `TOLERANCE` of a tensor's largest value: both sides sum in float32 (6e-8) a few hundred terms, in another order.
        Gradients where the attention is all but decided lose most: 2.1e-5 was seen with AVX-512, less with AVX2.
        """
        found, expected = self.run(graph, inputs), self.graphs[graph](inputs)
        for name, value in found.items():
            assert np.isfinite(value).all(), name
            np.testing.assert_allclose(
                value, expected[name], rtol=0, atol=TOLERANCE * max(np.abs(expected[name]).max(), 0.1)
            )
        return found


@torch.no_grad()
def default_query(model: ServableModel) -> torch.Tensor:
    """What the model answers without a history."""
    if isinstance(model, ServedConcepts):
        nothing_1QH = torch.zeros(1, model.num_queries, len(model.concepts.first_H))
        return model.concepts.queries(model.concepts.read(nothing_1QH)[0])[0]
    return model.users.default_D if isinstance(model, ServedById) else model.default_query


def untrained_model(kind: str, dataset: Dataset, store: ArtifactStore) -> Exported:
    """Random weights, far from flat."""
    modalities = [Modality(name=one.name, dim=one.dim) for one in dataset.manifest.modalities]
    config = parse_config(CONFIG % ("base" if kind in TOYS else kind.partition("-")[0]) + OPTIONS.get(kind, ""))
    if kind in TOYS:
        model = toy_model(kind, modalities, dim=DIM, history_length=LENGTH)
    else:
        torch.manual_seed(0)
        trained_I = torch.ones(dataset.num_items, dtype=torch.bool)
        model = config.model.build(FeatureSpec(tuple(modalities), trained_I))
        with torch.no_grad():
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.6)
    few = JudgedUsers([np.arange(8), np.arange(3), np.arange(0)], ["visual", None, "text"])
    metrics = {"valid": {"recall@20": 0.5}}
    return Exported(store, model=model, config=config, dataset=dataset, metrics=metrics, judged=few)


def id_based_model(kind: str, dataset: Dataset, store: ArtifactStore) -> Exported:
    """Trained for half a second: maps, imputer and tables are fitted to something."""
    sizes = [f"model.history_length={LENGTH}", *([f"model.dim={DIM}"] if kind != "popularity" else [])]
    config = config_of(kind, *sizes)
    trained = run(config, dataset.path, store.root / "checkpoints")
    check_servable(trained.served, config)
    exported = Exported(store, **publishable(trained, config, dataset))
    exported.trained = trained
    return exported


@pytest.fixture(scope="module")
def export(toy_dataset, tmp_path_factory):
    """Exports once, whoever asks: tracing takes seconds."""
    made: dict[str, Exported] = {}

    def exported(kind: str) -> Exported:
        if kind not in made:
            store = ArtifactStore(tmp_path_factory.mktemp(kind))
            make = id_based_model if kind in ID_BASED else untrained_model
            made[kind] = make(kind, Dataset.open(toy_dataset), store)
        return made[kind]

    return exported


@pytest.fixture(scope="module", params=[*networks(), *OPTIONS, *ID_BASED, *TOYS])
def exported(request, export) -> Exported:
    return export(request.param)


@pytest.fixture(scope="module", params=LEARNED_USERS)
def learned(request, export) -> Exported:
    """One of a model that has learned users."""
    return export(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """Other numbers than those of golden.npz."""
    return np.random.default_rng(1)


def histories(exported: Exported, rng, *, lengths) -> dict:
    """Explainer inputs: histories of these lengths, complete items, junk in the padding, three candidates."""
    shape, width = (len(lengths), LENGTH, exported.num_parts), exported.model.state_dim
    return {
        "states": rng.normal(size=(*shape, width)).astype(np.float32),
        "presence": np.ones(shape, dtype=np.bool_),
        "mask": np.arange(LENGTH) < np.array(lengths)[:, None],
        "candidate_states": rng.normal(size=(3, exported.num_parts, width)).astype(np.float32),
        "candidate_presence": np.ones((3, exported.num_parts), dtype=np.bool_),
        **ages(exported, rng, len(lengths)),
    }


def ages(exported: Exported, rng, num: int) -> dict:
    """What models that read ages are given beside: hours to years, in no order, junk in the padding."""
    if not exported.model.reads_ages:
        return {}
    return {"ages": (10 ** rng.uniform(3, 8, (num, LENGTH))).astype(np.float32)}


def raw_items(exported: Exported, rng, presence) -> dict:
    raw = {m.name: rng.normal(size=(len(presence), m.dim)).astype(np.float32) for m in exported.model.modalities}
    return {**{name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in raw.items()}, "presence": presence}


def subsets(num_modalities: int) -> np.ndarray:
    """All of them, from none to all."""
    return (np.arange(2**num_modalities)[:, None] >> np.arange(num_modalities) & 1).astype(np.bool_)


def test_items_agree_with_the_model_for_every_set_of_modalities(exported, rng):
    presence = subsets(exported.num_modalities)
    out = exported.agrees("item_encoder", raw_items(exported, rng, presence))
    parts = exported.model.part_presence(torch.tensor(presence)).numpy()
    again = exported.agrees("state_encoder", {"states": out["states"], "presence": parts})
    np.testing.assert_array_equal(again["candidate"], out["candidate"])
    assert not out["candidate"][0].any(), "an item without any modality is zero"
    assert not out["states"][:, : exported.num_modalities][~presence].any()


def test_users_agree_with_the_model_for_every_length(exported, rng):
    lengths = np.arange(LENGTH + 1)
    history = rng.normal(size=(len(lengths), LENGTH, exported.model.history_dim)).astype(np.float32)
    mask = np.arange(LENGTH) < lengths[:, None]
    given = {"history": history, "mask": mask, **ages(exported, rng, len(lengths))}
    out = exported.agrees("user_encoder", given)
    np.testing.assert_allclose(out["queries"][0], np.atleast_2d(exported.default), atol=2e-6)
    for padding in (0.0, 1e30, np.nan):
        junk = {**given, "history": np.where(mask[..., None], history, np.float32(padding))}
        if "ages" in given:
            junk["ages"] = np.where(mask, given["ages"], np.float32(padding))
        np.testing.assert_array_equal(exported.run("user_encoder", junk)["queries"], out["queries"])


def test_explanations_agree_with_the_model_for_every_length_and_each_part_missing(exported, rng):
    complete = histories(exported, rng, lengths=range(LENGTH + 1))
    exported.agrees("explainer", complete)
    for column in range(exported.num_parts):
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
    np.testing.assert_allclose(out["queries"][0], np.atleast_2d(exported.default), atol=2e-6)
    for name in EXPLAINER_OUTPUTS[1:5]:
        assert not out[name].any(), name


def test_what_lies_in_absent_modalities_and_padding_changes_nothing(exported, rng):
    inputs = histories(exported, rng, lengths=[2, LENGTH])
    inputs["presence"][1, 3, 0] = False
    inputs["candidate_presence"][0, 1] = False
    nan = {name: value.copy() for name, value in inputs.items()}
    nan["states"][0, 2:] = nan["states"][1, 3, 0] = nan["candidate_states"][0, 1] = np.nan
    nan["presence"][0, 2:] = False
    if "ages" in nan:
        nan["ages"][0, 2:] = np.nan
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
    for name in without.keys() & {"states", "presence", "mask", "ages"}:
        without[name][0] = np.roll(np.delete(inputs[name][0], 1, axis=0), 0, axis=0)[[0, 1, 2, 3, 4, 4]]
    without["mask"][0] = np.arange(LENGTH) < 3
    out, expected = exported.run("explainer", inputs), exported.run("explainer", without)
    np.testing.assert_allclose(out["queries"], expected["queries"], atol=1e-6 * max(np.abs(out["queries"]).max(), 1))
    np.testing.assert_allclose(out["scores"], expected["scores"], rtol=1e-6, atol=1e-5)
    assert not out["item_interest"][0, :, 1].any()

    history = rng.normal(size=(1, LENGTH, exported.model.history_dim)).astype(np.float32)
    history[0, 1] = 0.0
    mask, fewer = np.ones((1, LENGTH), dtype=np.bool_), np.ones((1, LENGTH), dtype=np.bool_)
    fewer[0, 1] = False
    np.testing.assert_array_equal(
        exported.bundle.encode_users(history, mask), exported.bundle.encode_users(history, fewer)
    )


def test_a_batch_gives_what_its_rows_give_alone(exported, rng):
    inputs = histories(exported, rng, lengths=[0, 1, 4, LENGTH])
    together = exported.run("explainer", inputs)
    of_users = inputs.keys() & {"states", "presence", "mask", "ages"}
    for row in range(4):
        alone = {**inputs, **{name: inputs[name][row : row + 1] for name in of_users}}
        for name, value in exported.run("explainer", alone).items():
            np.testing.assert_allclose(value[0], together[name][row], atol=5e-6 * max(np.abs(value).max(), 1))
    one = {**inputs, **{name: inputs[name][1:2] for name in ("candidate_states", "candidate_presence")}}
    np.testing.assert_allclose(exported.run("explainer", one)["scores"][:, 0], together["scores"][:, 1], atol=2e-6)


def test_a_longer_history_is_cut_to_its_last_items(exported, rng):
    states = rng.normal(size=(LENGTH + 3, exported.num_parts, exported.model.state_dim)).astype(np.float32)
    presence = np.ones(states.shape[:2], dtype=np.bool_)
    candidate = {"candidate_states_KMS": states[:1], "candidate_presence_KM": presence[:1]}
    long = explain(exported.bundle, method="decomposition", states_LMS=states, presence_LM=presence, **candidate)
    last = {"states_LMS": states[3:], "presence_LM": presence[3:]}
    short = explain(exported.bundle, method="decomposition", **last, **candidate)
    np.testing.assert_array_equal(long.scores_K, short.scores_K)
    np.testing.assert_array_equal(long.history_KL, np.concatenate([np.zeros((1, 3)), short.history_KL], axis=1))
    np.testing.assert_array_equal(long.grid_KLM[:, 3:], short.grid_KLM)

    items = exported.bundle.encode_states(states, presence)
    padded, mask = pad_vectors(items.history, length=LENGTH)
    query = exported.bundle.encode_users(padded[None], mask[None])[0]
    score = over_queries(query @ items.candidates[:1].T, axis=0, scorer=exported.model.scorer)
    np.testing.assert_allclose(score, long.scores_K, rtol=1e-5, atol=1e-4)


def test_the_model_is_left_as_it_was(exported):
    assert exported.model.training
    for name, value in exported.model.state_dict().items():
        assert torch.equal(value, exported.before[name]), name
    assert [parameter.requires_grad for parameter in exported.model.parameters()] == exported.trainable


def test_the_bundle_says_what_it_is(exported, toy_dataset):
    manifest = exported.manifest
    assert manifest.version == exported.version
    assert 0.4 < manifest.metrics["recall@20"] <= 1
    assert manifest.data_fingerprint == Dataset.open(toy_dataset).fingerprint()
    assert manifest.graphs["explainer"].outputs[2].shape == ["batch", "candidates", LENGTH, exported.num_parts]
    assert {entry.path for entry in manifest.files} >= COMMON_FILES
    assert parse_config((exported.path / "config.toml").read_text()) == exported.config
    done, total = exported.progress[-1][1:]
    assert exported.progress[-1][0] == "explanations"
    assert done == total > 0
    exported.bundle.check_golden()
    for field in ("history_dim", "history_is_candidate", "num_queries", "scorer"):
        assert getattr(manifest, field) == getattr(exported.model, field)
    assert manifest.history_ages == exported.model.reads_ages


def test_every_file_of_the_bundle_is_documented(exported):
    documented = re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs/bundles.md").read_text(), re.MULTILINE)
    assert {entry.path for entry in exported.manifest.files} <= set(documented)


def test_no_path_of_the_machine_is_in_a_graph(exported):
    for graph in exported.graphs.values():
        content = (exported.path / graph.file).read_bytes()
        assert b".py" not in content, graph.file


def test_a_graph_of_other_weights_is_refused(exported):
    with np.load(exported.path / "golden.npz") as arrays:
        golden = dict(arrays)
    check_parity(exported.path, exported.graphs, golden)
    golden["user_encoder/out/queries"] = golden["user_encoder/out/queries"] * 1.001
    with pytest.raises(ParityError, match=r"user_encoder\.onnx: queries"):
        check_parity(exported.path, exported.graphs, golden)


def test_encoding_through_the_bundle_takes_no_items_too(exported):
    none = ModelInputs(
        tuple(np.zeros((0, m.dim), np.float32) for m in exported.model.modalities),
        np.zeros((0, exported.num_modalities), np.bool_),
    )
    assert exported.bundle.encode_items(none).history.shape == (0, exported.model.history_dim)
    empty = np.zeros((0, exported.num_parts, exported.model.state_dim), np.float32)
    absent = np.zeros(empty.shape[:2], np.bool_)
    assert exported.bundle.encode_states(empty, absent).candidates.shape == (0, exported.model.dim)


def encode(learned: Exported, inputs: ModelInputs, item_ids: list[str]) -> EncodedItems:
    """As a rebuild does it."""
    encoder = ItemEncoder(learned.bundle)
    return encoder.encode(inputs, encoder.known_rows(pa.chunked_array([pa.array(item_ids, pa.string())])))


def catalogue(learned: Exported, dataset: Dataset) -> ModelInputs:
    return from_dataset(dataset, slice(0, dataset.num_items), learned.manifest.modalities)


def test_an_id_based_model_is_published_with_what_it_learned(learned, toy_dataset):
    dataset, manifest, trained = Dataset.open(toy_dataset), learned.manifest, learned.trained
    assert manifest.explanation_methods[0] == "decomposition"
    assert manifest.fold_in.recall >= 0.8 * manifest.fold_in.recall_of_known
    assert len(manifest.modality_mask) == (3 if manifest.family == "invrl" else 0)
    for mask in manifest.modality_mask:
        with_mask, without_mask = mask.contribution_with_mask, mask.contribution_without_mask
        assert 0 < with_mask < without_mask <= with_mask + mask.contribution_removed + 1e-6
    encoded = encode(learned, catalogue(learned, dataset), dataset.item_ids)
    np.testing.assert_allclose(encoded.candidates, trained.served.tables.items_ID, atol=2e-5)
    judged = judge_bundle(learned.bundle, dataset, which="test", num_explained=0, on_progress=lambda *_: None)
    assert judged.metrics == pytest.approx(trained.metrics["test_from_history"], abs=1e-6)
    assert judged.metrics_of_known == pytest.approx(manifest.metrics, abs=1e-6)
    tables = {"known_users.arrow", "known_queries.npy"}
    if manifest.warm is not None:
        tables |= {"warm_items.arrow", "warm_states.npy"}
    assert {entry.path for entry in manifest.files} == COMMON_FILES | tables | {"stages.json"}


def splits_add_up(learned: Exported, items: EncodedItems, *, rows: list[int]) -> dict[str, np.ndarray]:
    """Assert that every method's split of some items' scores adds up; return the contributions by method."""
    found = {}
    given = {
        "states_LMS": items.states[3:8],
        "presence_LM": items.presence[3:8],
        "candidate_states_KMS": items.states[rows],
        "candidate_presence_KM": items.presence[rows],
    }
    mask = np.arange(LENGTH)[None] < 5
    query = learned.bundle.encode_users(np.pad(items.history[3:8], [(0, LENGTH - 5), (0, 0)])[None], mask)[0]
    for method in METHODS:
        arrays = explain(learned.bundle, method=method, **given)
        allowed = 1e-5 * (1 + np.abs(arrays.scores_K))
        assert (np.abs(arrays.scores_K - items.candidates[rows] @ query[0]) < allowed).all()
        assert (np.abs(arrays.contributions_KM.sum(axis=1) + arrays.residual_K - arrays.scores_K) < allowed).all()
        if method == "decomposition":
            assert (np.abs(arrays.residual_K) < allowed).all()
        found[method] = arrays.contributions_KM
    return found


def holding(learned: Exported, item_ids: list[str]) -> np.ndarray:
    """Return of which modalities the warm table has each item's part `[B, M]`: graph models learn all parts."""
    known = ItemEncoder(learned.bundle).known_rows(pa.chunked_array([pa.array(item_ids, pa.string())])) >= 0
    warm = learned.manifest.warm.parts if learned.manifest.warm is not None else []
    return known[:, None] & np.array([modality.name in warm for modality in learned.model.modalities])


def test_items_that_lack_a_modality_have_no_part_of_it_unless_it_was_learned_and_scores_that_add_up(
    learned, toy_dataset
):
    dataset = Dataset.open(toy_dataset)
    complete = catalogue(learned, dataset)
    for ids in (dataset.item_ids, [f"new-{item_id}" for item_id in dataset.item_ids]):
        for column in range(learned.num_modalities):
            items = encode(learned, without(complete, column), ids)
            assert np.isfinite(items.candidates).all()
            held = holding(learned, ids)[:, column]
            np.testing.assert_array_equal(items.presence[:, column], held)
            assert items.presence[:, learned.num_modalities :].all()
            kept = np.where(items.presence[..., None], items.states, 0)
            np.testing.assert_allclose(kept.sum(axis=1), items.candidates, atol=2e-5)
            contributions = splits_add_up(learned, items, rows=[0, 1, 20, 59])
            for method, values_KM in contributions.items():  # by the candidate's parts or the history's: both lack it
                assert held.any() or not values_KM[:, column].any(), method


def test_an_item_without_any_modality_is_what_was_learned_or_an_average_item(learned, toy_dataset):
    dataset = Dataset.open(toy_dataset)
    bare = catalogue(learned, dataset)
    bare = ModelInputs(tuple(np.zeros_like(values) for values in bare.features), np.zeros_like(bare.presence))
    known = encode(learned, bare, dataset.item_ids)
    new = encode(learned, bare, [f"new-{item_id}" for item_id in dataset.item_ids])
    held = holding(learned, dataset.item_ids)
    for items, expected in ((known, held), (new, np.zeros_like(held))):
        assert np.isfinite(items.candidates).all()
        np.testing.assert_array_equal(items.presence[:, : learned.num_modalities], expected)
        contributions = splits_add_up(learned, items, rows=[0, 30])
        assert expected.any() or not contributions["decomposition"][:, : learned.num_modalities].any()
    np.testing.assert_array_equal(new.candidates, np.broadcast_to(new.candidates[0], new.candidates.shape))
    if learned.manifest.warm is not None:
        assert np.ptp(known.candidates, axis=0).max() > 0.01, "known ones differ by what was learned of each"
        assert new.candidates.any(), "nothing in place of what is learned would be a bonus"
