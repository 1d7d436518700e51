"""KnownTable: arrays that a model has learned for things that it knows by id: items' parts, users' queries.

Two files: an Arrow IPC file of ids, and a `.npy` table with a row for each. Both are memory-mapped and read-only. What
stays in memory is the order of the ids, 8 bytes each.

Legend of shapes: `n` rows.
"""

from bisect import bisect_left
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from api_schemas.manifest import BundleManifest
from index.artefacts import ArtefactError
from index.columns import TextColumn, open_ipc
from index.features import Rows, Vectors
from index.tables import Table

_CHUNK_BYTES = 16 * 1024 * 1024


class KnownTable:
    """Looks things up by id. Safe to use from several threads."""

    def __init__(self, ids: pa.ChunkedArray, order: NDArray[np.uint64], table: Table) -> None:
        """Use `open`."""
        self._ids = ids
        self._order = order
        self._text = TextColumn(pa.table({"id": ids}), "id")
        self._table = table
        self.vectors: Vectors = table.array
        """`[n, ...]`, read-only."""

    @classmethod
    def open(cls, ids_file: Path, column: str, vectors_file: Path, *, shape: tuple[int, ...]) -> Self:
        """Map both files, and read them through once: they come from elsewhere, and a wrong row would be served.

        Args:
            ids_file: Arrow IPC file.
            column: Where in it the ids are.
            vectors_file: `.npy` file, float32 in C order.
            shape: Of the vectors, the number of rows first.

        Raises:
            ArtefactError: A file is missing or is none, or has other rows, widths or types than `shape` says, an id is
                missing, empty or there twice, or a number is not finite; names file and row.
        """
        ids = _read_ids(ids_file, column, num_rows=shape[0])
        order = _order_of(ids_file, column, ids)
        table = Table(vectors_file, dtype=np.float32, shape=shape)
        _refuse_not_finite(vectors_file, table.array, ids)
        table.release()
        return cls(ids, order, table)

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._order)

    def row(self, wanted: str) -> int:
        """Return the row of one id, -1 for one that is not known. Takes some microseconds."""
        place = bisect_left(self._order, wanted, key=self._text_at)
        if place == len(self._order) or self._text_at(self._order[place]) != wanted:
            return -1
        return int(self._order[place])

    def _text_at(self, row: np.uint64) -> str:
        return self._text[int(row)]

    def rows(self, wanted: pa.ChunkedArray) -> Rows:
        """Return the rows of many ids at once `[n]`, -1 for those that are not known."""
        found = pc.index_in(wanted.cast(pa.large_string()), value_set=self._ids.combine_chunks())
        rows_n: Rows = found.fill_null(-1).to_numpy().astype(np.int64)
        return rows_n

    def release(self) -> None:
        """Let the kernel take back the pages that were read, for jobs that walk through all of it once."""
        self._table.release()


def open_known_users(folder: Path, manifest: BundleManifest) -> KnownTable | None:
    """Open the queries `[n, Q, D]` of the users that a bundle knows; None when it knows none.

    Raises:
        ArtefactError: As `KnownTable.open`.
    """
    users = manifest.known_users
    if users is None:
        return None
    shape = (users.num_users, manifest.num_queries, manifest.width_of_queries)
    return KnownTable.open(folder / users.ids, "user_id", folder / users.queries, shape=shape)


def open_warm_items(folder: Path, manifest: BundleManifest) -> KnownTable | None:
    """Open the learned states `[n, len(warm.parts), S]` of the items that a bundle knows; None when it knows none.

    Raises:
        ArtefactError: As `KnownTable.open`.
    """
    warm = manifest.warm
    if warm is None:
        return None
    shape = (warm.num_items, len(warm.parts), manifest.state_dim)
    return KnownTable.open(folder / warm.ids, "item_id", folder / warm.states, shape=shape)


def _read_ids(path: Path, column: str, *, num_rows: int) -> pa.ChunkedArray:
    table = open_ipc(path)
    if table.schema.names.count(column) != 1:
        raise ArtefactError(path, f"needs one column {column!r}, has {table.schema.names}")
    ids: pa.ChunkedArray = table[column]
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ArtefactError(path, f"column {column} holds {ids.type}, expected text")
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ArtefactError(path, f"column {column}: {error}") from error
    if len(ids) != num_rows:
        raise ArtefactError(path, f"has {len(ids)} ids, the manifest says {num_rows}")
    nothing = pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))
    first = pc.index(nothing, pa.scalar(value=True)).as_py()
    if first >= 0:
        raise ArtefactError(path, f"row {first} has no {column}")
    return ids.cast(pa.large_string())


def _order_of(path: Path, column: str, ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the rows in the order of their ids (by bytes, which for UTF-8 is the order of Python's strings)."""
    order = pc.sort_indices(ids)
    in_order = ids.take(order)
    place = pc.index(pc.equal(in_order[1:], in_order[:-1]), pa.scalar(value=True)).as_py() if len(ids) > 1 else -1
    if place >= 0:
        rows = sorted(order[place : place + 2].to_pylist())
        raise ArtefactError(path, f"rows {rows[0]} and {rows[1]} have the same {column} {in_order[place].as_py()!r}")
    order_n: NDArray[np.uint64] = order.to_numpy()
    return order_n


def _refuse_not_finite(path: Path, vectors: Vectors, ids: pa.ChunkedArray) -> None:
    at_once = max(_CHUNK_BYTES // max(vectors[:1].nbytes, 1), 1)
    for start in range(0, len(vectors), at_once):
        finite = np.isfinite(vectors[start : start + at_once]).reshape(len(vectors[start : start + at_once]), -1)
        if not finite.all():
            row = start + int(np.argmin(finite.all(axis=1)))
            raise ArtefactError(path, f"row {row}, {ids[row].as_py()!r}, holds NaN or infinity")
