"""The batch job: encode a catalogue, build its index, check it, publish it, point CURRENT at it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from api_schemas.manifest import BundleManifest, SearchSettings, SnapshotManifest
from index.artefacts import MANIFEST, sha256_of
from index.build import build_index, resolve_factory
from index.bundle import Bundle
from index.catalogue import write_items, write_popularity
from index.check import check_snapshot, exact_scores, sample_queries, widened
from index.columns import open_ipc
from index.config import RebuildConfig
from index.dataset import Dataset
from index.encode import Previous, encode_catalogue
from index.features import Rows
from index.ids import IDS_FILE
from index.progress import Reporter, silent
from index.snapshot import CANDIDATES_FILE, INDEX_FILE, QUERIES_FILE, IndexSnapshot
from index.store import UNPUBLISHED, ArtefactError, ArtifactStore
from index.tables import Table, TableWriter

EXACT_FACTORY = "Flat"


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """What a rebuild made."""

    version: str
    path: Path
    num_items: int
    num_encoded: int
    factory: str
    recall_at_100: float


def rebuild(
    store: ArtifactStore,
    *,
    bundle_version: str,
    dataset: Dataset,
    config: RebuildConfig | None = None,
    report: Reporter = silent,
) -> RebuildResult:
    """Make a snapshot of a dataset's catalogue under a bundle, publish it, and make it the current one.

    Whatever fails on the way, and also a kill, leaves `CURRENT` and all published versions as they were. Items that an
    earlier snapshot of the same bundle has with the same features are copied from it.

    Raises:
        ArtefactError: The bundle can not be opened, or the new snapshot does not pass its check.
        ValueError: The dataset or the configuration can not be used; names the field, or file and row.
        OSError: The disk is full or fails.
    """
    settings = config or RebuildConfig()
    num_threads = settings.num_threads or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        stack.enter_context(store.pin(bundle_version))
        path, bundle_manifest = store.open_bundle(bundle_version)
        bundle_sha256 = sha256_of(path / MANIFEST)
        bundle = Bundle.open(path, num_threads=num_threads)
        earlier = _open_earlier(store, bundle_version, stack)
        stage = stack.enter_context(store.stage("snapshot"))

        write_items(dataset, stage.path, report=report)
        histories = write_popularity(
            dataset,
            stage.path,
            num_users=settings.recall_queries,
            history_length=bundle_manifest.history_length,
            report=report,
        )
        num_encoded = encode_catalogue(
            bundle,
            dataset,
            stage.path,
            batch_rows=settings.batch_rows,
            previous=Previous(earlier, _rows_in(earlier, stage.path)) if earlier else None,
            report=report,
        )
        factory = _build(
            stage.path, bundle_manifest, dataset.num_items, settings=settings, num_threads=num_threads, report=report
        )
        manifest = _manifest(dataset, bundle_manifest, bundle_sha256, search=settings.search, factory=factory)
        manifest = manifest.model_copy(update={"num_encoded": num_encoded})
        snapshot = IndexSnapshot.open(stage.path, manifest, num_threads=num_threads)
        queries = sample_queries(bundle, snapshot, histories, num=settings.recall_queries, seed=settings.seed)
        with TableWriter(stage.path / QUERIES_FILE, dtype=np.float32, shape=queries.shape) as table:
            table.append(queries)
        exact = exact_scores(snapshot, queries, report=report)
        floor = settings.min_recall_at_100
        search = widened(snapshot, queries, exact, min_recall_at_100=floor, report=report)
        if search != manifest.search:
            manifest = manifest.model_copy(update={"search": search})
            snapshot = IndexSnapshot.open(stage.path, manifest, num_threads=num_threads)
        found = check_snapshot(snapshot, bundle, queries, min_recall_at_100=floor, exact_Bk=exact, report=report)
        snapshot.close()
        version = stage.publish(manifest.model_copy(update={"recall_at_100": found.recall_at_100}))
        store.set_current(version)
        return RebuildResult(
            version=version,
            path=store.path_of(version),
            num_items=dataset.num_items,
            num_encoded=num_encoded,
            factory=factory,
            recall_at_100=found.recall_at_100,
        )


def _manifest(
    dataset: Dataset, bundle: BundleManifest, bundle_sha256: str, *, search: SearchSettings, factory: str
) -> SnapshotManifest:
    """Return what is known before the check; the check adds the recall, publishing the version, time and files."""
    return SnapshotManifest(
        version=UNPUBLISHED,
        created_at=datetime.now(UTC),
        bundle_version=bundle.version,
        bundle_sha256=bundle_sha256,
        dataset_name=dataset.manifest.name,
        data_fingerprint=dataset.fingerprint(),
        num_items=dataset.num_items,
        dim=bundle.dim,
        history_dim=bundle.history_dim,
        state_dim=bundle.state_dim,
        history_is_candidate=bundle.history_is_candidate,
        scorer=bundle.scorer,
        modalities=bundle.modalities,
        parts=bundle.parts,
        factory=factory,
        exact=factory == EXACT_FACTORY,
        search=search,
        recall_at_100=0,
        num_encoded=0,
        files=[],
    )


def _build(
    folder: Path,
    bundle: BundleManifest,
    num_items: int,
    *,
    settings: RebuildConfig,
    num_threads: int,
    report: Reporter,
) -> str:
    """Build the index that the size asks for and return its factory string; an exact one needs no file."""
    if num_items <= settings.exact_max_items:
        return EXACT_FACTORY
    factory = resolve_factory(settings.factory, num_items=num_items, dim=bundle.dim)
    if factory == EXACT_FACTORY:
        return factory
    build_index(
        factory,
        Table(folder / CANDIDATES_FILE, dtype=np.float32, shape=(num_items, bundle.dim)),
        folder / INDEX_FILE,
        train_rows=settings.train_rows,
        num_threads=num_threads,
        seed=settings.seed,
        report=report,
    )
    return factory


def _open_earlier(store: ArtifactStore, bundle_version: str, stack: ExitStack) -> IndexSnapshot | None:
    """Return the newest snapshot of the bundle that can be opened, kept from being pruned as long as `stack` lives."""
    for entry in reversed(store.list()):
        if entry.bundle_version != bundle_version:
            continue
        with suppress(ArtefactError), ExitStack() as pinned:  # damaged or just pruned: take another, or encode anew
            pinned.enter_context(store.pin(entry.version))
            snapshot = IndexSnapshot.open(*store.open_snapshot(entry.version))
            stack.enter_context(pinned.pop_all())
            return snapshot
    return None


def _rows_in(earlier: IndexSnapshot, folder: Path) -> Rows:
    """Return where an earlier snapshot has the items whose ids lie in `folder`; -1 for those that it has not."""
    return np.concatenate([earlier.rows(ids) for ids in _id_batches(folder)])


def _id_batches(folder: Path) -> Iterator[list[str]]:
    chunk: pa.Array
    for chunk in open_ipc(folder / IDS_FILE)["item_id"].chunks:
        yield chunk.to_pylist()
