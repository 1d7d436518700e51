"""What the catalogue says about its items: `items.arrow`, one JSON document an item, memory-mapped.

One text an item and not one column a field: the twenty items of an answer are then twenty reads and one parse.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.artefacts import ArtefactError
from index.columns import TextColumn, open_ipc
from index.features import Rows

ITEMS_FILE = "items.arrow"

FIELDS = ("title", "description", "image_url", "categories")
"""Columns of items.parquet that have a place of their own; all others but the id are attributes."""

Metadata = Mapping[str, object]

_REMEMBERED = 16_384
"""Items that a process remembers parsed; about 1 KB each."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

_SCHEMA = pa.schema([pa.field("document", pa.large_string(), nullable=False)])


class ItemsWriter:
    """Writes batches of items.parquet in row order."""

    def __init__(self, folder: Path) -> None:
        self._sink = pa.OSFile(str(folder / ITEMS_FILE), "wb")
        self._writer = pa.ipc.new_file(self._sink, _SCHEMA)

    def append(self, batch: pa.RecordBatch) -> None:
        """Take over the next rows; missing values, NaN and infinity are left out."""
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != "item_id"}
        attributes = [name for name in columns if name not in FIELDS]
        documents = [{name: columns[name][row] for name in FIELDS if name in columns} for row in range(batch.num_rows)]
        for row, document in enumerate(documents):
            document["attributes"] = _present({name: columns[name][row] for name in attributes})
        texts = [_encode(_present(document)) for document in documents]
        self._writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=_SCHEMA))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._sink.close()


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (value.__class__ is float and not math.isfinite(value))
    }


class ItemTable:
    """Reads `items.arrow`. Safe to use from several threads."""

    def __init__(self, folder: Path, *, num_items: int) -> None:
        """Map the file.

        Raises:
            ArtefactError: It is missing or does not have `num_items` rows.
        """
        self._documents = TextColumn(open_ipc(folder / ITEMS_FILE), "document")
        if len(self._documents) != num_items:
            raise ArtefactError(folder / ITEMS_FILE, f"has {len(self._documents)} rows, expected {num_items}")
        self._known: dict[int, Metadata] = {}

    def metadata(self, rows: Sequence[int] | Rows) -> list[Metadata]:
        """Return each item's title, description, image_url and categories, where it has them, and its attributes.

        The values are plain dictionaries and lists, shared between calls: read them, do not change them.

        Raises:
            IndexError: A row is negative or not below the number of items.
        """
        wanted = np.asarray(rows, dtype=np.int64).tolist()
        found = [self._known.get(row) for row in wanted]
        unknown = [row for row, value in zip(wanted, found, strict=True) if value is None]
        if unknown:
            documents = self._documents
            parsed = json.loads(f"[{','.join([documents[row] for row in unknown])}]")
            fresh: dict[int, Metadata] = dict(zip(unknown, parsed, strict=True))
            found = [fresh[row] if value is None else value for row, value in zip(wanted, found, strict=True)]
            if len(self._known) + len(fresh) > _REMEMBERED:
                self._known = {}
            self._known.update(fresh)
        return [value for value in found if value is not None]
