"""LoadedServable: one snapshot and the bundles that it names, behind the protocol of the core.

Here and in `service.runtime.model` the core's world (rows, plain arrays) meets ONNX Runtime and FAISS, and nowhere else
in the service.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

import numpy as np

from api_schemas.manifest import SnapshotManifest
from index.artefacts import MANIFEST, ArtefactError
from index.bundle import Bundle
from index.check import check_fit, check_vectors
from index.features import pad_vectors
from index.known import KnownTable, open_known_users
from index.selection import Selection as IndexSelection
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from service.recommend.servable import Rows, Selection
from service.recommend.types import Filter, ServedVersion, Vectors
from service.runtime.model import LoadedModel, LoadedRanker

NUM_CANDIDATES = 500
"""What a ranker is given to order, where nothing else is said."""

_WARM_UP_BATCHES = (16, 8, 4, 2, 1)
"""The largest first: ONNX Runtime keeps all that it has ever needed at once, and the smaller ones find room in it."""
_TIMED = 5
"""Lone answers that are timed after the warm-up."""

_FETCHED = 10
"""Items that a search of the warm-up finds where no ranker needs more."""


class LoadedServable(LoadedModel):
    """A version that is loaded, verified and warm. Made by `load_servable`; its maker holds it until `release`."""

    def __init__(
        self,
        bundle: Bundle,
        snapshot: IndexSnapshot,
        *,
        ranker: LoadedRanker | None,
        answer_cpu_s: float,
        known_users: KnownTable | None = None,
        resources: ExitStack,
    ) -> None:
        """Put bundles and a snapshot that fit together behind the core's protocol.

        Args:
            bundle: Of the model that retrieves. Its golden cases have been replayed.
            snapshot: Made with this bundle.
            ranker: What orders the items that are retrieved, if anything does.
            answer_cpu_s: Processor time of one answer.
            known_users: The bundle's learned users, if it has any.
            resources: What is let go of when the last holder leaves.
        """
        self.version = _version_of(bundle, snapshot.manifest)
        super().__init__(bundle, snapshot, version=self.version, known_users=known_users)
        self._snapshot = snapshot
        self._resources = resources
        self._lock = threading.Lock()
        self._holds = 1
        self.ranker = ranker
        self.answer_cpu_s = answer_cpu_s
        self.num_items = snapshot.num_items
        self.folded_seq = snapshot.manifest.changes_seq
        """Changes of the catalogue up to here are in the index already."""
        self.popular_rows: Rows = snapshot.popular_rows
        self.hidden_rows: frozenset[int] = frozenset()
        # As in LoadedModel.
        self.rows = snapshot.rows
        self.item_ids = snapshot.item_ids
        self.metadata = snapshot.metadata
        self.popularity_positions = snapshot.popularity_positions
        self.score = snapshot.score
        self.like = snapshot.like

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

    def select(self, restriction: Filter) -> Selection:
        """Return the rows that pass; all of them for an empty filter."""
        return self._snapshot.selection(
            categories_any=restriction.categories_any,
            categories_all=restriction.categories_all,
            categories_none=restriction.categories_none,
            attributes=restriction.attributes,
        )

    def search(self, queries_BQD: Vectors, *, k: int, allowed: Selection | None = None) -> tuple[Vectors, Rows]:
        """Return the best k allowed rows of each user, best first, as scores `[B, k]` and rows `[B, k]`."""
        return self._snapshot.search(queries_BQD, k=k, allowed=cast("IndexSelection | None", allowed))

    def similar(
        self, row: int, *, k: int, modality: str | None, allowed: Selection | None = None
    ) -> tuple[Vectors, Rows]:
        """Return the k rows most like `row`, by the fused vector or by one part."""
        return self._snapshot.similar(row, k=k, part=modality, allowed=cast("IndexSelection | None", allowed))


def _version_of(bundle: Bundle, snapshot: SnapshotManifest) -> ServedVersion:
    return ServedVersion(
        model_name=bundle.manifest.family,
        model_version=bundle.manifest.version,
        index_version=snapshot.version,
        index_built_at=snapshot.created_at,
    )


def load_servable(
    store: ArtifactStore, version: str, *, num_threads: int = 1, num_candidates: int = NUM_CANDIDATES
) -> LoadedServable:
    """Verify, open and warm up a snapshot and its bundles. Blocks: it reads every byte of all of them.

    Args:
        store: Where the versions are; all are kept from being pruned as long as they are loaded.
        version: Of the snapshot.
        num_threads: Threads that one call of ONNX Runtime or FAISS may use.
        num_candidates: How many items a ranker is given to order, if there is one.

    Raises:
        ArtefactError: A file is missing, cut, changed or of the wrong shape, holds a NaN, the versions do not fit
            together, or the golden cases do not give what they should.
        OSError: The disk fails.
    """
    with ExitStack() as resources:
        resources.enter_context(store.pin(version))
        path, manifest = store.open_snapshot(version)
        bundles: list[Bundle] = []
        for encoded in manifest.encoded:
            resources.enter_context(store.pin(encoded.bundle_version))
            bundle_path, _ = store.open_bundle(encoded.bundle_version)
            bundles.append(Bundle.open(bundle_path, num_threads=num_threads))
        retriever, ranker = bundles[0], bundles[1] if len(bundles) > 1 else None
        check_fit(manifest, retriever.manifest, ranker.manifest if ranker is not None else None, where=path / MANIFEST)
        snapshot = IndexSnapshot.open(path, manifest, num_threads=num_threads)
        resources.callback(snapshot.close)
        check_vectors(snapshot)
        for bundle in bundles:
            bundle.check_golden()
        loaded_ranker: LoadedRanker | None = None
        if ranker is not None and snapshot.ranker is not None:
            loaded_ranker = LoadedRanker(
                ranker,
                snapshot.ranker,
                version=_version_of(ranker, manifest),
                num_candidates=num_candidates,
                known_users=open_known_users(ranker.path, ranker.manifest),
            )
            loaded_ranker.rerank_cpu_s = _warm_up_ranker(loaded_ranker, ranker, snapshot)
        return LoadedServable(
            retriever,
            snapshot,
            ranker=loaded_ranker,
            answer_cpu_s=_warm_up(retriever, snapshot, k=_FETCHED if ranker is None else num_candidates),
            known_users=open_known_users(retriever.path, retriever.manifest),
            resources=resources.pop_all(),
        )


def _warm_up(bundle: Bundle, snapshot: IndexSnapshot, *, k: int) -> float:
    """Run the path of a request in every size of batch that is usual, so that no caller pays for a first time.

    Returns:
        Processor seconds of one lone user.

    Raises:
        ArtefactError: Encoder or search return something that can not be right.
    """
    rows = snapshot.popular_rows[: bundle.manifest.history_length]
    history, mask = pad_vectors(snapshot.history(rows), length=bundle.manifest.history_length)

    def answer(size: int) -> None:
        queries = bundle.encode_users(
            np.repeat(history[np.newaxis], size, axis=0), np.repeat(mask[np.newaxis], size, 0)
        )
        scores, found = snapshot.search(queries, k=min(k, snapshot.num_items))
        if not np.isfinite(scores).all() or (found < 0).any():
            raise ArtefactError(bundle.path, "a search with the bundle's own queries finds no finite scores")

    snapshot.metadata(rows)
    for size in _WARM_UP_BATCHES:
        answer(size)
    return _least_cpu_s(lambda: answer(1))


def _warm_up_ranker(ranker: LoadedRanker, bundle: Bundle, snapshot: IndexSnapshot) -> float:
    """Order the most popular items for a user who has seen them; as `_warm_up`."""
    rows = snapshot.popular_rows[: ranker.num_candidates]
    history, mask = pad_vectors(ranker.history(rows[: ranker.history_length]), length=ranker.history_length)

    def order() -> None:
        queries = ranker.encode_users(history[np.newaxis], mask[np.newaxis])
        if not np.isfinite(ranker.score(queries[0], rows)).all():
            raise ArtefactError(bundle.path, "the ranker's scores of popular items are not finite")

    order()
    return _least_cpu_s(order)


def _least_cpu_s(work: Callable[[], None]) -> float:
    """Return the least processor seconds of several runs: of this thread, whatever else the machine does."""
    least_s = math.inf
    for _ in range(_TIMED):
        started = time.thread_time()
        work()
        least_s = min(least_s, time.thread_time() - started)
    return least_s
