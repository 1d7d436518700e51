"""The gate before publishing, and `prismrec-index check`: a snapshot is what it says and finds what it should.

Legend of shapes: `B` users, `Q` queries a user, `N` items, `D` vector width, `k` results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from api_schemas.manifest import BundleManifest, EncodedCatalogue, SearchSettings, SnapshotManifest
from index.artefacts import ArtefactError
from index.bundle import Bundle
from index.catalogue import UserHistory
from index.exact import ExactIndex
from index.features import Rows, Vectors, pad_ages, pad_vectors
from index.item_tables import ItemTables
from index.known import open_warm_items
from index.progress import Reporter, silent
from index.snapshot import IndexSnapshot

RECALL_AT = 100
RECALL_TOLERANCE = 0.001
"""Another processor may round a score differently, so that another item is the hundredth."""

_CHUNK_ROWS = 16_384
_EXACT_ROWS = 8_192
_SAMPLED_IDS = 1_000
_MAX_DOUBLINGS = 10
_MAX_REFINE = 64


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found out about a snapshot that passed."""

    recall_at_100: float
    num_queries: int


def check_snapshot(
    snapshot: IndexSnapshot,
    bundle: Bundle,
    queries_BQD: Vectors,
    *,
    ranker: Bundle | None = None,
    min_recall_at_100: float,
    exact_Bk: Vectors | None = None,
    report: Reporter = silent,
) -> CheckReport:
    """Check a snapshot against its bundles and against exact search.

    Args:
        snapshot: An opened snapshot; opening has compared all row counts and widths with the manifest.
        bundle: Its bundle.
        queries_BQD: Users to measure the recall with, see `sample_queries`.
        ranker: The bundle of its ranker, if it has one.
        min_recall_at_100: What has to be reached.
        exact_Bk: The users' largest scores, when `exact_scores` was called already.
        report: Hears of the progress.

    Raises:
        ArtefactError: Something does not fit, a vector is not finite, a bundle's graphs do not reproduce their golden
            outputs, or the recall is too low.
    """
    check_fit(snapshot.manifest, bundle.manifest, ranker.manifest if ranker is not None else None, where=snapshot.path)
    _check_tables(snapshot, snapshot, bundle, report=report)
    if ranker is not None and snapshot.ranker is not None:
        _check_tables(snapshot, snapshot.ranker, ranker, report=report)
    _check_ids(snapshot)
    if exact_Bk is None:
        exact_Bk = exact_scores(snapshot, queries_BQD, report=report)
    recall = measure_recall(snapshot, queries_BQD, exact_Bk)
    if recall < min_recall_at_100:
        raise ArtefactError(
            snapshot.path,
            f"{snapshot.manifest.factory} has recall@{RECALL_AT} {recall:.4f}, the floor is {min_recall_at_100}",
        )
    return CheckReport(recall_at_100=recall, num_queries=len(queries_BQD))


def check_fit(
    snapshot: SnapshotManifest, bundle: BundleManifest, ranker: BundleManifest | None, *, where: Path
) -> None:
    """Compare what a snapshot says of its models with their bundles.

    Raises:
        ArtefactError: Names the first field that differs.
    """
    if snapshot.scorer != bundle.scorer:
        raise ArtefactError(where, f"scorer is {snapshot.scorer}, its bundle has {bundle.scorer}")
    if (ranker is None) != (snapshot.ranker is None):
        raise ArtefactError(where, "has a ranker, and none was given" if ranker is None else "has no ranker")
    models: list[tuple[str, EncodedCatalogue, BundleManifest]] = [("", snapshot, bundle)]
    if ranker is not None and snapshot.ranker is not None:
        models.append(("ranker: ", snapshot.ranker, ranker))
    for of, encoded, model in models:
        for field in ("dim", "history_dim", "state_dim", "history_is_candidate", "modalities", "part_names"):
            ours, theirs = getattr(encoded, field), getattr(model, field)
            if ours != theirs:
                raise ArtefactError(where, f"{of}{field} is {ours}, its bundle has {theirs}")


def _check_tables(snapshot: IndexSnapshot, tables: ItemTables, bundle: Bundle, *, report: Reporter) -> None:
    """Check what one model has made of the items against that model."""
    bundle.check_golden()
    _check_values(snapshot, tables, of="" if tables is snapshot else "ranker: ", report=report)
    _check_known(snapshot, tables, bundle)


def _check_values(snapshot: IndexSnapshot, tables: ItemTables, *, of: str, report: Reporter) -> None:
    num_items = snapshot.num_items
    for start in range(0, num_items, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, num_items))
        for name, values in (
            ("candidates", tables.candidates(rows)),
            ("history", tables.history(rows)),
            ("states", tables.states(rows)),
        ):
            _check_finite(snapshot, values, what=f"{of}{name}", rows=rows)
        tables.release()
        report(f"{of}check values", int(rows[-1]) + 1, num_items)


def check_vectors(snapshot: IndexSnapshot) -> None:
    """Check that what is searched, and what is read of a history, are numbers: what takes no time when loading.

    Raises:
        ArtefactError: A vector holds NaN or infinity.
    """
    tables_of = [snapshot] if snapshot.ranker is None else [snapshot, snapshot.ranker]
    for tables, encoded in zip(tables_of, snapshot.manifest.encoded, strict=True):
        of = "" if tables is snapshot else "ranker: "
        for start in range(0, snapshot.num_items, _CHUNK_ROWS):
            rows = np.arange(start, min(start + _CHUNK_ROWS, snapshot.num_items))
            _check_finite(snapshot, tables.candidates(rows), what=f"{of}candidates", rows=rows)
            if not encoded.history_is_candidate:
                _check_finite(snapshot, tables.history(rows), what=f"{of}history", rows=rows)


def _check_finite(snapshot: IndexSnapshot, values: Vectors, *, what: str, rows: Rows) -> None:
    if not np.isfinite(values).all():
        raise ArtefactError(snapshot.path, f"{what}: NaN or infinity between rows {rows[0]} and {rows[-1]}")


def _sampled_rows(snapshot: IndexSnapshot) -> Rows:
    num = min(_SAMPLED_IDS, snapshot.num_items)
    return np.unique(np.linspace(0, snapshot.num_items - 1, num=num).astype(np.int64))


def _check_known(snapshot: IndexSnapshot, tables: ItemTables, bundle: Bundle) -> None:
    """Compare items that the model knows with what it has learned of them."""
    warm, table = bundle.manifest.warm, open_warm_items(bundle.path, bundle.manifest)
    if warm is None or table is None:
        return
    rows = _sampled_rows(snapshot)
    known_rows = table.rows(pa.chunked_array([snapshot.item_ids(rows)]))
    known = np.flatnonzero(known_rows >= 0)
    columns = [tables.parts.index(part) for part in warm.parts]
    found, learned = tables.states(rows[known])[:, columns], table.vectors[known_rows[known]]
    wrong = np.flatnonzero((found != learned).any(axis=(1, 2)))
    if wrong.size:
        row = int(rows[known[wrong[0]]])
        raise ArtefactError(snapshot.path, f"states of row {row} are not those that the model has learned of the item")


def _check_ids(snapshot: IndexSnapshot) -> None:
    rows = _sampled_rows(snapshot)
    if not np.array_equal(snapshot.rows(snapshot.item_ids(rows)), rows):
        raise ArtefactError(snapshot.path, "ids do not lead back to their rows")
    if not np.array_equal(np.sort(snapshot.popular_rows), np.arange(snapshot.num_items)):
        raise ArtefactError(snapshot.path, "popular_rows does not have every row once")


def sample_queries(
    bundle: Bundle, snapshot: IndexSnapshot, histories: Sequence[UserHistory], *, num: int, seed: int
) -> Vectors:
    """Return the queries of `num` users `[B, Q, D]`: of the histories given, and of random ones where they run out."""
    rng = np.random.default_rng(seed)
    length = bundle.manifest.history_length
    chosen = [history for history in histories if history.rows.size][:num]
    while len(chosen) < num:
        rows = rng.integers(0, snapshot.num_items, size=int(rng.integers(1, length + 1)))
        chosen.append(UserHistory(rows, np.zeros(rows.size, dtype=np.float32)))
    padded = [pad_vectors(snapshot.history(history.rows), length=length) for history in chosen]
    history_BLH = np.stack([history for history, _ in padded])
    mask_BL = np.stack([mask for _, mask in padded])
    ages_BL = np.stack([pad_ages(history.ages, length=length) for history in chosen])
    return bundle.encode_users(history_BLH, mask_BL, ages_BL)


def measure_recall(snapshot: IndexSnapshot, queries_BQD: Vectors, exact_Bk: Vectors) -> float:
    """Return the share of the exact top 100 that the snapshot's index finds, as the mean over users.

    A row found counts when its exact score reaches the 100th exact one, so equal scores do not count as misses.

    Args:
        snapshot: What is measured.
        queries_BQD: The users.
        exact_Bk: Their largest scores as `exact_scores` gives them.
    """
    k = exact_Bk.shape[1]
    hits: int = 0
    for queries_QD, (*_, limit) in zip(queries_BQD, exact_Bk.tolist(), strict=True):
        _, (rows,) = snapshot.search_index_alone(queries_QD[np.newaxis], k=k)
        found = snapshot.score(queries_QD, rows[rows >= 0])
        hits += int(np.count_nonzero(found >= limit - 1e-5 * max(1.0, abs(limit))))
    return float(hits / (k * len(queries_BQD)))


def widened(
    snapshot: IndexSnapshot,
    queries_BQD: Vectors,
    exact_Bk: Vectors,
    *,
    min_recall_at_100: float,
    report: Reporter = silent,
) -> SearchSettings:
    """Return the search settings with which an approximate index reaches a recall, or comes as near as it can.

    Starts from the snapshot's own settings and doubles either what is looked into (`nprobe`, `ef_search`) or what is
    scored exactly (`refine`), whichever helps more, until it is enough or neither helps.
    """
    manifest = snapshot.manifest

    def measure(settings: SearchSettings) -> float:
        tried = IndexSnapshot.open(snapshot.path, manifest.model_copy(update={"search": settings}))
        return measure_recall(tried, queries_BQD, exact_Bk)

    settings, recall = manifest.search, measure_recall(snapshot, queries_BQD, exact_Bk)
    for step in range(_MAX_DOUBLINGS):
        if manifest.exact or recall >= min_recall_at_100:
            break
        report("widen search", step, _MAX_DOUBLINGS)
        wider = {"nprobe": 2 * settings.nprobe, "ef_search": 2 * settings.ef_search}
        deeper = {"refine": min(2 * settings.refine, _MAX_REFINE)}
        choices = [settings.model_copy(update=update) for update in (wider, deeper)]
        best = max(((measure(choice), -position) for position, choice in enumerate(choices)))
        if best[0] <= recall:
            break
        recall, settings = best[0], choices[-best[1]]
    return settings


def exact_scores(snapshot: IndexSnapshot, queries_BQD: Vectors, *, report: Reporter = silent) -> Vectors:
    """Return the 100 largest scores of each user, descending `[B, k]`, by the NumPy twin, in bounded memory.

    A catalogue of fewer items gives as many as there are.
    """
    k = min(RECALL_AT, snapshot.num_items)
    best_Bk = np.empty((len(queries_BQD), 0), dtype=np.float32)
    for start in range(0, snapshot.num_items, _EXACT_ROWS):
        table_ND = snapshot.candidates(np.arange(start, min(start + _EXACT_ROWS, snapshot.num_items)))
        twin = ExactIndex(table_ND, scorer=snapshot.manifest.scorer)
        scores_BN = np.concatenate([best_Bk, twin.score_all(queries_BQD)], axis=1)
        best_Bk = -np.partition(-scores_BN, min(k, scores_BN.shape[1]) - 1, axis=1)[:, :k]
        report("search exactly", start + len(table_ND), snapshot.num_items)
    return -np.sort(-best_Bk, axis=1)
