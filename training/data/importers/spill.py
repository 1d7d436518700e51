"""Group rows by user on disk, so that a set larger than memory can be put in order user by user."""

import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

_BYTES_PER_BUCKET = 32 << 20
"""Of the source; a bucket holds about as much in memory, and its sorting three times that."""
_MAX_BUCKETS = 512


class UserBuckets:
    """Rows spread over temporary files by their user; all rows of a user are in one file, in the order they came.

    Memory is bounded by one batch while rows are added, and by one bucket while they are read. The order of users
    depends on their ids and on the number of buckets alone, so the same source gives the same bytes.
    """

    def __init__(self, folder: Path, *, source_bytes: int) -> None:
        self._folder = folder
        self._num = min(_MAX_BUCKETS, 1 + source_bytes // _BYTES_PER_BUCKET)
        self._writers: list[pa.ipc.RecordBatchStreamWriter | None] = [None] * self._num
        self._schema: pa.Schema | None = None
        self.num_rows = 0
        """Rows added so far."""

    def __enter__(self) -> Self:
        """Make the folder of the temporary files."""
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the temporary files."""
        self._close()
        for bucket in range(self._num):
            self._path(bucket).unlink(missing_ok=True)
        self._folder.rmdir()

    def add(self, table: pa.Table) -> None:
        """Spread the rows of a table with a column `user_id`; every call brings the same columns."""
        table = table.combine_chunks()
        self._schema = table.schema
        self.num_rows += table.num_rows
        bucket_B = self._buckets(table["user_id"])
        order = np.argsort(bucket_B, kind="stable")
        sorted_table = table.take(pa.array(order))
        bounds = np.searchsorted(bucket_B[order], np.arange(self._num + 1))
        for bucket, (start, end) in enumerate(pairwise(bounds.tolist())):
            if end > start:
                self._writer(bucket).write_table(sorted_table.slice(start, end - start))

    def tables(self, order_by: Sequence[str]) -> Iterator[pa.Table]:
        """Give one table a bucket, ordered by user and then by `order_by`; rows that are equal stay as they came."""
        self._close()
        for bucket in range(self._num):
            path = self._path(bucket)
            if not path.exists():
                continue
            with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
                table = reader.read_all().combine_chunks()
            path.unlink()
            yield table.sort_by([("user_id", "ascending"), *((name, "ascending") for name in order_by)])

    def _buckets(self, users: pa.ChunkedArray) -> NDArray[np.int64]:
        encoded = users.combine_chunks().dictionary_encode()
        # Python's own hash changes with every process.
        numbers = [zlib.crc32(user.encode()) % self._num for user in encoded.dictionary.to_pylist()]
        return np.take(np.array(numbers, dtype=np.int64), np.asarray(encoded.indices))

    def _writer(self, bucket: int) -> pa.ipc.RecordBatchStreamWriter:
        writer = self._writers[bucket]
        if writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = pa.ipc.new_stream(str(self._path(bucket)), self._schema, options=options)
            self._writers[bucket] = writer
        return writer

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:03d}.arrow"

    def _close(self) -> None:
        for bucket, writer in enumerate(self._writers):
            if writer is not None:
                writer.close()
                self._writers[bucket] = None
