"""LoadedServable: one snapshot and the one bundle that it names, behind the protocol of the core.

Here the core's world (rows, plain arrays) meets ONNX Runtime and FAISS, and nowhere else in the service.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import numpy as np

from api_schemas.manifest import BundleManifest, SnapshotManifest
from index.artefacts import MANIFEST, ArtefactError
from index.bundle import Bundle
from index.decompose import decompose
from index.explain import ExplanationArrays, explain, modality_shares
from index.features import prepare
from index.known import KnownTable, open_known_users
from index.selection import Selection as IndexSelection
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from service.recommend.servable import Attribution, EncodedItems, Mask, Rows, Selection
from service.recommend.types import Filter, Method, ModalityCard, ModelCard, ServedVersion, Vectors

_WARM_UP_BATCHES = (1, 2, 4, 8, 16)
_TIMED = 5
"""Lone answers that are timed after the warm-up."""


class LoadedServable:
    """A version that is loaded, verified and warm. Made by `load_servable`; its maker holds it until `release`."""

    def __init__(
        self,
        bundle: Bundle,
        snapshot: IndexSnapshot,
        *,
        answer_cpu_s: float,
        known_users: KnownTable | None = None,
        resources: ExitStack,
    ) -> None:
        """Put a bundle and a snapshot that fit together behind the core's protocol.

        Args:
            bundle: Its golden cases have been replayed.
            snapshot: Made with this bundle.
            answer_cpu_s: Processor time of one answer.
            known_users: The bundle's learned users, if it has any.
            resources: What is let go of when the last holder leaves.
        """
        self._bundle = bundle
        self._snapshot = snapshot
        self._known_users = known_users
        self._resources = resources
        self._lock = threading.Lock()
        self._holds = 1
        self.answer_cpu_s = answer_cpu_s
        manifest = bundle.manifest
        self.modalities: Mapping[str, int] = {modality.name: modality.dim for modality in manifest.modalities}
        self.parts = manifest.part_names
        self.history_length = manifest.history_length
        self.num_items = snapshot.num_items
        self.methods: tuple[Method, ...] = tuple(manifest.explanation_methods)
        self.popular_rows: Rows = snapshot.popular_rows
        self.version = ServedVersion(
            model_name=manifest.family,
            model_version=manifest.version,
            index_version=snapshot.manifest.version,
            index_built_at=snapshot.manifest.created_at,
        )
        self.card = _card(manifest, self.version)
        self._faithfulness: Mapping[str, Mapping[str, float]] = {
            method: {name: float(value) for name, value in measured.model_dump(exclude_none=True).items()}
            for method, measured in manifest.faithfulness.items()
        }
        # Straight through, without a call in between: these are on the path of every request.
        self.rows = snapshot.rows
        self.item_ids = snapshot.item_ids
        self.metadata = snapshot.metadata
        self.popularity_positions = snapshot.popularity_positions
        self.history = snapshot.history
        self.states = snapshot.states
        self.presence = snapshot.presence
        self.score = snapshot.score
        self.encode_users = bundle.encode_users

    def retain(self) -> bool:
        """Keep this version open until `release`; False when it is closed already and must not be used."""
        with self._lock:
            if self._holds == 0:
                return False
            self._holds += 1
            return True

    def release(self) -> None:
        """Take back one hold; the last one closes the version."""
        with self._lock:
            assert self._holds > 0, "released more often than held"
            self._holds -= 1
            last = self._holds == 0
        if last:
            self._resources.close()

    @property
    def closed(self) -> bool:
        """The last holder has left."""
        return self._holds == 0

    def faithfulness(self, method: Method) -> Mapping[str, float]:
        """Return what was measured for the method when the model was released; empty when nothing was."""
        return self._faithfulness.get(method, {})

    def select(self, restriction: Filter) -> Selection:
        """Return the rows that pass; all of them for an empty filter."""
        return self._snapshot.selection(
            categories_any=restriction.categories_any,
            categories_all=restriction.categories_all,
            categories_none=restriction.categories_none,
            attributes=restriction.attributes,
        )

    def encode_items(self, raw: Sequence[Mapping[str, Vectors]]) -> EncodedItems:
        """Encode items from raw vectors `[D_m]` by modality; a missing modality is one that the item has not."""
        arrays = {name: np.zeros((len(raw), width), dtype=np.float32) for name, width in self.modalities.items()}
        for place, vectors in enumerate(raw):
            for name, vector in vectors.items():
                arrays[name][place] = vector
        inputs = prepare(arrays, {}, self._bundle.manifest.modalities)
        encoded = self._bundle.encode_items(inputs)
        return EncodedItems(history_BH=encoded.history, states_BMS=encoded.states, presence_BM=encoded.presence)

    def user_queries(self, user_id: str) -> Vectors | None:
        """Return the queries `[Q, D]` that the model has learned for a user; None for one that it does not know."""
        if self._known_users is None:
            return None
        row = self._known_users.row(user_id)
        return None if row < 0 else self._known_users.vectors[row]

    def search(self, queries_BQD: Vectors, *, k: int, allowed: Selection | None = None) -> tuple[Vectors, Rows]:
        """Return the best k allowed rows of each user, best first, as scores `[B, k]` and rows `[B, k]`."""
        return self._snapshot.search(queries_BQD, k=k, allowed=cast("IndexSelection | None", allowed))

    def similar(
        self, row: int, *, k: int, modality: str | None, allowed: Selection | None = None
    ) -> tuple[Vectors, Rows]:
        """Return the k rows most like `row`, by the fused vector or by one part."""
        return self._snapshot.similar(row, k=k, part=modality, allowed=cast("IndexSelection | None", allowed))

    def attribute(
        self,
        method: Method,
        *,
        states_LMS: Vectors,
        presence_LM: Mask,
        candidate_states_KMS: Vectors,
        candidate_presence_KM: Mask,
    ) -> Attribution:
        """Explain K candidates for one history."""
        arrays = explain(
            self._bundle,
            method=method,
            states_LMS=states_LMS,
            presence_LM=presence_LM,
            candidate_states_KMS=candidate_states_KMS,
            candidate_presence_KM=candidate_presence_KM,
        )
        return _attribution(arrays)

    def decompose(
        self, queries_QD: Vectors, *, candidate_states_KMS: Vectors, candidate_presence_KM: Mask
    ) -> Attribution:
        """Split the scores of K candidates for queries that `user_queries` gave, by part; there is no history."""
        arrays = decompose(
            self._bundle,
            queries_QD=queries_QD,
            candidate_states_KMS=candidate_states_KMS,
            candidate_presence_KM=candidate_presence_KM,
        )
        return _attribution(arrays)

    def modality_shares(self, interest_KM: Vectors, *, scores_K: Vectors) -> Sequence[float]:
        """Return each part's share `[M]` of what speaks for K candidates, as it was judged at release."""
        shares: list[float] = modality_shares(interest_KM, scores_K=scores_K).tolist()
        return shares


def _attribution(arrays: ExplanationArrays) -> Attribution:
    return Attribution(
        scores_K=arrays.scores_K,
        interest_KM=arrays.interest_KM,
        history_KL=arrays.history_KL,
        grid_KLM=arrays.grid_KLM,
        contributions_KM=arrays.contributions_KM,
        residual_K=arrays.residual_K,
        additive=arrays.additive,
    )


def _card(manifest: BundleManifest, version: ServedVersion) -> ModelCard:
    masks = {mask.modality: mask.model_dump(exclude={"modality"}) for mask in manifest.modality_mask}
    return ModelCard(
        version=version,
        parts=manifest.part_names,
        modalities=tuple(ModalityCard(one.name, one.dim, masks.get(one.name)) for one in manifest.modalities),
        methods=tuple(manifest.explanation_methods),
        num_known_items=manifest.warm.num_items if manifest.warm else 0,
        num_known_users=manifest.known_users.num_users if manifest.known_users else 0,
        fold_in=manifest.fold_in.model_dump() if manifest.fold_in else None,
        cold_items=manifest.cold_items.model_dump() if manifest.cold_items else None,
    )


def load_servable(store: ArtifactStore, version: str, *, num_threads: int = 1) -> LoadedServable:
    """Verify, open and warm up a snapshot and its bundle. Blocks: it reads every byte of both.

    Args:
        store: Where the versions are; both are kept from being pruned as long as they are loaded.
        version: Of the snapshot.
        num_threads: Threads that one call of ONNX Runtime or FAISS may use.

    Raises:
        ArtefactError: A file is missing, cut, changed or of the wrong shape, the two do not fit together, or the
            golden cases do not give what they should.
        OSError: The disk fails.
    """
    with ExitStack() as resources:
        resources.enter_context(store.pin(version))
        path, manifest = store.open_snapshot(version)
        resources.enter_context(store.pin(manifest.bundle_version))
        bundle_path, bundle_manifest = store.open_bundle(manifest.bundle_version)
        _check_fit(manifest, bundle_manifest, where=f"{path / MANIFEST}")
        bundle = Bundle.open(bundle_path, num_threads=num_threads)
        snapshot = IndexSnapshot.open(path, manifest, num_threads=num_threads)
        resources.callback(snapshot.close)
        _check_tables(snapshot, bundle_manifest, where=str(path))
        bundle.check_golden()
        answer_cpu_s = _warm_up(bundle, snapshot)
        known_users = open_known_users(bundle_path, bundle_manifest)
        return LoadedServable(
            bundle, snapshot, answer_cpu_s=answer_cpu_s, known_users=known_users, resources=resources.pop_all()
        )


def _check_fit(snapshot: SnapshotManifest, bundle: BundleManifest, *, where: str) -> None:
    if snapshot.dim != bundle.dim:
        raise ArtefactError(where, f"dim: {snapshot.dim}, the bundle's vectors have {bundle.dim}")
    if snapshot.scorer != bundle.scorer:
        raise ArtefactError(where, f"scorer: {snapshot.scorer}, the bundle's is {bundle.scorer}")
    if snapshot.modalities != bundle.modalities:
        raise ArtefactError(where, "modalities: not those of the bundle")
    if snapshot.part_names != bundle.part_names:
        raise ArtefactError(where, f"parts: {list(snapshot.part_names)}, the bundle's are {list(bundle.part_names)}")


def _check_tables(snapshot: IndexSnapshot, bundle: BundleManifest, *, where: str) -> None:
    first = np.zeros(1, dtype=np.int64)
    found = {
        "history": snapshot.history(first).shape[1:],
        "states": snapshot.states(first).shape[1:],
        "presence": snapshot.presence(first).shape[1:],
    }
    num_parts = len(bundle.part_names)
    expected = {
        "history": (bundle.history_dim,),
        "states": (num_parts, bundle.state_dim),
        "presence": (num_parts,),
    }
    for name, shape in expected.items():
        if found[name] != shape:
            raise ArtefactError(where, f"{name}: rows of shape {found[name]}, the bundle's are {shape}")


def _warm_up(bundle: Bundle, snapshot: IndexSnapshot) -> float:
    """Run the path of a request in every size of batch that is usual, so that no caller pays for a first time.

    Returns:
        Processor seconds of one lone user, the least of several: of this thread, whatever else the machine does.

    Raises:
        ArtefactError: Encoder or search return something that can not be right.
    """
    manifest = bundle.manifest
    rows = snapshot.popular_rows[: manifest.history_length]
    history = np.zeros((manifest.history_length, manifest.history_dim), dtype=np.float32)
    history[: rows.size] = snapshot.history(rows)
    mask = np.arange(manifest.history_length) < rows.size
    least_s = math.inf
    for size in (*_WARM_UP_BATCHES, *[1] * _TIMED):
        started = time.thread_time()
        queries = bundle.encode_users(
            np.repeat(history[np.newaxis], size, axis=0), np.repeat(mask[np.newaxis], size, 0)
        )
        scores, found = snapshot.search(queries, k=min(10, snapshot.num_items))
        if not np.isfinite(scores).all() or (found < 0).any():
            raise ArtefactError(bundle.path, "a search with the bundle's own queries finds no finite scores")
        if size == 1:
            least_s = min(least_s, time.thread_time() - started)
    snapshot.metadata(rows)
    return least_s
