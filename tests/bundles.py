"""A model-free bundle: four small ONNX graphs that fulfil the graph contract, built without torch in milliseconds.

Its model is linear, so that every number can be checked by hand (`Reference`): a modality's state is its raw vector of
length 1 times a fixed random matrix; an item is the mean of the states it has; a user is the mean of the last L items,
once for each query vector with other signs; a user without items is a fixed vector. Similar items get similar vectors,
so on the toy data it recommends sensibly, and popularity does not beat it.

    store = ArtifactStore(tmp_path / "store")
    bundle_version = make_bundle(store, dataset_path, dim=16, history_length=20)
    snapshot_version = make_snapshot(store, dataset_path)        # makes the bundle too, and points CURRENT

For load tests: `make_random_dataset(path, num_items=100_000)` with `make_snapshot(..., dim=64, history_length=50)`.

Legend of shapes: `N` items, `B` batch, `L` history length, `M` modalities, `D` vector width, `S` state width (= D
here), `H` history width, `Q` query vectors a user, `K` candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from api_schemas.manifest import BundleManifest, Faithfulness, GraphSpec, Modality, TensorSpec
from index.bundle import EXPLAINER_OUTPUTS
from index.config import RebuildConfig
from index.dataset import Dataset
from index.dataset_write import DatasetWriter
from index.features import ModelInputs, from_dataset
from index.rebuild import rebuild
from index.store import UNPUBLISHED, ArtifactStore

_OPSET = 18
_DTYPES = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}


@runtime_checkable
class Ranks(Protocol):
    """A model whose scores are no inner products."""

    def rank(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Reference:
    """The model in NumPy: what the graphs have to give."""

    modalities: tuple[Modality, ...]
    matrices: tuple[np.ndarray, ...]  # by modality [D_m, S]
    gains: np.ndarray  # [Q, D]
    default: np.ndarray  # [D]
    history_is_candidate: bool
    scorer: str = "max"

    @property
    def dim(self) -> int:
        return len(self.default)

    @property
    def history_dim(self) -> int:
        return self.dim if self.history_is_candidate else self.dim + 1

    def encode_items(self, inputs: ModelInputs) -> dict[str, np.ndarray]:
        states_BMS = np.stack([x @ w for x, w in zip(inputs.features, self.matrices, strict=True)], axis=1)
        candidate_BD = mean(states_BMS, inputs.presence)
        ones = np.ones((len(inputs), self.history_dim - self.dim), np.float32)
        history_BH = np.concatenate([candidate_BD, ones], axis=1)
        return {"candidate": candidate_BD, "history": history_BH, "states": states_BMS}

    def encode_users(self, history_BLH: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
        user_BD = mean(history_BLH[..., : self.dim], mask_BL)
        user_BD = np.where(mask_BL.any(axis=1, keepdims=True), user_BD, self.default)
        return (user_BD[:, None, :] * self.gains).astype(np.float32)

    def score(self, products_BQK: np.ndarray) -> np.ndarray:
        return products_BQK.max(axis=1) if self.scorer == "max" else np.logaddexp.reduce(products_BQK, axis=1)

    def encode_states(self, states, presence) -> dict[str, np.ndarray]:
        candidate_BD = mean(states, presence)
        ones = np.ones((len(states), self.history_dim - self.dim), np.float32)
        return {"candidate": candidate_BD, "history": np.concatenate([candidate_BD, ones], axis=1)}

    def explain(self, states, presence, mask, candidate_states, candidate_presence) -> dict[str, np.ndarray]:
        items_BLD = mean(states, presence)
        user_BD = np.where(mask.any(axis=1, keepdims=True), mean(items_BLD, mask), self.default)
        queries_BQD = user_BD[:, None, :] * self.gains
        candidate_KD = mean(candidate_states, candidate_presence)
        products_BQK = queries_BQD @ candidate_KD.T
        gain_BKD = self.gains[products_BQK.argmax(axis=1)]
        if self.scorer == "logsumexp":
            gain_BKD = np.einsum("bqk,qd->bkd", np.exp(products_BQK - self.score(products_BQK)[:, None]), self.gains)
        gradient_BKD = candidate_KD * gain_BKD
        slope_BK = gradient_BKD.mean(axis=2)
        weight_BL = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
        weight_BLM = weight_BL[:, :, None] * presence / np.maximum(presence.sum(axis=2, keepdims=True), 1)
        share_KM = candidate_presence / np.maximum(candidate_presence.sum(axis=1, keepdims=True), 1)
        user_BKD = user_BD[:, None] * gain_BKD
        outputs = {
            "scores": self.score(products_BQK),
            "item_interest": weight_BL[:, None] * slope_BK[..., None],
            "modality_interest": weight_BLM[:, None] * slope_BK[..., None, None],
            "item_grad_x_input": weight_BL[:, None] * np.einsum("bld,bkd->bkl", items_BLD, gradient_BKD),
            "modality_grad_x_input": weight_BLM[:, None] * np.einsum("blmd,bkd->bklm", states, gradient_BKD),
            "contributions": share_KM * np.einsum("kmd,bkd->bkm", candidate_states, user_BKD),
            "queries": queries_BQD,
        }
        return {name: value.astype(np.float32) for name, value in outputs.items()}


def mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the second last axis of what the mask lets through; zero where it lets nothing."""
    total = (values * mask[..., None]).sum(axis=-2)
    return (total / np.maximum(mask.sum(axis=-1, keepdims=True), 1)).astype(np.float32)


def reference(
    modalities: list[Modality] | tuple[Modality, ...],
    *,
    dim: int = 16,
    num_queries: int = 1,
    history_is_candidate: bool = True,
    scorer: str = "max",
    seed: int = 0,
) -> Reference:
    """Draw the model's constants."""
    rng = np.random.default_rng(seed)
    draw = [rng.standard_normal((modality.dim, dim)) / np.sqrt(dim) for modality in modalities]
    gains = np.where(rng.random((num_queries, dim)) < 0.5, -1.0, 1.0)
    gains[0] = 1.0
    return Reference(
        modalities=tuple(modalities),
        matrices=tuple(matrix.astype(np.float32) for matrix in draw),
        gains=gains.astype(np.float32),
        default=(0.1 * rng.standard_normal(dim)).astype(np.float32),
        history_is_candidate=history_is_candidate,
        scorer=scorer,
    )


def make_bundle(
    store: ArtifactStore,
    dataset: Path | Dataset,
    *,
    dim: int = 16,
    history_length: int = 20,
    num_queries: int = 1,
    history_is_candidate: bool = True,
    scorer: str = "max",
    seed: int = 0,
    family: str = "toy",
) -> str:
    """Publish the bundle for a dataset's modalities and return its version."""
    data = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    modalities = [Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities]
    model = reference(
        modalities,
        dim=dim,
        num_queries=num_queries,
        history_is_candidate=history_is_candidate,
        scorer=scorer,
        seed=seed,
    )
    graphs = {
        "item_encoder": item_encoder(model),
        "state_encoder": state_encoder(model),
        "user_encoder": _user_encoder(model, history_length),
        "explainer": _explainer(model, history_length),
    }
    with store.stage("bundle", name=family) as stage:
        specs = {}
        for name, graph in graphs.items():
            onnx.save(graph, stage.path / f"{name}.onnx")
            specs[name] = graph_spec(graph, f"{name}.onnx")
        inputs = from_dataset(data, slice(0, 8), modalities)
        golden = golden_of(model, inputs, model.encode_items(inputs), inputs.presence, history_length)
        np.savez(stage.path / "golden.npz", **golden)
        (stage.path / "config.toml").write_text('kind = "toy"\n')
        (stage.path / "metrics.json").write_text("{}\n")
        methods = ("interest_gradient", "grad_x_input", "decomposition", "occlusion", "shapley")
        measured = Faithfulness(
            deletion_auc=0.2, insertion_auc=0.8, random_deletion_auc=0.5, random_insertion_auc=0.5, num_users=10
        )
        manifest = BundleManifest(
            version=UNPUBLISHED,
            created_at=datetime.now(UTC),
            family=family,
            modalities=modalities,
            dim=dim,
            history_dim=model.history_dim,
            state_dim=dim,
            history_length=history_length,
            num_queries=num_queries,
            history_is_candidate=history_is_candidate,
            scorer=scorer,
            graphs=specs,
            golden_atol=1e-5,
            explanation_methods=list(methods),
            faithfulness=dict.fromkeys(methods, measured),
            dataset_name=data.manifest.name,
            data_fingerprint=data.fingerprint(),
            code_revision="test",
            files=[],
        )
        return stage.publish(manifest)


def make_snapshot(
    store: ArtifactStore,
    dataset: Path | Dataset,
    *,
    bundle: str | None = None,
    ranker: str | None = None,
    config: RebuildConfig | None = None,
    **bundle_options: Any,
) -> str:
    """Rebuild the index of a dataset with `bundle` (made with `bundle_options` when None), and point CURRENT at it."""
    data = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    version = bundle or make_bundle(store, data, **bundle_options)
    return rebuild(
        store, bundle_version=version, ranker_version=ranker, dataset=data, config=config or RebuildConfig()
    ).version


def make_random_dataset(
    path: Path,
    *,
    num_items: int,
    dims: dict[str, int] | None = None,
    num_users: int = 1_000,
    events_per_user: int = 20,
    num_categories: int = 50,
    seed: int = 0,
) -> Path:
    """Write a catalogue of random vectors around random centres: no right answer, any size, a few seconds a million."""
    dims = dims or {"visual": 128, "text": 64}
    rng = np.random.default_rng(seed)
    rows = np.arange(num_items)
    with DatasetWriter(path, name="random", description="Random vectors for load and size") as writer:
        labels = np.array([f"category {number}" for number in range(num_categories)])
        writer.add_items(
            pa.table(
                {
                    "item_id": [f"item-{row}" for row in rows],
                    "title": [f"Item {row}" for row in rows],
                    "categories": pa.array(labels[rows % num_categories, None].tolist(), pa.list_(pa.string())),
                    "year": pa.array(1950 + rows % 75, pa.int64()),
                }
            )
        )
        for name, dim in dims.items():
            writer.add_modality(name, dim=dim, batches=_random_batches(rng, num_items, dim), dtype=np.float16)
        popularity = rng.zipf(1.3, size=num_users * events_per_user) % num_items
        events = np.arange(num_users * events_per_user)
        writer.add_interactions(
            pa.table(
                {
                    "user_id": [f"user-{event // events_per_user}" for event in events],
                    "item_id": [f"item-{item}" for item in popularity],
                    "timestamp": pa.array(1_600_000_000 + 60 * events, pa.int64()),
                }
            )
        )
        writer.publish()
    return path


def _random_batches(
    rng: np.random.Generator, num_items: int, dim: int, *, batch: int = 20_000
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    centres = rng.standard_normal((256, dim), dtype=np.float32)
    for start in range(0, num_items, batch):
        size = min(batch, num_items - start)
        values = centres[rng.integers(0, 256, size)] + rng.standard_normal((size, dim), dtype=np.float32)
        yield values.astype(np.float16), rng.random(size) > 0.02


def golden_of(
    model: Any, inputs: ModelInputs, encoded: dict[str, np.ndarray], presence: np.ndarray, length: int
) -> dict[str, np.ndarray]:
    """Return what golden.npz holds: inputs for every graph, and what the model in NumPy makes of them."""
    rng = np.random.default_rng(7)
    num_items = len(inputs)
    lengths = np.array([0, 1, length // 2, length])
    mask = np.arange(length) < lengths[:, None]
    rows = rng.integers(0, num_items, (len(lengths), length))
    history = encoded["history"][rows] * mask[..., None]
    targets = rng.integers(0, num_items, 5)
    explain = {
        "states": encoded["states"][rows],
        "presence": presence[rows],
        "mask": mask,
        "candidate_states": encoded["states"][targets],
        "candidate_presence": presence[targets],
    }
    names = [modality.name for modality in model.modalities]
    given = {
        "item_encoder": {**dict(zip(names, inputs.features, strict=True)), "presence": inputs.presence},
        "state_encoder": {"states": encoded["states"], "presence": presence},
        "user_encoder": {"history": history, "mask": mask},
    }
    expected = {
        "item_encoder": encoded,
        "state_encoder": model.encode_states(encoded["states"], presence),
        "user_encoder": {"queries": model.encode_users(history, mask)},
    }
    if isinstance(model, Ranks):
        given["ranker"] = {"queries": expected["user_encoder"]["queries"], "candidates": encoded["candidate"][targets]}
        expected["ranker"] = {"scores": model.rank(**given["ranker"])}
    else:
        given["explainer"] = explain
        expected["explainer"] = model.explain(**explain)
    golden = {f"{graph}/in/{name}": value for graph, values in given.items() for name, value in values.items()}
    golden |= {f"{graph}/out/{name}": value for graph, values in expected.items() for name, value in values.items()}
    return golden


class Graph:
    """Collects nodes, so that a graph reads like the formula it is."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def __call__(self, op: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def mean(self, values: str, mask: str, *, axis: int, output: str | None = None) -> str:
        """Mean of `values` [.., n, D] over `axis` (of n), weighted by the bool `mask` [.., n]."""
        weight = self("Cast", mask, to=TensorProto.FLOAT)
        count = self("Max", self("ReduceSum", weight, [axis], keepdims=1), np.float32(1))
        share = self("Unsqueeze", self("Div", weight, count), [axis + 1])
        # Where, not only times 0: what lies in masked places must not matter, whatever it is.
        clean = self("Where", self("Unsqueeze", mask, [axis + 1]), values, np.float32(0))
        return self("ReduceSum", self("Mul", clean, share), [axis], keepdims=0, output=output)

    def queries(self, model: Reference, items: str, mask: str, output: str) -> str:
        count = self("ReduceSum", self("Cast", mask, to=TensorProto.FLOAT), [1], keepdims=1)
        user = self("Where", self("Greater", count, np.float32(0)), self.mean(items, mask, axis=1), model.default)
        return self("Mul", self("Unsqueeze", user, [1]), model.gains, output=output)

    def build(self, inputs: dict[str, tuple[str, list]], outputs: dict[str, list]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info(name, _DTYPES[dtype], shape) for name, (dtype, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def item_encoder(model: Reference) -> onnx.ModelProto:
    g = Graph()
    num_modalities = len(model.modalities)
    states = [
        g("Unsqueeze", g("MatMul", modality.name, matrix), [1])
        for modality, matrix in zip(model.modalities, model.matrices, strict=True)
    ]
    g("Concat", *states, axis=1, output="states")
    _item(g, model)
    inputs = {modality.name: ("float32", ["batch", modality.dim]) for modality in model.modalities}
    return g.build(
        {**inputs, "presence": ("bool", ["batch", num_modalities])},
        {
            "candidate": ["batch", model.dim],
            "history": ["batch", model.history_dim],
            "states": ["batch", num_modalities, model.dim],
        },
    )


def state_encoder(model: Reference) -> onnx.ModelProto:
    g = Graph()
    num_modalities = len(model.modalities)
    _item(g, model)
    return g.build(
        {
            "states": ("float32", ["batch", num_modalities, model.dim]),
            "presence": ("bool", ["batch", num_modalities]),
        },
        {
            "candidate": ["batch", model.dim],
            "history": ["batch", model.history_dim],
        },
    )


def _item(g: Graph, model: Reference) -> None:
    """Add `candidate` and `history` of `states` and `presence`."""
    g.mean("states", "presence", axis=1, output="candidate")
    if model.history_is_candidate:
        g("Identity", "candidate", output="history")
    else:
        ones = g("Add", g("Mul", g("ReduceSum", "candidate", [1], keepdims=1), np.float32(0)), np.float32(1))
        g("Concat", "candidate", ones, axis=1, output="history")


def _user_encoder(model: Reference, length: int) -> onnx.ModelProto:
    g = Graph()
    items = g("Slice", "history", [0], [model.dim], [2])
    g.queries(model, items, "mask", "queries")
    return g.build(
        {"history": ("float32", ["batch", length, model.history_dim]), "mask": ("bool", ["batch", length])},
        {"queries": ["batch", len(model.gains), model.dim]},
    )


def _explainer(model: Reference, length: int) -> onnx.ModelProto:
    g = Graph()
    num_modalities, dim = len(model.modalities), model.dim
    items = g.mean("states", "presence", axis=2)
    g.queries(model, items, "mask", "queries")
    candidate = g.mean("candidate_states", "candidate_presence", axis=1)
    by_query = g("Einsum", "queries", candidate, equation="bqd,kd->bqk")
    if model.scorer == "max":
        g("ReduceMax", by_query, [1], keepdims=0, output="scores")
        weights = _best(g, by_query)
        gain = g("Gather", model.gains, g("ArgMax", by_query, axis=1, keepdims=0), axis=0)
    else:
        g("ReduceLogSumExp", by_query, [1], keepdims=0, output="scores")
        weights = g("Softmax", by_query, axis=1)
        gain = g("Einsum", weights, model.gains, equation="bqk,qd->bkd")
    gradient = g("Mul", g("Unsqueeze", candidate, [0]), gain)
    slope = g("ReduceMean", gradient, [2], keepdims=1)

    mask = g("Cast", "mask", to=TensorProto.FLOAT)
    weight_BL = g("Div", mask, g("Max", g("ReduceSum", mask, [1], keepdims=1), np.float32(1)))
    present = g("Cast", "presence", to=TensorProto.FLOAT)
    share_BLM = g("Div", present, g("Max", g("ReduceSum", present, [2], keepdims=1), np.float32(1)))
    weight_BLM = g("Mul", g("Unsqueeze", weight_BL, [2]), share_BLM)
    weight_B1L, weight_B1LM = g("Unsqueeze", weight_BL, [1]), g("Unsqueeze", weight_BLM, [1])
    g("Mul", weight_B1L, slope, output="item_interest")
    g("Mul", weight_B1LM, g("Unsqueeze", slope, [3]), output="modality_interest")
    g("Mul", weight_B1L, g("Einsum", items, gradient, equation="bld,bkd->bkl"), output="item_grad_x_input")
    products = g("Einsum", "states", gradient, equation="blmd,bkd->bklm")
    g("Mul", weight_B1LM, products, output="modality_grad_x_input")

    own = g("Cast", "candidate_presence", to=TensorProto.FLOAT)
    share_KM = g("Div", own, g("Max", g("ReduceSum", own, [1], keepdims=1), np.float32(1)))
    read_out = g("Einsum", "queries", weights, equation="bqd,bqk->bkd")
    g("Mul", share_KM, g("Einsum", "candidate_states", read_out, equation="kmd,bkd->bkm"), output="contributions")
    shapes = {
        "scores": ["batch", "candidates"],
        "item_interest": ["batch", "candidates", length],
        "modality_interest": ["batch", "candidates", length, num_modalities],
        "item_grad_x_input": ["batch", "candidates", length],
        "modality_grad_x_input": ["batch", "candidates", length, num_modalities],
        "contributions": ["batch", "candidates", num_modalities],
        "queries": ["batch", len(model.gains), dim],
    }
    assert tuple(shapes) == EXPLAINER_OUTPUTS
    return g.build(
        {
            "states": ("float32", ["batch", length, num_modalities, dim]),
            "presence": ("bool", ["batch", length, num_modalities]),
            "mask": ("bool", ["batch", length]),
            "candidate_states": ("float32", ["candidates", num_modalities, dim]),
            "candidate_presence": ("bool", ["candidates", num_modalities]),
        },
        shapes,
    )


def _best(g: Graph, by_query: str) -> str:
    best = g("ReduceMax", by_query, [1], keepdims=1)
    return g("Cast", g("Equal", by_query, best), to=TensorProto.FLOAT)


def graph_spec(model: onnx.ModelProto, file: str) -> GraphSpec:
    def tensors(values: Any) -> list[TensorSpec]:
        found = []
        for value in values:
            kind = value.type.tensor_type
            dtype = next(name for name, number in _DTYPES.items() if number == kind.elem_type)
            shape = [one.dim_param or one.dim_value for one in kind.shape.dim]
            found.append(TensorSpec(name=value.name, dtype=dtype, shape=shape))
        return found

    return GraphSpec(file=file, inputs=tensors(model.graph.input), outputs=tensors(model.graph.output))
