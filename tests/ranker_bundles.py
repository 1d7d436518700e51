"""A model-free ranker bundle: what `tests/bundles.py` makes of items, and a score that is no inner product.

`score = w . relu(q + v B)`: a user's query is the mean of the history rows times A, wider than an item's vector v. It
knows the users "ann" and "zoë" by learned queries. All widths differ from those of the retriever's bundle.

Legend of shapes: `B` users, `K` candidates, `D` item vector, `E` query, `U` known users.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from api_schemas.manifest import RANKER_METHODS, BundleManifest, Faithfulness, KnownUsers, Modality
from index.dataset import Dataset
from index.features import from_dataset
from index.store import UNPUBLISHED, ArtifactStore
from tests.bundles import Graph, Reference, golden_of, graph_spec, item_encoder, reference, state_encoder
from tests.id_bundles import write_ids

QUERY_DIM = 10
KNOWN_USERS = ("ann", "zoë")


@dataclass(frozen=True)
class RankerReference(Reference):
    """The model in NumPy."""

    to_query: np.ndarray | None = None  # A [D, E]
    to_hidden: np.ndarray | None = None  # B [D, E]
    weight: np.ndarray | None = None  # w [E]
    users: np.ndarray | None = None  # [U, 1, E]

    def encode_users(self, history_BLH: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
        return (super().encode_users(history_BLH, mask_BL) @ self.to_query).astype(np.float32)

    def rank(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Return the scores `[B, K]`."""
        hidden_BKE = np.maximum(queries[:, :1] + (candidates @ self.to_hidden)[None], 0)
        return (hidden_BKE @ self.weight).astype(np.float32)


def ranker_reference(modalities: list[Modality], *, dim: int, history_is_candidate: bool, seed: int) -> RankerReference:
    """Draw the model's constants."""
    plain = reference(modalities, dim=dim, history_is_candidate=history_is_candidate, seed=seed)
    rng = np.random.default_rng(seed + 1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return RankerReference(
        **vars(plain),
        to_query=draw(dim, QUERY_DIM),
        to_hidden=draw(dim, QUERY_DIM),
        weight=draw(QUERY_DIM),
        users=draw(len(KNOWN_USERS), 1, QUERY_DIM),
    )


def make_ranker_bundle(
    store: ArtifactStore,
    dataset: Path | Dataset,
    *,
    dim: int = 8,
    history_length: int = 10,
    history_is_candidate: bool = False,
    modalities: list[str] | None = None,
    family: str = "toy-ranker",
    seed: int = 3,
) -> str:
    """Publish the bundle for a dataset's modalities, or for some of them, and return its version."""
    data = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    read = [
        Modality(name=one.name, dim=one.dim)
        for one in data.manifest.modalities
        if modalities is None or one.name in modalities
    ]
    model = ranker_reference(read, dim=dim, history_is_candidate=history_is_candidate, seed=seed)
    graphs = {
        "item_encoder": item_encoder(model),
        "state_encoder": state_encoder(model),
        "user_encoder": _user_encoder(model, history_length),
        "ranker": ranker_graph(model),
    }
    with store.stage("bundle", name=family) as stage:
        for name, graph in graphs.items():
            onnx.save(graph, stage.path / f"{name}.onnx")
        inputs = from_dataset(data, slice(0, 8), read)
        golden = golden_of(model, inputs, model.encode_items(inputs), inputs.presence, history_length)
        np.savez(stage.path / "golden.npz", **golden)
        write_ids(stage.path / "users/ids.arrow", "user_id", KNOWN_USERS)
        np.save(stage.path / "users/queries.npy", model.users)
        return stage.publish(_manifest(model, data, graphs, history_length, family))


def open_reference(manifest: BundleManifest, *, seed: int = 3) -> RankerReference:
    """Return the model that a bundle of `make_ranker_bundle` was made from."""
    return ranker_reference(
        manifest.modalities, dim=manifest.dim, history_is_candidate=manifest.history_is_candidate, seed=seed
    )


def _manifest(
    model: RankerReference, data: Dataset, graphs: dict[str, Any], history_length: int, family: str
) -> BundleManifest:
    measured = Faithfulness(
        deletion_auc=0.3, insertion_auc=0.7, random_deletion_auc=0.5, random_insertion_auc=0.5, num_users=10
    )
    return BundleManifest(
        version=UNPUBLISHED,
        created_at=datetime.now(UTC),
        family=family,
        modalities=list(model.modalities),
        dim=model.dim,
        history_dim=model.history_dim,
        state_dim=model.dim,
        history_length=history_length,
        num_queries=1,
        query_dim=QUERY_DIM,
        history_is_candidate=model.history_is_candidate,
        scorer="ranker",
        graphs={name: graph_spec(graph, f"{name}.onnx") for name, graph in graphs.items()},
        golden_atol=1e-5,
        explanation_methods=list(RANKER_METHODS),
        faithfulness=dict.fromkeys(RANKER_METHODS, measured),
        known_users=KnownUsers(ids="users/ids.arrow", queries="users/queries.npy", num_users=len(KNOWN_USERS)),
        dataset_name=data.manifest.name,
        data_fingerprint=data.fingerprint(),
        code_revision="test",
        files=[],
    )


def _user_encoder(model: RankerReference, length: int) -> onnx.ModelProto:
    g = Graph()
    items = g("Slice", "history", [0], [model.dim], [2])
    g("MatMul", g.queries(model, items, "mask", "users"), model.to_query, output="queries")
    return g.build(
        {"history": ("float32", ["batch", length, model.history_dim]), "mask": ("bool", ["batch", length])},
        {"queries": ["batch", 1, QUERY_DIM]},
    )


def ranker_graph(model: RankerReference, *, divide_by: float = 1.0) -> onnx.ModelProto:
    """Return the graph of the score; `divide_by` 0 makes it one that fails by its numbers."""
    g = Graph()
    hidden = g("Relu", g("Add", "queries", g("Unsqueeze", g("MatMul", "candidates", model.to_hidden), [0])))
    scores = g("MatMul", hidden, model.weight)
    g("Div", scores, np.float32(divide_by), output="scores")
    return g.build(
        {
            "queries": ("float32", ["batch", 1, QUERY_DIM]),
            "candidates": ("float32", ["candidates", model.dim]),
        },
        {"scores": ["batch", "candidates"]},
    )
