"""Open the files of a dataset folder: nothing here runs code from a file, and no path leaves the folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.dataset_problems import DatasetError, Problem
from index.dataset_schema import normalised


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of the folder after making sure that it is a file and does not lead outside.

    Raises:
        DatasetError: The folder or file is missing, is no plain file, or a link leads out of the folder.
    """
    if not folder.is_dir():
        raise DatasetError(Problem(str(folder), "is not a folder" if folder.exists() else "folder is missing"))
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(Problem(name, "leads out of the dataset's folder"))
    if not path.exists():
        raise DatasetError(Problem(name, "file is missing"))
    if not path.is_file():
        raise DatasetError(Problem(name, "is not a file"))
    return path


def open_parquet(folder: Path, name: str) -> pq.ParquetFile:
    """Open a Parquet file of the folder; its footer is read, its rows are not.

    Raises:
        DatasetError: It is missing, cut short, or no Parquet file.
    """
    path = inside(folder, name)
    try:
        # Threads of Arrow would keep several row groups in memory at once.
        return pq.ParquetFile(path, memory_map=False, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(Problem(name, f"is not a readable Parquet file: {first_line(error)}")) from error


def open_array(folder: Path, name: str) -> NDArray[Any]:
    """Map a `.npy` file of the folder read-only; Python objects in it are refused, never loaded.

    Raises:
        DatasetError: It is missing, cut short, or no `.npy` file of plain numbers.
    """
    path = inside(folder, name)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(Problem(name, f"is not a readable .npy file: {first_line(error)}")) from error
    if not isinstance(array, np.ndarray):
        raise DatasetError(Problem(name, "is a .npz archive, expected a single .npy array"))
    return array


def iter_batches(
    file: pq.ParquetFile, name: str, *, batch_rows: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Give a Parquet file's rows in order, with normalised string types.

    Raises:
        DatasetError: A page can not be decoded; names the row from which on it can not.
    """
    row = 0
    batches = file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            detail = f"rows can not be decoded from here on: {first_line(error)}"
            raise DatasetError(Problem(name, detail, row=row)) from error
        if batch is None:
            return
        row += batch.num_rows
        yield from normalised(pa.Table.from_batches([batch])).to_batches()


def read_parquet(file: pq.ParquetFile, name: str, columns: list[str] | None) -> pa.Table:
    """Read a whole table, or the named columns of it.

    Raises:
        DatasetError: A page can not be decoded, or a column is missing.
    """
    try:
        return file.read(columns=columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(Problem(name, f"can not be read: {first_line(error)}")) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message: Arrow appends pages of detail."""
    return (str(error).splitlines() or [type(error).__name__])[0]
