"""An id-based bundle built by hand: a linear factor model with learned items and users, checked number by number.

An item is the sum of its parts: one for each modality (its raw vector of length 1 times a fixed matrix), a learned `id`
and a `bias`, which stands in the last dimension alone, where every user has a 1. Every second item of the data set is
known by its id; the id of the others is imputed from their content by a linear map with an intercept, far from zero as
pointwise losses make it. A user is an affine map of the mean of the past items, or a learned query.

Legend of shapes: `N` items, `B` batch, `L` history length, `P` parts, `D` vector width (= `S`, = `H`), `K` candidates.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto

from api_schemas.manifest import BundleManifest, ColdItems, FoldIn, KnownUsers, Modality, ModalityMask, WarmItems
from index.bundle import EXPLAINER_OUTPUTS
from index.dataset import Dataset
from index.features import ModelInputs, from_dataset
from index.store import UNPUBLISHED, ArtifactStore
from tests.bundles import Graph, golden_of, graph_spec

ADDED = ("id", "bias")
MASK = {
    "mean": 0.6,
    "q10": 0.1,
    "median": 0.7,
    "q90": 1.0,
    "contribution_with_mask": 0.8,
    "contribution_without_mask": 1.1,
    "contribution_removed": 0.4,
}


@dataclass(frozen=True)
class IdReference:
    """The model in NumPy: what the graphs have to give, and what was learned beside them."""

    modalities: tuple[Modality, ...]
    matrices: tuple[np.ndarray, ...]  # by modality [D_m, D]
    to_id: tuple[np.ndarray, ...]  # by modality [D_m, D]: content to id
    mean_id: np.ndarray  # [D]
    mean_bias: np.ndarray  # [D], zero but in the last place
    fold_in: np.ndarray  # [D, D], the last column zero
    offset: np.ndarray  # [D], the last place 1
    default: np.ndarray  # [D], the last place 1
    warm_ids: tuple[str, ...]
    warm: np.ndarray  # [Nw, 2, D]: id and bias
    user_ids: tuple[str, ...]
    users: np.ndarray  # [U, 1, D]
    history_is_candidate: bool = True

    @property
    def dim(self) -> int:
        return len(self.default)

    history_dim = dim

    @property
    def part_names(self) -> tuple[str, ...]:
        return (*(modality.name for modality in self.modalities), *ADDED)

    def encode_items(self, inputs: ModelInputs) -> dict[str, np.ndarray]:
        """Encode items by their content alone."""
        states = [x @ w for x, w in zip(inputs.features, self.matrices, strict=True)]
        imputed = self.mean_id + sum(x @ w for x, w in zip(inputs.features, self.to_id, strict=True))
        states_BPS = np.stack([*states, imputed, np.broadcast_to(self.mean_bias, imputed.shape)], axis=1)
        any_B1 = inputs.presence.any(axis=1, keepdims=True)
        presence_BP = np.concatenate([inputs.presence, any_B1, any_B1], axis=1)
        states_BPS = states_BPS.astype(np.float32)
        return {**self.encode_states(states_BPS, presence_BP), "states": states_BPS}

    def catalogue(self, inputs: ModelInputs, item_ids: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return candidates `[N, D]`, states `[N, P, D]` and presence `[N, P]` as the catalogue has to have them."""
        states = self.encode_items(inputs)["states"]
        for row, item_id in enumerate(item_ids):
            if item_id in self.warm_ids:
                states[row, -2:] = self.warm[self.warm_ids.index(item_id)]
        presence = np.concatenate([inputs.presence, np.ones((len(inputs), 2), bool)], axis=1)
        return self.encode_states(states, presence)["candidate"], states, presence

    def encode_states(self, states, presence) -> dict[str, np.ndarray]:
        candidate = np.where(presence[..., None], states, 0).sum(axis=-2).astype(np.float32)
        return {"candidate": candidate, "history": candidate}

    def encode_users(self, history_BLH: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
        total = np.where(mask_BL[..., None], history_BLH, 0).sum(axis=1)
        mean_BD = total / np.maximum(mask_BL.sum(axis=1, keepdims=True), 1)
        user_BD = np.where(mask_BL.any(axis=1, keepdims=True), mean_BD @ self.fold_in + self.offset, self.default)
        return user_BD[:, None, :].astype(np.float32)

    def explain(self, states, presence, mask, candidate_states, candidate_presence) -> dict[str, np.ndarray]:
        clean = np.where(presence[..., None], states, 0)
        user_BD = self.encode_users(clean.sum(axis=2), mask)[:, 0]
        own = np.where(candidate_presence[..., None], candidate_states, 0)
        gradient_KD = own.sum(axis=1) @ self.fold_in.T
        weight_BL = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
        slope_K = gradient_KD.mean(axis=1)
        weight_BLP = weight_BL[..., None] * presence
        grid = weight_BLP[:, None] * np.einsum("blpd,kd->bklp", clean, gradient_KD)
        outputs = {
            "scores": user_BD @ own.sum(axis=1).T,
            "item_interest": weight_BL[:, None] * slope_K[:, None],
            "modality_interest": weight_BLP[:, None] * slope_K[:, None, None],
            "item_grad_x_input": grid.sum(axis=3),
            "modality_grad_x_input": grid,
            "contributions": np.einsum("kpd,bd->bkp", own, user_BD),
            "queries": user_BD[:, None],
        }
        return {name: value.astype(np.float32) for name, value in outputs.items()}


def id_reference(data: Dataset, *, dim: int = 8, seed: int = 0) -> IdReference:
    """Draw the model's constants, and what it knows of a data set's items and of three users."""
    rng = np.random.default_rng(seed)
    modalities = tuple(Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities)

    def draw(*shape: int, last: float = 0.0) -> np.ndarray:
        values = rng.standard_normal(shape) / np.sqrt(dim)
        values[..., -1] = last
        return values.astype(np.float32)

    warm_ids = tuple(data.item_ids[::2])
    warm = np.stack([draw(len(warm_ids), dim) - 0.5, np.zeros((len(warm_ids), dim), np.float32)], axis=1)
    warm[:, 0, -1] = 0
    warm[:, 1, -1] = 0.2 * rng.standard_normal(len(warm_ids))
    mean_bias = np.zeros(dim, np.float32)
    mean_bias[-1] = warm[:, 1, -1].mean()
    return IdReference(
        modalities=modalities,
        matrices=tuple(draw(modality.dim, dim) for modality in modalities),
        to_id=tuple(draw(modality.dim, dim) for modality in modalities),
        mean_id=warm[:, 0].mean(axis=0),
        mean_bias=mean_bias,
        fold_in=draw(dim, dim),
        offset=draw(dim, last=1.0),
        default=draw(dim, last=1.0),
        warm_ids=warm_ids,
        warm=warm,
        user_ids=("ann", "zoë", "bob"),
        users=draw(3, 1, dim, last=1.0),
    )


def make_id_bundle(
    store: ArtifactStore, dataset: Path | Dataset, *, dim: int = 8, history_length: int = 6, seed: int = 0
) -> str:
    """Publish the bundle for a data set and return its version."""
    data = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    model = id_reference(data, dim=dim, seed=seed)
    graphs = {
        "item_encoder": _item_encoder(model),
        "state_encoder": _state_encoder(model),
        "user_encoder": _user_encoder(model, history_length),
        "explainer": _explainer(model, history_length),
    }
    with store.stage("bundle", name="factors") as stage:
        for name, graph in graphs.items():
            onnx.save(graph, stage.path / f"{name}.onnx")
        inputs = from_dataset(data, slice(0, 8), model.modalities)
        encoded = model.encode_items(inputs)
        any_B1 = inputs.presence.any(axis=1, keepdims=True)
        presence = np.concatenate([inputs.presence, any_B1, any_B1], axis=1)
        np.savez(stage.path / "golden.npz", **golden_of(model, inputs, encoded, presence, history_length))
        write_ids(stage.path / "warm/ids.arrow", "item_id", model.warm_ids)
        np.save(stage.path / "warm/states.npy", model.warm)
        write_ids(stage.path / "users/ids.arrow", "user_id", model.user_ids)
        np.save(stage.path / "users/queries.npy", model.users)
        return stage.publish(_manifest(model, data, graphs, history_length))


def _manifest(model: IdReference, data: Dataset, graphs: dict[str, Any], history_length: int) -> BundleManifest:
    return BundleManifest(
        version=UNPUBLISHED,
        created_at=datetime.now(UTC),
        family="factors",
        modalities=list(model.modalities),
        parts=list(model.part_names),
        dim=model.dim,
        history_dim=model.dim,
        state_dim=model.dim,
        history_length=history_length,
        num_queries=1,
        history_is_candidate=True,
        graphs={name: graph_spec(graph, f"{name}.onnx") for name, graph in graphs.items()},
        golden_atol=1e-5,
        explanation_methods=["decomposition", "shapley", "occlusion", "grad_x_input", "interest_gradient"],
        warm=WarmItems(
            ids="warm/ids.arrow", states="warm/states.npy", parts=list(ADDED), num_items=len(model.warm_ids)
        ),
        known_users=KnownUsers(ids="users/ids.arrow", queries="users/queries.npy", num_users=len(model.user_ids)),
        fold_in=FoldIn(kind="affine", r2=0.7, recall=0.3, recall_of_known=0.31, cutoff=20, num_users=10),
        cold_items=ColdItems(imputation="ridge", exposure_ratio=0.9, num_items=12, num_users=10),
        modality_mask=[ModalityMask(modality=model.modalities[0].name, **MASK)],
        dataset_name=data.manifest.name,
        data_fingerprint=data.fingerprint(),
        code_revision="test",
        files=[],
    )


def write_ids(path: Path, column: str, ids: tuple[str | None, ...], dtype: pa.DataType | None = None) -> None:
    """Write an Arrow IPC file of one column."""
    path.parent.mkdir(exist_ok=True)
    table = pa.table({column: pa.array(ids, dtype or pa.large_string())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def without_any_content(model: IdReference) -> ModelInputs:
    """Return one item that has no modality at all."""
    features = tuple(np.zeros((1, modality.dim), np.float32) for modality in model.modalities)
    return ModelInputs(features, np.zeros((1, len(model.modalities)), bool))


def without(inputs: ModelInputs, column: int) -> ModelInputs:
    """Return the same items without one modality."""
    features = [np.where(place == column, 0, values) for place, values in enumerate(inputs.features)]
    presence = inputs.presence.copy()
    presence[:, column] = False
    return replace(inputs, features=tuple(one.astype(np.float32) for one in features), presence=presence)


def _sum(g: Graph, states: str, presence: str, *, axis: int, output: str | None = None) -> str:
    clean = g("Where", g("Unsqueeze", presence, [axis + 1]), states, np.float32(0))
    return g("ReduceSum", clean, [axis], keepdims=0, output=output)


def _item_encoder(model: IdReference) -> onnx.ModelProto:
    g = Graph()
    names = [modality.name for modality in model.modalities]
    parts = [g("MatMul", name, matrix) for name, matrix in zip(names, model.matrices, strict=True)]
    imputed = g("Identity", model.mean_id)
    for name, matrix in zip(names, model.to_id, strict=True):
        imputed = g("Add", g("MatMul", name, matrix), imputed)
    bias = g("Add", g("Mul", imputed, np.float32(0)), model.mean_bias)
    g("Concat", *[g("Unsqueeze", part, [1]) for part in (*parts, imputed, bias)], axis=1, output="states")
    some = g("ReduceMax", g("Cast", "presence", to=TensorProto.FLOAT), [1], keepdims=1)
    added = g("Cast", g("Concat", some, some, axis=1), to=TensorProto.BOOL)
    _sum(g, "states", g("Concat", "presence", added, axis=1), axis=1, output="candidate")
    g("Identity", "candidate", output="history")
    dim, num_parts = model.dim, len(model.part_names)
    inputs = {modality.name: ("float32", ["batch", modality.dim]) for modality in model.modalities}
    return g.build(
        {**inputs, "presence": ("bool", ["batch", len(names)])},
        {"candidate": ["batch", dim], "history": ["batch", dim], "states": ["batch", num_parts, dim]},
    )


def _state_encoder(model: IdReference) -> onnx.ModelProto:
    g = Graph()
    _sum(g, "states", "presence", axis=1, output="candidate")
    g("Identity", "candidate", output="history")
    dim, num_parts = model.dim, len(model.part_names)
    return g.build(
        {"states": ("float32", ["batch", num_parts, dim]), "presence": ("bool", ["batch", num_parts])},
        {"candidate": ["batch", dim], "history": ["batch", dim]},
    )


def _query(g: Graph, model: IdReference, items: str) -> str:
    count = g("ReduceSum", g("Cast", "mask", to=TensorProto.FLOAT), [1], keepdims=1)
    user = g("Add", g("MatMul", g.mean(items, "mask", axis=1), model.fold_in), model.offset)
    return g("Where", g("Greater", count, np.float32(0)), user, model.default)


def _user_encoder(model: IdReference, length: int) -> onnx.ModelProto:
    g = Graph()
    g("Unsqueeze", _query(g, model, "history"), [1], output="queries")
    return g.build(
        {"history": ("float32", ["batch", length, model.dim]), "mask": ("bool", ["batch", length])},
        {"queries": ["batch", 1, model.dim]},
    )


def _explainer(model: IdReference, length: int) -> onnx.ModelProto:
    g = Graph()
    dim, num_parts = model.dim, len(model.part_names)
    clean = g("Where", g("Unsqueeze", "presence", [3]), "states", np.float32(0))
    user = _query(g, model, g("ReduceSum", clean, [2], keepdims=0))
    g("Unsqueeze", user, [1], output="queries")
    own = g("Where", g("Unsqueeze", "candidate_presence", [2]), "candidate_states", np.float32(0))
    candidate = g("ReduceSum", own, [1], keepdims=0)
    g("Einsum", user, candidate, equation="bd,kd->bk", output="scores")
    g("Einsum", own, user, equation="kpd,bd->bkp", output="contributions")
    gradient = g("MatMul", candidate, np.ascontiguousarray(model.fold_in.T))
    mask = g("Cast", "mask", to=TensorProto.FLOAT)
    weight_BL = g("Div", mask, g("Max", g("ReduceSum", mask, [1], keepdims=1), np.float32(1)))
    weight_BLP = g("Mul", g("Unsqueeze", weight_BL, [2]), g("Cast", "presence", to=TensorProto.FLOAT))
    slope_K = g("ReduceMean", gradient, [1], keepdims=0)
    g("Einsum", weight_BL, slope_K, equation="bl,k->bkl", output="item_interest")
    g("Einsum", weight_BLP, slope_K, equation="blp,k->bklp", output="modality_interest")
    products = g("Einsum", clean, gradient, equation="blpd,kd->bklp")
    grid = g("Mul", g("Unsqueeze", weight_BLP, [1]), products, output="modality_grad_x_input")
    g("ReduceSum", grid, [3], keepdims=0, output="item_grad_x_input")
    shapes = {
        "scores": ["batch", "candidates"],
        "item_interest": ["batch", "candidates", length],
        "modality_interest": ["batch", "candidates", length, num_parts],
        "item_grad_x_input": ["batch", "candidates", length],
        "modality_grad_x_input": ["batch", "candidates", length, num_parts],
        "contributions": ["batch", "candidates", num_parts],
        "queries": ["batch", 1, dim],
    }
    assert tuple(shapes) == EXPLAINER_OUTPUTS
    return g.build(
        {
            "states": ("float32", ["batch", length, num_parts, dim]),
            "presence": ("bool", ["batch", length, num_parts]),
            "mask": ("bool", ["batch", length]),
            "candidate_states": ("float32", ["candidates", num_parts, dim]),
            "candidate_presence": ("bool", ["candidates", num_parts]),
        },
        shapes,
    )
