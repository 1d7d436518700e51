"""Columns of a memory-mapped Arrow IPC file, with cheap access to single rows."""

from bisect import bisect_right
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.artefacts import ArtefactError


def open_ipc(path: Path) -> pa.Table:
    """Map an Arrow IPC file; nothing is read but its footer.

    Raises:
        ArtefactError: The file is missing or is not an Arrow IPC file.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
    except FileNotFoundError:
        raise ArtefactError(path, "is missing") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtefactError(path, f"is not an Arrow file: {error}") from error


class TextColumn:
    """A column of `large_string` without nulls. `column[row]` takes a third of a microsecond."""

    def __init__(self, table: pa.Table, name: str) -> None:
        self._starts = [0]
        self._parts: list[tuple[memoryview, list[int] | np.ndarray]] = []
        for chunk in table[name].chunks:
            assert chunk.type == pa.large_string(), "written by us"
            assert chunk.null_count == 0, "written by us"
            if not len(chunk):
                continue
            _, offsets, data = chunk.buffers()
            positions = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            self._parts.append((memoryview(data) if data is not None else memoryview(b""), positions))
            self._starts.append(self._starts[-1] + len(chunk))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._starts[-1]

    def __getitem__(self, row: int) -> str:
        """Return the text of a row.

        Raises:
            IndexError: The row is negative or not below the length.
        """
        part = bisect_right(self._starts, row) - 1
        if not 0 <= part < len(self._parts):
            raise IndexError(f"row {row} of {len(self)}")
        data, positions = self._parts[part]
        place = row - self._starts[part]
        return str(data[positions[place] : positions[place + 1]], "utf-8")
