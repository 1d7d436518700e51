"""Fold changed items into a dataset folder: a new folder with the items that there are now.

Items that did not change keep their order; those that did come after them. Interactions of items that are gone go with
them. Whether an item is hidden is not folded in: that is for the service, which keeps it.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from api_schemas.item_records import ItemRecordLine, ItemRecordsEnd
from api_schemas.manifest import DatasetModality
from index.dataset import TRUTH_FILE, Dataset
from index.dataset_write import DatasetWriter
from index.items import FIELDS
from index.progress import Reporter, silent

_ROWS = 65_536
_MAX_LINE_BYTES = 16_000_000


@dataclass(frozen=True, slots=True)
class Records:
    """A file of changed items that was read."""

    path: Path
    lines: tuple[tuple[int, ItemRecordLine], ...]
    """The latest record of each item with its line."""
    end: ItemRecordsEnd

    def num_after(self, seq: int) -> int:
        """Return how many items have changed since the change `seq`."""
        return sum(record.seq > seq for _, record in self.lines)


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What a fold made."""

    dataset: Dataset
    num_added: int
    num_changed: int
    num_deleted: int
    num_ignored: int
    """Folded in before, or changes of items that the dataset does not have."""


@dataclass(frozen=True, slots=True)
class _Changed:
    """An item of the new folder that comes after those that did not change."""

    line: int
    record: ItemRecordLine
    row: int
    """Where the old folder has it; -1: nowhere."""


def fold(dataset: Dataset, records: Records, target: Path, *, report: Reporter = silent) -> FoldResult:
    """Write the dataset with its changed items to `target`.

    The same records may be folded in again: what is in already is left out by its number.

    Args:
        dataset: As it was.
        records: What the service has exported.
        target: A folder that is not there yet.
        report: Hears of the checks of the new folder.

    Raises:
        ValueError: A record can not be used, or they begin after what the dataset has; names file, line and item. A
            DatasetError when the folder can not be read.
        FileExistsError: The target is there already.
    """
    end, done = records.end, dataset.manifest.changes_seq
    if end.trimmed_to > done:
        raise ValueError(
            f"{records.path}: has the changes after {end.trimmed_to}, and {dataset.path} those up to {done}: fold into "
            "a folder that has those in between"
        )
    row_of = {item_id: row for row, item_id in enumerate(dataset.item_ids)}
    kept_N = np.ones(dataset.num_items, dtype=np.bool_)
    changed: list[_Changed] = []
    num_deleted = num_ignored = 0
    for number, record in records.lines:
        row = row_of.get(record.item_id, -1)
        amends = bool(record.model_fields_set & {*FIELDS, "attributes"})
        if (
            record.seq <= done
            or (record.op == "delete" and row < 0)
            or (record.op == "patch" and (row < 0 or not amends))
        ):
            num_ignored += 1
            continue
        if row >= 0:
            kept_N[row] = False
        if record.op == "delete":
            num_deleted += 1
        else:
            changed.append(_Changed(number, record, row))
    manifest = dataset.manifest
    with DatasetWriter(
        target,
        name=manifest.name,
        description=manifest.description,
        licence=manifest.licence,
        changes_seq=max(done, end.changes_seq),
    ) as writer:
        table = _items(dataset, kept_N, changed, records.path)
        writer.add_items(table)
        for modality in manifest.modalities:
            writer.add_modality(
                modality.name,
                dim=modality.dim,
                batches=_vectors(dataset, modality, kept_N, changed, records.path),
                dtype=dataset.features(modality.name).dtype,
                source=modality.source,
            )
        known = pa.array(table["item_id"].to_pylist(), pa.string())
        for batch in dataset.iter_interactions():
            rows = pa.Table.from_batches([batch])
            writer.add_interactions(rows.filter(pc.is_in(rows["item_id"].cast(pa.string()), value_set=known)))
        if (dataset.path / TRUTH_FILE).is_file():
            shutil.copyfile(dataset.path / TRUTH_FILE, writer.staging / TRUTH_FILE)
        made = writer.publish(on_progress=report)
    num_added = sum(one.row < 0 for one in changed)
    return FoldResult(made, num_added, len(changed) - num_added, num_deleted, num_ignored)


def read_records(path: Path) -> Records:
    """Read the file that a service has exported.

    Raises:
        ValueError: A line can not be read, or the file was cut; names file and line.
        OSError: The file can not be read.
    """
    latest: dict[str, tuple[int, ItemRecordLine]] = {}
    end: ItemRecordsEnd | None = None
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            if end is not None:
                raise ValueError(f"{path}: line {number} comes after the end")
            model = ItemRecordsEnd if line.startswith(b'{"schema_version"') else ItemRecordLine
            try:
                read = model.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                field = ".".join(map(str, first["loc"]))
                raise ValueError(f"{path}: line {number}{f', {field}' if field else ''}: {first['msg']}") from None
            if isinstance(read, ItemRecordsEnd):
                end = read
            else:
                latest[read.item_id] = number, read  # an item that changed during the export is there twice
    if end is None:
        raise ValueError(f"{path}: has no last line that says that it is the end: the export was cut")
    if len(latest) != end.num_items:
        raise ValueError(f"{path}: has {len(latest)} items, its end says {end.num_items}")
    return Records(path, tuple(latest.values()), end)


def _items(dataset: Dataset, kept_N: NDArray[np.bool_], changed: Sequence[_Changed], records: Path) -> pa.Table:
    """Return items.parquet of the new folder; attributes that are new become columns."""
    old = dataset.items()
    before = old.take(pa.array([max(one.row, 0) for one in changed], pa.int64())).to_pylist()
    documents = [
        _document(one.record, row if one.record.op == "patch" else {}) for one, row in zip(changed, before, strict=True)
    ]
    table = old.filter(pa.array(kept_N))
    for name in dict.fromkeys(name for document in documents for name in document):
        if name not in old.column_names:
            values = [document.get(name) for document in documents]
            table = table.append_column(name, pa.nulls(table.num_rows, _type_of(name, values, changed, records)))
    columns = [
        _column(name, table.schema.field(name).type, [document.get(name) for document in documents], changed, records)
        for name in table.column_names
    ]
    return pa.concat_tables([table, pa.table(columns, schema=table.schema)])


def _document(record: ItemRecordLine, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of an item that has changed."""
    document = dict(before)
    said = record.model_dump(include={*FIELDS, "attributes"}, exclude_unset=True)
    if "attributes" in said:
        document = {name: value for name, value in document.items() if name in FIELDS}
        document |= said.pop("attributes") or {}
    return document | said | {"item_id": record.item_id}


def _column(
    name: str, dtype: pa.DataType, values: Sequence[Any], changed: Sequence[_Changed], records: Path
) -> pa.Array:
    cells: list[pa.Array] = [pa.array([], dtype)]
    for one, value in zip(changed, values, strict=True):
        try:
            cells.append(pa.array([value], dtype))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise ValueError(
                f"{_place(records, one)}, {name}: {value!r} does not fit into the dataset's column of {dtype}"
            ) from None
    return pa.concat_arrays(cells)


def _type_of(name: str, values: Sequence[Any], changed: Sequence[_Changed], records: Path) -> pa.DataType:
    """Return the type of a new column: that of its first value."""
    one, first = next((one, value) for one, value in zip(changed, values, strict=True) if value is not None)
    if isinstance(first, list):
        return pa.list_(pa.string())
    if isinstance(first, bool):
        return pa.bool_()
    if isinstance(first, int):
        is_whole = all(value is None or isinstance(value, int) for value in values)
        return pa.int64() if is_whole else pa.float64()
    if isinstance(first, float):
        return pa.float64()
    if isinstance(first, str):
        return pa.string()
    raise ValueError(f"{_place(records, one)}, {name}: {first!r} can not be in a table")


def _place(records: Path, one: _Changed) -> str:
    return f"{records}: line {one.line}, item {one.record.item_id!r}"


def _vectors(
    dataset: Dataset,
    modality: DatasetModality,
    kept_N: NDArray[np.bool_],
    changed: Sequence[_Changed],
    records: Path,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    """Give the features of the new folder: those that stay, then those of the changed items."""
    features, presence = dataset.features(modality.name), dataset.presence(modality.name)
    for start in range(0, dataset.num_items, _ROWS):
        kept = kept_N[start : start + _ROWS]
        yield features[start : start + _ROWS][kept], presence[start : start + _ROWS][kept]
    for one in changed:
        if one.record.op == "patch":
            yield features[one.row : one.row + 1], presence[one.row : one.row + 1]
            continue
        unknown = sorted(one.record.modalities.keys() - set(dataset.modality_names))
        if unknown:
            raise ValueError(f"{_place(records, one)}, modalities.{unknown[0]}: the dataset has no such modality")
        vector = one.record.modalities.get(modality.name)
        if vector is not None and len(vector) != modality.dim:
            raise ValueError(
                f"{_place(records, one)}, modalities.{modality.name}: has {len(vector)} numbers, the dataset's vectors "
                f"have {modality.dim}"
            )
        values = np.zeros((1, modality.dim), dtype=np.float32)
        if vector is not None:
            values[0] = vector
        with np.errstate(over="ignore"):
            yield values.astype(features.dtype), np.asarray(values.any(axis=1))
