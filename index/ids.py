"""IdTable: external item ids to rows and back, memory-mapped, so that workers share it and opening costs nothing.

Files: `ids.arrow` (the strings, in row order), `id_hashes.npy` (their 64-bit hashes, sorted), `id_rows.npy` (the row of
each hash). A hash only says where to look: the string itself decides, so two ids of one hash are told apart.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.artefacts import ArtefactError
from index.columns import TextColumn, open_ipc
from index.features import Rows
from index.tables import Table, TableWriter

IDS_FILE, HASHES_FILE, ROWS_FILE = "ids.arrow", "id_hashes.npy", "id_rows.npy"

_REMEMBERED = 131_072
"""Ids that a process remembers with their rows, some 25 MB: the same items are asked for again and again."""

HashId = Callable[[str], int]


def hash_id(item_id: str) -> int:
    """Return a 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")


_SCHEMA = pa.schema([pa.field("item_id", pa.large_string(), nullable=False)])


class IdsWriter:
    """Writes the id tables of a catalogue, from batches of its ids in row order."""

    def __init__(self, folder: Path, *, num_items: int, hash_with: HashId = hash_id) -> None:
        self._folder = folder
        self._hash_with = hash_with
        self._hashes_N = np.empty(num_items, dtype=np.uint64)
        self._num_written = 0
        self._sink = pa.OSFile(str(folder / IDS_FILE), "wb")
        self._writer = pa.ipc.new_file(self._sink, _SCHEMA)

    def append(self, column: pa.Array) -> None:
        """Take over the ids of the next rows.

        Raises:
            ValueError: One is missing or empty, or there are more than were announced; names the row.
        """
        ids = column.cast(pa.large_string())
        if self._num_written + len(ids) > len(self._hashes_N):
            raise ValueError(f"items: more than the {len(self._hashes_N)} ids that were announced")
        for row, item_id in enumerate(ids.to_pylist(), start=self._num_written):
            if not item_id:
                raise ValueError(f"items: row {row} has no item_id")
            self._hashes_N[row] = self._hash_with(item_id)
        self._writer.write_batch(pa.record_batch([ids], schema=_SCHEMA))
        self._num_written += len(ids)

    def close(self) -> None:
        """Sort and finish the files.

        Raises:
            ValueError: An id is there twice, or there are fewer than were announced; names rows and id.
        """
        self._writer.close()
        self._sink.close()
        num_items = len(self._hashes_N)
        if self._num_written != num_items:
            raise ValueError(f"items: {self._num_written} ids, {num_items} were announced")
        order_N = np.argsort(self._hashes_N, kind="stable")
        hashes_N = self._hashes_N[order_N]
        _refuse_duplicates(self._folder, hashes_N, order_N)
        with TableWriter(self._folder / HASHES_FILE, dtype=np.uint64, shape=(num_items,)) as table:
            table.append(hashes_N)
        with TableWriter(self._folder / ROWS_FILE, dtype=np.int64, shape=(num_items,)) as table:
            table.append(order_N)


def _refuse_duplicates(folder: Path, hashes_N: NDArray[np.uint64], rows_N: Rows) -> None:
    same = np.flatnonzero(hashes_N[1:] == hashes_N[:-1])
    if not same.size:
        return
    ids = TextColumn(open_ipc(folder / IDS_FILE), "item_id")
    seen: dict[str, int] = {}
    for position in np.unique(np.concatenate([same, same + 1])):
        row = int(rows_N[position])
        item_id = ids[row]
        if item_id in seen:
            raise ValueError(f"items: rows {seen[item_id]} and {row} have the same item_id {item_id!r}")
        seen[item_id] = row


class IdTable:
    """Looks ids up. Safe to use from several threads."""

    def __init__(self, folder: Path, *, num_items: int, hash_with: HashId = hash_id) -> None:
        """Map the tables of a catalogue.

        Raises:
            ArtefactError: A file is missing or does not have `num_items` entries.
        """
        self._hashes = Table(folder / HASHES_FILE, dtype=np.uint64, shape=(num_items,)).array
        self._rows = Table(folder / ROWS_FILE, dtype=np.int64, shape=(num_items,)).array
        self._ids = TextColumn(open_ipc(folder / IDS_FILE), "item_id")
        if len(self._ids) != num_items:
            raise ArtefactError(folder / IDS_FILE, f"has {len(self._ids)} ids, expected {num_items}")
        self._hash_with = hash_with
        self._row_of: dict[str, int] = {}
        self._id_of: dict[int, str] = {}

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """Return the row of each id, -1 for an id that the catalogue does not have."""
        row_of = self._row_of
        rows = [row_of.get(item_id, -1) for item_id in item_ids]
        unknown = [item_ids[place] for place, row in enumerate(rows) if row < 0]
        if unknown:
            found = self._look_up(unknown)
            rows = [found.get(item_id, -1) if row < 0 else row for item_id, row in zip(item_ids, rows, strict=True)]
        return np.array(rows, dtype=np.int64)

    def _look_up(self, item_ids: Sequence[str]) -> dict[str, int]:
        hashes: dict[str, int] = {}
        for item_id in item_ids:
            with suppress(UnicodeEncodeError):  # a lone surrogate, which no id of ours can hold
                hashes[item_id] = self._hash_with(item_id)
        wanted = np.fromiter(hashes.values(), dtype=np.uint64, count=len(hashes))
        found: dict[str, int] = {}
        starts, stops = self._hashes.searchsorted(wanted).tolist(), self._hashes.searchsorted(wanted, "right").tolist()
        for item_id, start, stop in zip(hashes, starts, stops, strict=True):
            for row in self._rows[start:stop].tolist():  # mostly one
                if self._ids[row] == item_id:
                    found[item_id] = row
        self._remember(found)
        return found

    def _remember(self, found: Mapping[str, int]) -> None:
        if len(found) > _REMEMBERED:
            return
        if len(self._row_of) + len(found) > _REMEMBERED:
            self._row_of, self._id_of = {}, {}
        self._row_of.update(found)
        self._id_of.update({row: item_id for item_id, row in found.items()})

    def item_ids(self, rows: Sequence[int] | Rows) -> list[str]:
        """Return the id of each row.

        Raises:
            IndexError: A row is negative or not below the number of items.
        """
        wanted = np.asarray(rows, dtype=np.int64).tolist()
        id_of = self._id_of
        ids = [id_of.get(row) for row in wanted]
        if None in ids:
            found = {self._ids[row]: row for row, item_id in zip(wanted, ids, strict=True) if item_id is None}
            id_of = {row: item_id for item_id, row in found.items()}
            self._remember(found)
            return [id_of[row] if item_id is None else item_id for row, item_id in zip(wanted, ids, strict=True)]
        return [item_id for item_id in ids if item_id is not None]
