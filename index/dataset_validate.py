"""Check every value of a dataset folder in bounded memory and tell all that is wrong, with file, row and column."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from api_schemas.manifest import DatasetManifest, DatasetModality
from index.dataset import INTERACTIONS_FILE, ITEMS_FILE, MANIFEST_FILE, Dataset, FeatureArray, read_manifest
from index.dataset_files import iter_batches, open_parquet
from index.dataset_problems import DatasetError, Findings, Problem
from index.dataset_schema import MAX_ID_LENGTH, SPLITS, check_interactions_schema, check_items_schema
from index.progress import Reporter, silent

_BATCH_ROWS = 500_000
_FEATURE_CHUNK_BYTES = 32 << 20


def validate(path: Path, *, on_progress: Reporter = silent) -> list[Problem]:
    """Return everything that is wrong with a dataset folder; an empty list means that it can be used.

    Memory stays bounded by the number of items and users, whatever the number of interactions.
    """
    try:
        manifest = read_manifest(Path(path))
    except DatasetError as error:
        return [error.problem]
    return check_files(Path(path), manifest, on_progress=on_progress)


def check_files(path: Path, manifest: DatasetManifest, *, on_progress: Reporter = silent) -> list[Problem]:
    """Return everything in which the files of a folder do not fit a manifest, or are wrong in themselves."""
    item_ids, problems = _check_items(path, manifest, on_progress)
    problems += _check_interactions(path, manifest, item_ids, on_progress)
    dataset = Dataset(path=path, manifest=manifest)
    for modality in manifest.modalities:
        problems += _check_modality(dataset, modality, on_progress)
    return problems


def _check_items(path: Path, manifest: DatasetManifest, told: Reporter) -> tuple[pa.Array | None, list[Problem]]:
    """Return the item ids (None when they can not be read) and what is wrong with items.parquet."""
    try:
        file = open_parquet(path, ITEMS_FILE)
    except DatasetError as error:
        return None, [error.problem]
    with file:
        problems = check_items_schema(file.schema_arrow, file_name=ITEMS_FILE)
        problems += _check_num_rows(file, ITEMS_FILE, manifest.num_items, "num_items")
        if any(problem.severity == "error" and problem.column == "item_id" for problem in problems):
            return None, problems
        found = Findings(ITEMS_FILE)
        ids: list[pa.Array] = []
        row = 0
        try:
            for batch in iter_batches(file, ITEMS_FILE, batch_rows=_BATCH_ROWS):
                column = batch.column("item_id")
                _check_ids(found, "item_id", column, row)
                ids.append(column)
                row += batch.num_rows
                told(ITEMS_FILE, row, file.metadata.num_rows)
        except DatasetError as error:
            return None, [*problems, *found.problems(), error.problem]
    item_ids = pa.chunked_array(ids, type=pa.string()).combine_chunks()
    codes = np.asarray(item_ids.dictionary_encode().indices.fill_null(-1), dtype=np.int64)
    repeated = np.flatnonzero(codes <= np.maximum.accumulate(np.concatenate(([-1], codes[:-1]))))
    repeated = repeated[codes[repeated] >= 0]  # a null id was told above
    found.add("twice", repeated, detail=lambda at: f"item id {item_ids[at].as_py()!r} appears again", column="item_id")
    return item_ids, problems + found.problems()


def _check_interactions(
    path: Path, manifest: DatasetManifest, item_ids: pa.Array | None, told: Reporter
) -> list[Problem]:
    try:
        file = open_parquet(path, INTERACTIONS_FILE)
    except DatasetError as error:
        return [error.problem]
    with file:
        problems = check_interactions_schema(file.schema_arrow, file_name=INTERACTIONS_FILE)
        problems += _check_num_rows(file, INTERACTIONS_FILE, manifest.num_interactions, "num_interactions")
        if any(problem.severity == "error" and problem.column is not None for problem in problems):
            return problems
        checker = InteractionChecker(item_ids)
        try:
            for batch in iter_batches(file, INTERACTIONS_FILE, batch_rows=_BATCH_ROWS):
                checker.check(batch)
                told(INTERACTIONS_FILE, checker.row, file.metadata.num_rows)
        except DatasetError as error:
            return [*problems, *checker.found.problems(), error.problem]
    problems += checker.found.problems()
    if checker.num_users != manifest.num_users:
        detail = f"has {checker.num_users} users, but {MANIFEST_FILE} says num_users = {manifest.num_users}"
        problems.append(Problem(INTERACTIONS_FILE, detail, column="user_id"))
    return problems


class InteractionChecker:
    """Carries what one batch must know of those before it: the last timestamp of each user."""

    def __init__(self, item_ids: pa.Array | None) -> None:
        self.found = Findings(INTERACTIONS_FILE)
        self.row = 0
        self._item_ids = item_ids
        self._users: dict[str | None, int] = {}
        self._last_U = np.empty(0, dtype=np.int64)

    @property
    def num_users(self) -> int:
        """Distinct users seen so far."""
        return len(self._users) - (None in self._users)

    def check(self, batch: pa.RecordBatch) -> None:
        """Take the next rows of the file; what is wrong with them goes to `found`."""
        users, items = batch.column("user_id"), batch.column("item_id")
        _check_ids(self.found, "user_id", users, self.row)
        if self._item_ids is not None:
            unknown = ~np.asarray(pc.is_in(items, value_set=self._item_ids), dtype=np.bool_)
            self._add("item_id", unknown, lambda at: f"item {items[at].as_py()!r} is not in {ITEMS_FILE}")
        self._check_times(users, batch.column("timestamp"))
        for name in ("rating", "weight"):
            if name in batch.schema.names:
                values_B = np.asarray(batch.column(name).fill_null(0.0))
                self._add(name, ~np.isfinite(values_B), lambda at, values=values_B: f"value is {values[at]}")  # type: ignore[misc]  # mypy can not infer a default of a lambda
        if "split" in batch.schema.names:
            split = batch.column("split")
            other = ~np.asarray(pc.is_in(split, value_set=pa.array(SPLITS)), dtype=np.bool_)
            self._add("split", other, lambda at: f"split is {split[at].as_py()!r}, expected one of {', '.join(SPLITS)}")
        self.row += batch.num_rows

    def _check_times(self, users: pa.Array, timestamps: pa.Array) -> None:
        missing = np.asarray(timestamps.is_null(), dtype=np.bool_)
        self._add("timestamp", missing, lambda _: "timestamp is missing", kind="timestamp is missing")
        times_B = np.asarray(timestamps.fill_null(0), dtype=np.int64)
        detail = "timestamp {} is negative"
        self._add("timestamp", times_B < 0, lambda at: detail.format(times_B[at]), kind="timestamp is negative")
        if not len(times_B):
            return
        codes_B = self._codes(users)
        order = np.argsort(codes_B, kind="stable")
        codes, times = codes_B[order], times_B[order]
        starts = np.concatenate(([True], codes[1:] != codes[:-1]))
        before = np.where(starts, self._last_U[codes], np.concatenate((times[:1], times[:-1])))
        unsorted = np.zeros(len(times), dtype=np.bool_)
        unsorted[order] = times < before
        rule = "is before that of the user's row above: rows must be in time order within a user"
        self._add("timestamp", unsorted, lambda at: f"timestamp {times_B[at]} of user {users[at].as_py()!r} {rule}")
        ends = np.concatenate((starts[1:], [True]))
        self._last_U[codes[ends]] = times[ends]

    def _codes(self, users: pa.Array) -> NDArray[np.int64]:
        """Return a number for each row's user `[B]`, the same in every batch."""
        encoded = users.dictionary_encode(null_encoding="encode")
        names = encoded.dictionary.to_pylist()
        numbers = np.array([self._users.setdefault(user, len(self._users)) for user in names], dtype=np.int64)
        if len(self._users) > len(self._last_U):
            room = 2 * len(self._users) - len(self._last_U)
            self._last_U = np.concatenate((self._last_U, np.full(room, np.iinfo(np.int64).min)))
        return np.take(numbers, np.asarray(encoded.indices))

    def _add(self, column: str, bad_B: NDArray[np.bool_], detail: Callable[[int], str], *, kind: str = "") -> None:
        positions = np.flatnonzero(bad_B)
        self.found.add(kind or column, positions, detail=detail, column=column, first_row=self.row)


def _check_modality(dataset: Dataset, modality: DatasetModality, told: Reporter) -> list[Problem]:
    problems: list[Problem] = []
    presence: NDArray[np.bool_] | None = None
    try:
        presence = dataset.presence(modality.name)
    except DatasetError as error:
        problems.append(error.problem)
    try:
        features = dataset.features(modality.name)
    except DatasetError as error:
        return [error.problem, *problems]
    found = Findings(modality.file)
    for start, chunk_BD in _chunks(features):
        _check_finite(found, chunk_BD, start)
        if presence is not None:
            empty_B = presence[start : start + len(chunk_BD)] & ~chunk_BD.any(axis=1)
            found.add(
                "zeros",
                np.flatnonzero(empty_B),
                detail=lambda _: f"vector is all zeros, but {modality.present_file} says that it is present",
                column=None,
                first_row=start,
                severity="warning",
            )
        told(modality.file, start + len(chunk_BD), len(features))
    return problems + found.problems()


def _check_finite(found: Findings, chunk_BD: FeatureArray, start: int) -> None:
    bad_B = ~np.isfinite(chunk_BD).all(axis=1)
    if not bad_B.any():
        return

    def first_bad(row: int) -> int:
        return int(np.flatnonzero(~np.isfinite(chunk_BD[row]))[0])

    found.add(
        "not finite",
        np.flatnonzero(bad_B),
        detail=lambda row: f"value is {chunk_BD[row, first_bad(row)]}, expected a finite number",
        column=lambda row: str(first_bad(row)),
        first_row=start,
    )


def _chunks(features: FeatureArray) -> Iterator[tuple[int, FeatureArray]]:
    rows = max(1, _FEATURE_CHUNK_BYTES // max(1, features.shape[1] * features.itemsize))
    for start in range(0, len(features), rows):
        yield start, features[start : start + rows]


def _check_ids(found: Findings, column: str, ids: pa.Array, start: int) -> None:
    lengths = np.asarray(pc.utf8_length(ids).fill_null(0), dtype=np.int64)
    found.add(
        f"{column} empty",
        np.flatnonzero(lengths == 0),
        detail=lambda _: "id is missing or empty",
        column=column,
        first_row=start,
    )
    found.add(
        f"{column} long",
        np.flatnonzero(lengths > MAX_ID_LENGTH),
        detail=lambda at: f"id has {lengths[at]} characters, at most {MAX_ID_LENGTH} are allowed",
        column=column,
        first_row=start,
    )


def _check_num_rows(file: pq.ParquetFile, name: str, expected: int, field: str) -> list[Problem]:
    actual = file.metadata.num_rows
    if actual == expected:
        return []
    return [Problem(name, f"has {actual} rows, but {MANIFEST_FILE} says {field} = {expected}")]
