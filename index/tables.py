"""Tables on disk: `.npy` files written row by row in bounded memory, read memory-mapped and shared by processes."""

import mmap
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from index.artefacts import ArtefactError


class TableWriter:
    """Appends rows to a `.npy` file whose number of rows is known.

    Plain writes, because pages dirtied through a memory map count as this process's memory until they are written.
    """

    def __init__(self, path: Path, *, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._shape = shape
        self._written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows.

        Raises:
            ValueError: They do not fit the table.
        """
        if rows.shape[1:] != self._shape[1:] or self._written + len(rows) > self._shape[0]:
            raise ValueError(
                f"{self.path.name}: rows of shape {rows.shape} at {self._written} do not fit {self._shape}"
            )
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._written += len(rows)

    def close(self) -> None:
        """Finish the file.

        Raises:
            ValueError: There are fewer rows than were announced.
        """
        self._file.close()
        if self._written != self._shape[0]:
            raise ValueError(f"{self.path.name}: {self._written} rows were written, {self._shape[0]} were announced")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or only let go of it when the block failed."""
        if kind is None:
            self.close()
        else:
            self._file.close()


class Table:
    """A memory-mapped, read-only `.npy` file."""

    def __init__(self, path: Path, *, dtype: DTypeLike, shape: tuple[int | None, ...]) -> None:
        """Map a file after its header is found to be right.

        Args:
            path: The file.
            dtype: What it must hold.
            shape: What it must be; None fits any size.

        Raises:
            ArtefactError: The file is missing, is not in the `.npy` format, is cut, or holds something else.
        """
        try:
            with path.open("rb") as file:
                found_shape, found_dtype, offset = _read_header(file)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ArtefactError(path, "is missing") from None
        except (OSError, ValueError) as error:
            raise ArtefactError(path, f"is not a table: {error}") from error
        fits = len(found_shape) == len(shape) and all(
            want is None or have == want for have, want in zip(found_shape, shape, strict=True)
        )
        if found_dtype != np.dtype(dtype) or not fits:
            wanted = "x".join("any" if size is None else str(size) for size in shape)
            found = "x".join(str(size) for size in found_shape)
            raise ArtefactError(path, f"holds {found_dtype} {found}, expected {np.dtype(dtype)} {wanted}")
        count = int(np.prod(found_shape))
        if len(self._map) != offset + count * found_dtype.itemsize:
            raise ArtefactError(path, f"has {len(self._map)} bytes, which is not what its header says")
        self.array: NDArray[Any] = np.frombuffer(self._map, found_dtype, count, offset).reshape(found_shape)
        """Read-only. It stays valid as long as anybody holds it, also after the file was removed."""

    def release(self) -> None:
        """Let the kernel take back the pages that were read; they are read again when needed."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"format version {version} instead of (1, 0)")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError("Fortran order or Python objects")
    return shape, dtype, file.tell()
