"""Import any catalogue that comes as tables: interactions and items in CSV, TSV or Parquet, features in `.npy`.

    SOURCE/interactions.csv|tsv|parquet   user_id, item_id [, timestamp, rating, weight, event, split]
    SOURCE/items.csv|tsv|parquet          item_id [, title, description, image_url, categories, further attributes]
    SOURCE/features/NAME.npy              rows in the order of the items, or of features/NAME.ids.txt where it exists
    SOURCE/images/ITEM_ID.jpg|png|webp    optional

Columns that are called otherwise are named by a mapping. `categories` is a list in Parquet, and separated by `|` in
text. `timestamp` is whole seconds, or milliseconds, or ISO 8601; without the column the order of the file counts and
every timestamp is 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.dataset_schema import check_items_schema, is_string, normalised
from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent
from training.data.importers.interactions import write_interactions
from training.data.importers.items import FeatureFile, FeatureOptions, SourceItems, write_items
from training.data.importers.sources import (
    SourceBatch,
    SourceError,
    header_of,
    read_delimited,
    read_parquet,
    read_rows,
)

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_INTERACTION_TYPES = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp": pa.int64(),
    "rating": pa.float32(),
    "weight": pa.float32(),
    "event": pa.string(),
    "split": pa.string(),
}
_OPTIONAL = frozenset(_INTERACTION_TYPES) - {"user_id", "item_id"}


class TimeUnit(StrEnum):
    """What timestamps are, where their type does not say so."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    ISO_8601 = "iso"


def import_tables(
    writer: DatasetWriter,
    source: Path,
    *,
    features: FeatureOptions,
    columns: Mapping[str, str],
    time_unit: TimeUnit = TimeUnit.SECONDS,
    on_progress: Reporter = silent,
) -> None:
    """Write the items, features and interactions of a folder of tables.

    Args:
        writer: Takes the dataset.
        source: The folder.
        features: Beyond those in SOURCE/features and SOURCE/images.
        columns: Our name of a column to the name in the files, where they differ.
        time_unit: What timestamps are, where their type does not say so.
        on_progress: Told how far it is.

    Raises:
        SourceError: A table is missing or malformed; names file and line.
    """
    interactions, items_file = _table(source, "interactions"), _table(source, "items")
    items = _items(items_file, columns)
    write_items(writer, items, _with_folder(features, source), on_progress=on_progress)
    write_interactions(
        writer,
        _interactions(interactions, columns, time_unit, on_progress),
        item_ids=items.table["item_id"].to_pylist(),
        source_bytes=interactions.stat().st_size,
        on_progress=on_progress,
    )


def _table(source: Path, stem: str) -> Path:
    suffixes = (*_DELIMITERS, ".parquet")
    found = [path for suffix in suffixes if (path := source / f"{stem}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    which = " and ".join(path.name for path in found) if found else "none"
    raise SourceError(source, f"needs one of {', '.join(stem + suffix for suffix in suffixes)}, has {which}")


def _with_folder(features: FeatureOptions, source: Path) -> FeatureOptions:
    given = {file.name for file in features.files}
    files = list(features.files)
    for path in sorted((source / "features").glob("*.npy")):
        ids = path.with_name(f"{path.stem}.ids.txt")
        if path.stem not in given:
            files.append(FeatureFile(path.stem, path, ids if ids.is_file() else None))
    images = source / "images"
    return replace(features, files=tuple(files), images=features.images or (images if images.is_dir() else None))


def _items(path: Path, columns: Mapping[str, str]) -> SourceItems:
    table = _read_items(path)
    renamed = {theirs: ours for ours, theirs in columns.items()}
    table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
    if "item_id" in table.column_names and not is_string(table.schema.field("item_id").type):
        table = table.set_column(table.column_names.index("item_id"), "item_id", table["item_id"].cast(pa.string()))
    for problem in check_items_schema(table.schema, file_name=path.name):
        raise SourceError(path, f"column {problem.column!r}: {problem.detail}")
    table = normalised(table)
    _refuse_bad_ids(path, table["item_id"].combine_chunks())
    parts = [table[name].to_pylist() for name in ("title", "description") if name in table.column_names]
    texts = [". ".join(part for part in of_item if part) for of_item in zip(*parts, strict=True)]
    return SourceItems(table=table, texts=texts)


def _read_items(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        try:
            return pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(path, f"is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    delimiter = _DELIMITERS[path.suffix]
    names = header_of(path, delimiter=delimiter)
    rows = [values for _, values in read_rows(path, delimiter=delimiter)]
    data: dict[str, pa.Array] = {}
    for name, values in zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True):
        if name == "categories":
            data[name] = pa.array([[part for part in value.split("|") if part] for value in values])
        else:
            data[name] = _typed(name, values)
    return pa.table(data)


def _typed(name: str, values: tuple[str, ...]) -> pa.Array:
    """Return a text column as whole numbers, floats or truth values where every value is one; empty is null."""
    strings = pa.array([value or None for value in values], pa.string())
    if name in ("item_id", "title", "description", "image_url"):
        return strings
    for dtype in (pa.int64(), pa.float64(), pa.bool_()):
        try:
            return strings.cast(dtype)
        except pa.ArrowInvalid:
            continue
    return strings


def _refuse_bad_ids(path: Path, ids: pa.Array) -> None:
    seen: dict[str, int] = {}
    for row, item_id in enumerate(ids.to_pylist(), start=1):
        if not item_id:
            raise SourceError(path, f"row {row}: item_id is empty")
        if item_id in seen:
            raise SourceError(path, f"row {row}: item {item_id!r} appears again (first in row {seen[item_id]})")
        seen[item_id] = row
    if not seen:
        raise SourceError(path, "has no items")


def _interactions(
    path: Path, columns: Mapping[str, str], time_unit: TimeUnit, on_progress: Reporter
) -> Iterator[SourceBatch]:
    theirs = {ours: columns.get(ours, ours) for ours in _INTERACTION_TYPES}
    optional = frozenset(theirs[name] for name in _OPTIONAL)
    if path.suffix == ".parquet":
        batches = read_parquet(path, columns=list(theirs.values()), optional=optional, on_progress=on_progress)
    else:
        types = {theirs[name]: dtype for name, dtype in _INTERACTION_TYPES.items()}
        if time_unit is TimeUnit.ISO_8601:
            types[theirs["timestamp"]] = pa.timestamp("us", tz="UTC")
        batches = read_delimited(
            path, columns=types, optional=optional, delimiter=_DELIMITERS[path.suffix], on_progress=on_progress
        )
    for batch in batches:
        yield _as_ours(batch, theirs, time_unit)


def _as_ours(batch: SourceBatch, theirs: Mapping[str, str], time_unit: TimeUnit) -> SourceBatch:
    """Return a batch with our names and types."""
    data: dict[str, pa.ChunkedArray] = {}
    for ours, dtype in _INTERACTION_TYPES.items():
        name = theirs[ours]
        if name not in batch.table.column_names:
            continue
        column = batch.table[name]
        batch.refuse(np.asarray(column.is_null(), dtype=np.bool_), f"{name} is empty")
        if ours == "timestamp":
            column = _seconds(batch, name, time_unit)
        try:
            data[ours] = column.cast(dtype)
        except pa.ArrowException as error:
            raise SourceError(batch.file, f"column {name!r}: {error}") from error
    if "timestamp" not in data:
        data["timestamp"] = pa.chunked_array([pa.repeat(pa.scalar(0, pa.int64()), batch.table.num_rows)])
    order = [name for name in _INTERACTION_TYPES if name in data]
    table = pa.table({name: data[name] for name in order})
    ours_batch = SourceBatch(batch.file, table, batch.lines)
    for name in ("rating", "weight"):
        if name in data:
            ours_batch.refuse(~np.isfinite(table[name].to_numpy()), f"{name} is {{value}}", column=name)
    return ours_batch


def _seconds(batch: SourceBatch, name: str, time_unit: TimeUnit) -> pa.ChunkedArray:
    column = batch.table[name]
    if is_string(column.type):
        try:
            column = column.cast(pa.timestamp("us", tz="UTC"))
        except pa.ArrowInvalid as error:
            raise SourceError(batch.file, f"column {name!r}: {error}") from error
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64())
        return pc.divide(micros, 1_000_000)
    if pa.types.is_floating(column.type):
        column = pc.floor(column).cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise SourceError(batch.file, f"column {name!r} is {column.type}, expected seconds, milliseconds or a time")
    return pc.divide(column, 1000) if time_unit is TimeUnit.MILLISECONDS else column
