"""The dataset folder: open it, read it, name it.

    dataset.json              DatasetManifest: counts and modalities
    interactions.parquet      user_id, item_id, timestamp [, rating, weight, event, split], in time order within a user
    items.parquet             item_id [, title, description, image_url, categories, further attributes]
    features/NAME.npy         [N, D_m] float16 or float32, row order = items.parquet
    features/NAME.present.npy [N] bool
    truth.parquet             only in generated data: user_id, modality (what drives the user), style

`index.dataset_validate` checks every value, `index.dataset_write` writes such a folder.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from api_schemas.manifest import DatasetManifest, DatasetModality
from index.dataset_files import inside, iter_batches, open_array, open_parquet, read_parquet
from index.dataset_problems import DatasetError, Problem
from index.dataset_schema import check_interactions_schema, check_items_schema, normalised

MANIFEST_FILE = "dataset.json"
ITEMS_FILE = "items.parquet"
INTERACTIONS_FILE = "interactions.parquet"
TRUTH_FILE = "truth.parquet"

FeatureArray = NDArray[np.float16] | NDArray[np.float32]

_HASH_CHUNK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 20

__all__ = [
    "INTERACTIONS_FILE",
    "ITEMS_FILE",
    "MANIFEST_FILE",
    "TRUTH_FILE",
    "Dataset",
    "DatasetError",
    "FeatureArray",
    "Problem",
]


@dataclass(frozen=True)
class Dataset:
    """An opened dataset folder: its files are there and fit the manifest; arrays are memory-mapped and read-only."""

    path: Path
    manifest: DatasetManifest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder after the cheap checks: manifest, schemas, row counts, dtypes, shapes; no value is read.

        Raises:
            DatasetError: Something is missing or does not fit; names the file and, where it can, row and column.
        """
        dataset = cls(path=Path(path), manifest=read_manifest(Path(path)))
        dataset._check_tables()
        for modality in dataset.manifest.modalities:
            dataset.features(modality.name)
            dataset.presence(modality.name)
        return dataset

    @property
    def num_items(self) -> int:
        """Number of rows in items.parquet and in every feature file."""
        return self.manifest.num_items

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names of the modalities in the manifest's order."""
        return tuple(modality.name for modality in self.manifest.modalities)

    @cached_property
    def item_ids(self) -> list[str]:
        """External item ids; the position is the row of the features."""
        return [str(value) for value in self.read_items(["item_id"])["item_id"].to_pylist()]

    def items(self) -> pa.Table:
        """Return items.parquet whole; strings are of Arrow's type `string`, whatever wrote the file."""
        return self.read_items(None)

    def read_items(self, columns: list[str] | None) -> pa.Table:
        """Return the named columns of items.parquet, or all of them for None."""
        with open_parquet(self.path, ITEMS_FILE) as file:
            return normalised(read_parquet(file, ITEMS_FILE, columns))

    def features(self, modality: str) -> FeatureArray:
        """Return a modality's raw vectors `[N, D_m]`, float16 or float32, memory-mapped and read-only."""
        spec = self._modality(modality)
        array: FeatureArray = open_array(self.path, spec.file)
        if array.dtype not in (np.float16, np.float32):
            raise DatasetError(Problem(spec.file, f"dtype is {array.dtype}, expected float16 or float32"))
        if array.shape != (self.num_items, spec.dim):
            expected = (self.num_items, spec.dim)
            raise DatasetError(Problem(spec.file, f"shape is {array.shape}, expected {expected} (items, dim)"))
        if not array.flags.c_contiguous:
            raise DatasetError(Problem(spec.file, "rows are not contiguous: written in Fortran order"))
        return array

    def presence(self, modality: str) -> NDArray[np.bool_]:
        """Return which items have the modality: `[N]` bool, memory-mapped and read-only."""
        spec = self._modality(modality)
        array: NDArray[np.bool_] = open_array(self.path, spec.present_file)
        if array.dtype != np.bool_:
            raise DatasetError(Problem(spec.present_file, f"dtype is {array.dtype}, expected bool"))
        if array.shape != (self.num_items,):
            raise DatasetError(Problem(spec.present_file, f"shape is {array.shape}, expected {(self.num_items,)}"))
        return array

    def interactions(self) -> pa.Table:
        """Return interactions.parquet whole, in the file's order; for sets that fit in memory."""
        with open_parquet(self.path, INTERACTIONS_FILE) as file:
            return normalised(read_parquet(file, INTERACTIONS_FILE, None))

    def iter_interactions(self, batch_rows: int = 1_000_000) -> Iterator[pa.RecordBatch]:
        """Give interactions.parquet batch by batch, in the file's order, in bounded memory."""
        with open_parquet(self.path, INTERACTIONS_FILE) as file:
            yield from iter_batches(file, INTERACTIONS_FILE, batch_rows=batch_rows)

    def truth(self) -> dict[str, str] | None:
        """Return the modality that drives each user, by user id, where the data were generated with that known."""
        if not (self.path / TRUTH_FILE).exists():
            return None
        with open_parquet(self.path, TRUTH_FILE) as file:
            table = read_parquet(file, TRUTH_FILE, ["user_id", "modality"])
        return dict(zip(table["user_id"].to_pylist(), table["modality"].to_pylist(), strict=True))

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) over the manifest and every file it stands for, read in chunks."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        names = [ITEMS_FILE, INTERACTIONS_FILE]
        for modality in self.manifest.modalities:
            names += [modality.file, modality.present_file]
        total = hashlib.sha256(
            json.dumps(self.manifest.model_dump(mode="json", exclude={"changes_seq"}), sort_keys=True).encode()
        )
        for name in names:
            total.update(f"\0{name}\0{_sha256(self.path / name)}".encode())
        return total.hexdigest()

    def _modality(self, name: str) -> DatasetModality:
        for modality in self.manifest.modalities:
            if modality.name == name:
                return modality
        raise DatasetError(Problem(MANIFEST_FILE, f"no modality {name!r}; it has {', '.join(self.modality_names)}"))

    def _check_tables(self) -> None:
        with open_parquet(self.path, ITEMS_FILE) as file:
            _raise_first(check_items_schema(file.schema_arrow, file_name=ITEMS_FILE))
            _check_rows(file, ITEMS_FILE, self.manifest.num_items, field="num_items")
        with open_parquet(self.path, INTERACTIONS_FILE) as file:
            _raise_first(check_interactions_schema(file.schema_arrow, file_name=INTERACTIONS_FILE))
            _check_rows(file, INTERACTIONS_FILE, self.manifest.num_interactions, field="num_interactions")


def read_manifest(folder: Path) -> DatasetManifest:
    """Read `dataset.json`.

    Raises:
        DatasetError: It is missing, is not JSON, or says something that no dataset can have; names the field.
    """
    path = inside(folder, MANIFEST_FILE)
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise DatasetError(Problem(MANIFEST_FILE, f"is larger than {_MAX_MANIFEST_BYTES} bytes"))
    try:
        return DatasetManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DatasetError(Problem(MANIFEST_FILE, first["msg"], column=field or None)) from error


def _check_rows(
    file: pq.ParquetFile, name: str, expected: int, *, field: Literal["num_items", "num_interactions"]
) -> None:
    if file.metadata.num_rows != expected:
        detail = f"has {file.metadata.num_rows} rows, but {MANIFEST_FILE} says {field} = {expected}"
        raise DatasetError(Problem(name, detail))


def _raise_first(problems: list[Problem]) -> None:
    for problem in problems:
        if problem.severity == "error":
            raise DatasetError(problem)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
