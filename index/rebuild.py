"""The batch job: encode a catalogue, build its index, check it, publish it, point CURRENT at it.

With a ranker, the catalogue is encoded twice, by each model for itself; the index is of the retriever's vectors.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from api_schemas.manifest import BundleManifest, EncodedCatalogue, SearchSettings, SnapshotManifest, widths_of
from index.artefacts import MANIFEST, sha256_of
from index.build import build_index, resolve_factory
from index.bundle import Bundle
from index.catalogue import write_items, write_popularity
from index.check import check_snapshot, exact_scores, sample_queries, widened
from index.columns import open_ipc
from index.config import RebuildConfig
from index.dataset import Dataset
from index.encode import Previous, encode_catalogue
from index.ids import IDS_FILE
from index.item_tables import CANDIDATES_FILE
from index.progress import Reporter, silent
from index.snapshot import INDEX_FILE, QUERIES_FILE, RANKER_FOLDER, IndexSnapshot
from index.store import UNPUBLISHED, ArtefactError, ArtifactStore
from index.tables import Table, TableWriter
from index.trimmed import check_complete

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
    num_encoded_by_ranker: int | None = None
    """None: no ranker."""


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """An opened bundle and how it is named."""

    bundle: Bundle
    sha256: str
    """Of its manifest."""

    @property
    def manifest(self) -> BundleManifest:
        return self.bundle.manifest


def rebuild(
    store: ArtifactStore,
    *,
    bundle_version: str,
    ranker_version: str | None = None,
    dataset: Dataset,
    config: RebuildConfig | None = None,
    make_current: bool = True,
    report: Reporter = silent,
) -> RebuildResult:
    """Make a snapshot of a dataset's catalogue under a bundle, publish it, and make it the current one.

    Whatever fails on the way, and also a kill, leaves `CURRENT` and all published versions as they were. Items that an
    earlier snapshot of the same bundle has with the same features are copied from it.

    Args:
        store: Where the bundles are, and where the snapshot goes.
        bundle_version: The model that retrieves.
        ranker_version: The model that orders what is retrieved; None: the retriever's order stands.
        dataset: The catalogue.
        config: How to encode, index and check.
        make_current: False: it is published alone, for an alias to name.
        report: Hears of the progress.

    Raises:
        ArtefactError: A bundle can not be opened, or the new snapshot does not pass its check.
        ValueError: The dataset or the configuration can not be used, or a bundle not for this; names the field, or file
            and row. Or the dataset lacks changes of items that are kept nowhere else any more.
        OSError: The disk is full or fails.
    """
    check_complete(store, dataset)
    settings = config or RebuildConfig()
    num_threads = settings.num_threads or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        retriever = _open_model(store, bundle_version, stack, num_threads=num_threads)
        ranker = None
        if ranker_version is not None:
            ranker = _open_model(store, ranker_version, stack, num_threads=num_threads)
        _check_roles(retriever.manifest, ranker.manifest if ranker is not None else None)
        stage = stack.enter_context(store.stage("snapshot"))

        write_items(dataset, stage.path, report=report)
        histories = write_popularity(
            dataset,
            stage.path,
            num_users=settings.recall_queries,
            history_length=retriever.manifest.history_length,
            report=report,
        )
        item_ids: pa.ChunkedArray = open_ipc(stage.path / IDS_FILE)["item_id"]
        models = (
            {stage.path: retriever} if ranker is None else {stage.path: retriever, stage.path / RANKER_FOLDER: ranker}
        )
        earlier = _earlier(store, {model.manifest.version for model in models.values()}, item_ids, stack)
        encoded = [
            _encode(model, dataset, folder, item_ids, earlier, batch_rows=settings.batch_rows, report=report)
            for folder, model in models.items()
        ]
        factory = _build(
            stage.path, retriever.manifest, dataset.num_items, settings=settings, num_threads=num_threads, report=report
        )
        manifest = _manifest(dataset, retriever.manifest, encoded, search=settings.search, factory=factory)
        snapshot = IndexSnapshot.open(stage.path, manifest, num_threads=num_threads)
        queries = sample_queries(retriever.bundle, snapshot, histories, num=settings.recall_queries, seed=settings.seed)
        with TableWriter(stage.path / QUERIES_FILE, dtype=np.float32, shape=queries.shape) as table:
            table.append(queries)
        exact = exact_scores(snapshot, queries, report=report)
        floor = settings.min_recall_at_100
        search = widened(snapshot, queries, exact, min_recall_at_100=floor, report=report)
        if search != manifest.search:
            manifest = manifest.model_copy(update={"search": search})
            snapshot = IndexSnapshot.open(stage.path, manifest, num_threads=num_threads)
        found = check_snapshot(
            snapshot,
            retriever.bundle,
            queries,
            ranker=ranker.bundle if ranker is not None else None,
            min_recall_at_100=floor,
            exact_Bk=exact,
            report=report,
        )
        snapshot.close()
        version = stage.publish(manifest.model_copy(update={"recall_at_100": found.recall_at_100}))
        if make_current:
            store.set_current(version)
        return RebuildResult(
            version=version,
            path=store.path_of(version),
            num_items=dataset.num_items,
            num_encoded=manifest.num_encoded,
            num_encoded_by_ranker=manifest.ranker.num_encoded if manifest.ranker is not None else None,
            factory=factory,
            recall_at_100=found.recall_at_100,
        )


def _open_model(store: ArtifactStore, version: str, stack: ExitStack, *, num_threads: int) -> _Model:
    """Open a bundle, which is kept from being pruned as long as `stack` lives."""
    stack.enter_context(store.pin(version))
    path, _ = store.open_bundle(version)
    return _Model(Bundle.open(path, num_threads=num_threads), sha256_of(path / MANIFEST))


def _check_roles(retriever: BundleManifest, ranker: BundleManifest | None) -> None:
    """Raise a ValueError unless the one can retrieve, and the other order what it has retrieved."""
    if retriever.is_ranker:
        raise ValueError(
            f"bundle: {retriever.version} is a ranker, which finds no items by itself: give it as the ranker, beside a "
            "bundle that retrieves"
        )
    if ranker is None:
        return
    if not ranker.is_ranker:
        raise ValueError(
            f"ranker: {ranker.version} is none, it retrieves by inner product (scorer {ranker.scorer}): give it as the "
            "bundle, alone or with a ranker"
        )
    left, right = widths_of(retriever.modalities), widths_of(ranker.modalities)
    if left != right:
        raise ValueError(
            f"ranker: {ranker.version} reads the modalities {right}, but {retriever.version} reads {left}: train both "
            "on the same ones"
        )


def _encode(
    model: _Model,
    dataset: Dataset,
    folder: Path,
    item_ids: pa.ChunkedArray,
    earlier: Mapping[str, Previous],
    *,
    batch_rows: int,
    report: Reporter,
) -> EncodedCatalogue:
    """Write a model's tables and return what the manifest says of them."""
    manifest = model.manifest
    num_encoded = encode_catalogue(
        model.bundle,
        dataset,
        folder,
        item_ids=item_ids,
        batch_rows=batch_rows,
        previous=earlier.get(manifest.version),
        report=report,
    )
    return EncodedCatalogue(
        bundle_version=manifest.version,
        bundle_sha256=model.sha256,
        dim=manifest.dim,
        history_dim=manifest.history_dim,
        state_dim=manifest.state_dim,
        history_is_candidate=manifest.history_is_candidate,
        modalities=manifest.modalities,
        parts=manifest.parts,
        num_encoded=num_encoded,
    )


def _manifest(
    dataset: Dataset,
    retriever: BundleManifest,
    encoded: Sequence[EncodedCatalogue],
    *,
    search: SearchSettings,
    factory: str,
) -> SnapshotManifest:
    """Return what is known before the check; the check adds the recall, publishing the version, time and files."""
    first, *rest = encoded
    return SnapshotManifest(
        **dict(first),
        version=UNPUBLISHED,
        created_at=datetime.now(UTC),
        dataset_name=dataset.manifest.name,
        data_fingerprint=dataset.fingerprint(),
        num_items=dataset.num_items,
        changes_seq=dataset.manifest.changes_seq,
        scorer=retriever.scorer,
        ranker=rest[0] if rest else None,
        factory=factory,
        exact=factory == EXACT_FACTORY,
        search=search,
        recall_at_100=0,
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


def _earlier(
    store: ArtifactStore, bundles: set[str], item_ids: pa.ChunkedArray, stack: ExitStack
) -> dict[str, Previous]:
    """Return of each bundle the tables in the newest snapshot that can be opened, where there is one.

    The snapshots are kept from being pruned as long as `stack` lives.
    """
    found: dict[str, Previous] = {}
    for entry in reversed(store.list()):
        if not (bundles - found.keys()) & set(entry.bundle_versions):
            continue
        with suppress(ArtefactError), ExitStack() as pinned:  # damaged or just pruned: take another, or encode anew
            pinned.enter_context(store.pin(entry.version))
            snapshot = IndexSnapshot.open(*store.open_snapshot(entry.version))
            stack.enter_context(pinned.pop_all())
            rows = np.concatenate([snapshot.rows(ids.to_pylist()) for ids in item_ids.chunks])
            tables = [snapshot] if snapshot.ranker is None else [snapshot, snapshot.ranker]
            for version, table in zip(entry.bundle_versions, tables, strict=True):
                if version in bundles:
                    found.setdefault(version, Previous(table, rows))
    return found
