"""Postings: for every category and every value of an attribute, the rows that have it.

Files: `posting_keys.arrow` (the keys, sorted), `posting_starts.npy` (where each key's rows begin), `posting_rows.npy`.
A key is a kind (`c` category, `a` attribute) and JSON, so no two values share one: 3 is 3.0, but not "3" and not true.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.columns import TextColumn, open_ipc
from index.features import Mask
from index.selection import Selection
from index.tables import Table, TableWriter

KEYS_FILE, STARTS_FILE, ROWS_FILE = "posting_keys.arrow", "posting_starts.npy", "posting_rows.npy"

AttributeValue = str | int | float | bool

MAX_TEXT_CHARS = 256
"""Longer texts are no values that one filters by; they are kept for display and have no posting."""

_CACHE_BYTES = 64 * 1024 * 1024
_SCHEMA = pa.schema([pa.field("key", pa.large_string(), nullable=False)])


def category_key(category: str) -> str:
    """Return the key of a category."""
    return "c" + json.dumps(category)


def attribute_key(name: str, value: AttributeValue) -> str:
    """Return the key of an attribute's value; whole floats are the integers they equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "a" + json.dumps([name, value])


class PostingsWriter:
    """Collects (key, row) pairs of a catalogue, batch by batch in row order; 8 bytes a pair."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._pairs: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def add_categories(self, column: pa.Array, *, first_row: int) -> None:
        """Take over a batch of `list<string>`; nulls count as no category."""
        values, parents = column.flatten(), column.value_parent_indices()
        self._add(values, parents.to_numpy().astype(np.int32) + first_row, key=category_key)

    def add_attribute(self, name: str, column: pa.Array, *, first_row: int) -> None:
        """Take over a batch of a scalar column; nulls, NaN and long texts get no posting."""
        rows = np.arange(first_row, first_row + len(column), dtype=np.int32)
        self._add(column, rows, key=lambda value: attribute_key(name, value))

    def _add(self, values: pa.Array, rows: NDArray[np.int32], *, key: Callable[[Any], str]) -> None:
        encoded = values.dictionary_encode()
        codes = np.array([self._code(value, key=key) for value in encoded.dictionary.to_pylist()] + [-1], np.int32)
        indices = encoded.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)
        codes_n = codes[indices]
        kept = codes_n >= 0
        self._pairs.append((codes_n[kept], rows[kept]))

    def _code(self, value: object, *, key: Callable[[Any], str]) -> int:
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            return -1
        if isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
            return -1
        return self._codes.setdefault(key(value), len(self._codes))

    def write(self, folder: Path) -> None:
        """Write the three files."""
        keys = sorted(self._codes)
        rank_of_code = np.empty(len(keys) + 1, dtype=np.int64)
        rank_of_code[[self._codes[key] for key in keys]] = np.arange(len(keys))
        nothing = np.zeros(0, dtype=np.int32)
        ranks = rank_of_code[np.concatenate([codes for codes, _ in self._pairs] or [nothing])]
        rows = np.concatenate([rows for _, rows in self._pairs] or [nothing])
        order = np.lexsort((rows, ranks))
        starts = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum(np.bincount(ranks, minlength=len(keys)), out=starts[1:])
        with pa.OSFile(str(folder / KEYS_FILE), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_batch(pa.record_batch([pa.array(keys, pa.large_string())], schema=_SCHEMA))
        for name, values in ((STARTS_FILE, starts), (ROWS_FILE, rows[order])):
            with TableWriter(folder / name, dtype=values.dtype, shape=values.shape) as table:
                table.append(values)


class Postings:
    """Turns filters into selections and remembers the latest. Safe to use from several threads."""

    def __init__(self, folder: Path, *, num_items: int) -> None:
        """Map the postings of a catalogue.

        Raises:
            ArtefactError: A file is missing or does not fit the others.
        """
        self._num_items = num_items
        self._keys = TextColumn(open_ipc(folder / KEYS_FILE), "key")
        self._starts = Table(folder / STARTS_FILE, dtype=np.int64, shape=(len(self._keys) + 1,)).array
        self._rows = Table(folder / ROWS_FILE, dtype=np.int32, shape=(int(self._starts[-1]),)).array
        self._cache: OrderedDict[tuple[tuple[str, tuple[str, ...]], ...], Selection] = OrderedDict()
        self._by_mask: dict[int, Selection] = {}
        self._cache_size = max(8, _CACHE_BYTES // num_items)
        self._lock = Lock()

    def rows(self, key: str) -> NDArray[np.int32]:
        """Return the rows of a key, ascending; none for a key that no item has."""
        low, high = 0, len(self._keys)
        while low < high:
            middle = (low + high) // 2
            if self._keys[middle] < key:
                low = middle + 1
            else:
                high = middle
        if low == len(self._keys) or self._keys[low] != key:
            return self._rows[:0]
        return self._rows[self._starts[low] : self._starts[low + 1]]

    def select(
        self,
        *,
        categories_any: Sequence[str] = (),
        categories_all: Sequence[str] = (),
        categories_none: Sequence[str] = (),
        attributes: Mapping[str, Sequence[AttributeValue]] | None = None,
    ) -> Selection:
        """Return the rows that have one of the first, all of the second, none of the third, and for each attribute
        one of its values. Empty parts do not restrict; an attribute with no values lets nothing through.
        """  # noqa: D205
        parts: list[tuple[str, tuple[str, ...]]] = []
        if categories_any:
            parts.append(("any", tuple(sorted({category_key(name) for name in categories_any}))))
        parts += [("any", (category_key(name),)) for name in sorted(set(categories_all))]
        if categories_none:
            parts.append(("none", tuple(sorted({category_key(name) for name in categories_none}))))
        for name, values in sorted((attributes or {}).items()):
            parts.append(("any", tuple(sorted({attribute_key(name, value) for value in values}))))
        asked = tuple(parts)
        with self._lock:
            selection = self._cache.get(asked)
            if selection is not None:
                self._cache.move_to_end(asked)
                return selection
        selection = Selection(self._mask(asked))
        with self._lock:
            self._cache[asked] = selection
            self._by_mask[id(selection.mask_N)] = selection
            while len(self._cache) > self._cache_size:
                _, oldest = self._cache.popitem(last=False)
                self._by_mask.pop(id(oldest.mask_N), None)
        return selection

    def known(self, mask_N: Mask) -> Selection:
        """Return the selection whose own mask this is, with what it has ready, or a new one of it."""
        return self._by_mask.get(id(mask_N)) or Selection(mask_N)

    def _mask(self, parts: Sequence[tuple[str, tuple[str, ...]]]) -> Mask:
        allowed_N = np.ones(self._num_items, dtype=np.bool_)
        for kind, keys in parts:
            having_N = np.zeros(self._num_items, dtype=np.bool_)
            for key in keys:
                having_N[self.rows(key)] = True
            allowed_N &= having_N if kind == "any" else ~having_N
        return allowed_N
