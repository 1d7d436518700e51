"""Write a dataset folder so that readers see all of it or nothing: a hidden folder beside it, then one rename."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from api_schemas.manifest import DatasetManifest, DatasetModality
from index.dataset import INTERACTIONS_FILE, ITEMS_FILE, MANIFEST_FILE, Dataset
from index.dataset_files import iter_batches, open_parquet
from index.dataset_problems import DatasetError, Problem
from index.dataset_schema import check_interactions_schema, check_items_schema
from index.dataset_validate import check_files
from index.progress import Reporter, silent

_LOCK_FILE = ".lock"
_BATCH_ROWS = 65_536


class DatasetWriter:
    """Writes one dataset folder in bounded memory: items first, then features and interactions, then `publish`.

    Used as a context manager; leaving it without `publish` removes all that was written. `dataset.json` is the last
    file to be written, so that the folder of a killed process never opens; the next writer of the same target
    removes it (its lock died with its owner).
    """

    def __init__(
        self, path: Path, *, name: str, description: str = "", licence: str = "", changes_seq: int = 0
    ) -> None:
        self._target = Path(path)
        self._name = name
        self._description = description
        self._licence = licence
        self._changes_seq = changes_seq
        self._num_items = 0
        self._num_interactions = 0
        self._users: set[str] = set()
        self._modalities: list[DatasetModality] = []
        self._items: pq.ParquetWriter | None = None
        self._interactions: pq.ParquetWriter | None = None
        self._staging: Path | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Make the hidden folder.

        Raises:
            FileExistsError: The target is there already and is not an empty folder.
        """
        _refuse_occupied(self._target)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self._target)
        self._staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(self._target), dir=self._target.parent))
        self._lock = (self._staging / _LOCK_FILE).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self._staging / "features").mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what was not published."""
        self._close_tables()
        if self._lock is not None:
            self._lock.close()
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def staging(self) -> Path:
        """The hidden folder: extra files (truth, covers) go here and are published with the rest."""
        assert self._staging is not None, "used outside its context"
        return self._staging

    @property
    def num_items(self) -> int:
        """Items written so far."""
        return self._num_items

    @property
    def num_users(self) -> int:
        """Distinct users in the interactions written so far."""
        return len(self._users)

    @property
    def num_interactions(self) -> int:
        """Interactions written so far."""
        return self._num_interactions

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Modalities written so far."""
        return tuple(modality.name for modality in self._modalities)

    def add_items(self, table: pa.Table) -> None:
        """Append items; every call brings the same columns.

        Raises:
            DatasetError: A column is missing or has a wrong type.
        """
        assert not self._modalities, "items come before features"
        if self._items is None:
            _raise_first_error(check_items_schema(table.schema, file_name=ITEMS_FILE))
            self._items = pq.ParquetWriter(self.staging / ITEMS_FILE, table.schema, compression="zstd")
        self._items.write_table(table)
        self._num_items += table.num_rows

    def iter_items(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Give the items written, batch by batch; no further ones can be added then."""
        assert self._items is not None, "no items were added"
        if self._items.is_open:
            self._items.close()
        with open_parquet(self.staging, ITEMS_FILE) as file:
            yield from iter_batches(file, ITEMS_FILE, batch_rows=_BATCH_ROWS, columns=columns)

    def add_interactions(self, table: pa.Table) -> None:
        """Append interactions, which are in time order within each user.

        Raises:
            DatasetError: A column is missing or has a wrong type.
        """
        if self._interactions is None:
            _raise_first_error(check_interactions_schema(table.schema, file_name=INTERACTIONS_FILE))
            self._interactions = pq.ParquetWriter(self.staging / INTERACTIONS_FILE, table.schema, compression="zstd")
        self._interactions.write_table(table)
        self._num_interactions += table.num_rows
        self._users.update(pc.unique(table["user_id"]).to_pylist())

    def add_modality(
        self,
        name: str,
        *,
        dim: int,
        batches: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_]]],
        dtype: DTypeLike = np.float16,
        source: str = "",
    ) -> None:
        """Write one modality from consecutive batches of (features `[B, dim]`, presence `[B]`) that cover all items.

        Raises:
            DatasetError: A batch has a wrong width, or the batches do not add up to the number of items.
        """
        spec = DatasetModality(
            name=name, dim=dim, file=f"features/{name}.npy", present_file=f"features/{name}.present.npy", source=source
        )
        features = np.lib.format.open_memmap(
            self.staging / spec.file, mode="w+", dtype=np.dtype(dtype), shape=(self._num_items, dim)
        )
        present = np.zeros(self._num_items, dtype=np.bool_)
        row = 0
        for rows_BD, present_B in batches:
            end = row + len(rows_BD)
            if rows_BD.shape[1:] != (dim,) or present_B.shape != (len(rows_BD),) or end > self._num_items:
                detail = f"got features {rows_BD.shape} and presence {present_B.shape} for {dim} columns"
                raise DatasetError(Problem(spec.file, f"{detail} and {self._num_items - row} rows left", row=row))
            features[row:end] = rows_BD
            present[row:end] = present_B
            row = end
        if row != self._num_items:
            raise DatasetError(Problem(spec.file, f"got {row} rows for {self._num_items} items"))
        features.flush()
        np.save(self.staging / spec.present_file, present)
        self._modalities.append(spec)

    def publish(self, *, on_progress: Reporter = silent) -> Dataset:
        """Check every value that was written, then rename the folder to its target.

        Raises:
            DatasetError: What was written is no dataset; carries the first problem.
        """
        if self._items is None or self._interactions is None or not self._modalities:
            raise DatasetError(Problem(MANIFEST_FILE, "a dataset needs items, interactions and at least one modality"))
        self._close_tables()
        manifest = DatasetManifest(
            name=self._name,
            description=self._description,
            licence=self._licence,
            num_users=self.num_users,
            num_items=self._num_items,
            num_interactions=self._num_interactions,
            modalities=self._modalities,
            changes_seq=self._changes_seq,
        )
        _raise_first_error(check_files(self.staging, manifest, on_progress=on_progress))
        for path in sorted(self.staging.rglob("*")):
            _sync(path)
        # Last of all, so that no folder opens before it is whole and on the disk.
        (self.staging / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _sync(self.staging / MANIFEST_FILE)
        _sync(self.staging)
        self.staging.chmod(0o755)  # mkdtemp makes it private
        self.staging.rename(self._target)
        self._staging = None
        (self._target / _LOCK_FILE).unlink()
        _sync(self._target.parent)
        return Dataset.open(self._target)

    def _close_tables(self) -> None:
        for table in (self._items, self._interactions):
            if table is not None and table.is_open:
                table.close()


def _refuse_occupied(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: give another folder, or remove it first")


def _staging_prefix(target: Path) -> str:
    return f".tmp-{target.name}-"


def _remove_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f"{_staging_prefix(target)}*"):
        try:
            with (folder / _LOCK_FILE).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # its owner is alive, or it is not ours


def _raise_first_error(problems: list[Problem]) -> None:
    for problem in problems:
        if problem.severity == "error":
            raise DatasetError(problem)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
