"""Read the tables that others publish, delimited text and Parquet, in bounded memory; errors name file and line."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.progress import Reporter, silent

_BLOCK_BYTES = 16 << 20
_BATCH_ROWS = 500_000
_ROW_OF_ARROW = re.compile(r"Row #(\d+): ?")


class SourceError(ValueError):
    """A source file can not be imported; names the file and, where there is one, the line."""

    def __init__(self, file: Path, detail: str, *, line: int | None = None) -> None:
        place = f"{file.name}, line {line}" if line is not None else file.name
        super().__init__(f"{place}: {detail}")


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Rows of a source file and where they were."""

    file: Path
    table: pa.Table
    lines: NDArray[np.int64]
    """Line of each row, from 1; of Parquet the row, from 1."""

    def refuse(self, bad: NDArray[np.bool_], detail: str, *, column: str | None = None) -> None:
        """Raise for the first bad row; `{value}` in `detail` stands for its value in `column`."""
        if bad.any():
            row = int(np.argmax(bad))
            value = self.table[column][row].as_py() if column is not None else None
            raise SourceError(self.file, detail.format(value=value), line=int(self.lines[row]))


def read_delimited(
    path: Path,
    *,
    columns: Mapping[str, pa.DataType],
    optional: frozenset[str] = frozenset(),
    delimiter: str = ",",
    header: Sequence[str] | None = None,
    quote: str | None = '"',
    on_progress: Reporter = silent,
) -> Iterator[SourceBatch]:
    """Give the named columns batch by batch; blank lines are passed over, an empty value is refused.

    Args:
        path: The file, UTF-8.
        columns: Name in the file and type of each column wanted.
        optional: Those of `columns` that the file may lack altogether.
        delimiter: One character, or `::`.
        header: Names of the columns where the file has no line of names.
        quote: Quoting character, None where there is none.
        on_progress: Told the megabytes read.

    Raises:
        SourceError: The file is missing or empty, lacks a column, or a line does not fit; names file and line.
    """
    names = list(header) if header is not None else _names_in_header(path, delimiter, quote)
    wanted = _present_columns(path, names, columns, optional)
    first_line = 1 if header is not None else 2
    size_mb = path.stat().st_size // 1_000_000
    with path.open("rb") as file:
        source = _DoubleColons(file) if delimiter == "::" else file
        try:
            reader = pacsv.open_csv(
                pa.PythonFile(source, mode="r"),
                read_options=pacsv.ReadOptions(
                    use_threads=False,  # only then does Arrow know the row of an error
                    block_size=_BLOCK_BYTES,
                    column_names=names,
                    skip_rows=first_line - 1,
                ),
                parse_options=pacsv.ParseOptions(
                    delimiter="\t" if delimiter == "::" else delimiter,
                    quote_char=quote or False,
                    ignore_empty_lines=False,  # a skipped line would shift the number of those after it
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=wanted, include_columns=list(wanted), null_values=[""], strings_can_be_null=True
                ),
            )
            line = first_line
            while (batch := _next(reader)) is not None:
                lines = np.arange(line, line + batch.num_rows)
                line += batch.num_rows
                yield _without_blank_lines(SourceBatch(path, pa.Table.from_batches([batch]), lines))
                on_progress(f"{path.name} (MB)", min(size_mb, file.tell() // 1_000_000), size_mb)
        except pa.ArrowException as error:
            raise _located(path, error) from error


def read_parquet(
    path: Path, *, columns: Sequence[str], optional: frozenset[str] = frozenset(), on_progress: Reporter = silent
) -> Iterator[SourceBatch]:
    """Give the named columns of a Parquet file batch by batch.

    Raises:
        SourceError: The file is missing, is no Parquet file, lacks a column, or has an empty value.
    """
    try:
        with pq.ParquetFile(path) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            wanted = _present_columns(path, list(types), dict.fromkeys(columns, pa.null()), optional)
            row = 1
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(wanted), use_threads=False):
                lines = np.arange(row, row + batch.num_rows)
                row += batch.num_rows
                yield SourceBatch(path, pa.Table.from_batches([batch]), lines)
                on_progress(path.name, row - 1, file.metadata.num_rows)
    except FileNotFoundError as error:
        raise SourceError(path, "file is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise SourceError(path, f"is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def read_rows(path: Path, *, delimiter: str, header: Sequence[str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Give (line, values) of a file with few rows or with quoted line breaks.

    Every row has as many values as the names.

    Args:
        path: The file, UTF-8, or Latin-1 where a line is not UTF-8.
        delimiter: `,` for quoted CSV; `::` or a tab for files without quotes.
        header: Names of the columns where the file has no line of names; only their number counts.

    Raises:
        SourceError: The file is missing, or a line has too few or too many values; names file and line.
    """
    if not path.is_file():
        raise SourceError(path, "file is missing")
    with path.open("rb") as file:
        expected = len(header) if header is not None else None
        rows = _csv_rows(path, file) if delimiter == "," else _plain_rows(file, delimiter)
        for line, values in rows:
            if expected is None:
                expected = len(values)
                continue
            if not values or values == [""]:
                continue
            if len(values) != expected:
                raise SourceError(path, f"has {len(values)} values, expected {expected}", line=line)
            yield line, values


def header_of(path: Path, *, delimiter: str) -> list[str]:
    """Return the names in the first line.

    Raises:
        SourceError: The file is missing or empty.
    """
    return _names_in_header(path, delimiter, '"' if delimiter == "," else None)


def _csv_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((_decoded(raw) for raw in file), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise SourceError(path, str(error), line=start) from error
        if values is None:
            return
        yield start, values


def _plain_rows(file: IO[bytes], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for line, raw in enumerate(file, start=1):
        yield line, _decoded(raw).rstrip("\r\n").split(delimiter)


def _decoded(raw: bytes) -> str:
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")  # MovieLens 1M and 10M are older than their readers' default


def _names_in_header(path: Path, delimiter: str, quote: str | None) -> list[str]:
    if not path.is_file():
        raise SourceError(path, "file is missing")
    with path.open("rb") as file:
        first = _decoded(file.readline(1 << 20)).rstrip("\r\n")
    if not first:
        raise SourceError(path, "is empty, or its first line is", line=1)
    if quote is None:
        return first.split(delimiter)
    return next(csv.reader([first], delimiter=delimiter, quotechar=quote))


def _present_columns(
    path: Path, names: Sequence[str], columns: Mapping[str, pa.DataType], optional: frozenset[str]
) -> dict[str, pa.DataType]:
    for name in columns:
        if name not in names and name not in optional:
            raise SourceError(path, f"column {name!r} is missing; it has {', '.join(names)}", line=1)
    return {name: dtype for name, dtype in columns.items() if name in names}


def _without_blank_lines(batch: SourceBatch) -> SourceBatch:
    nulls = np.stack([np.asarray(column.is_null()) for column in batch.table.columns])
    if nulls.any():
        blank = nulls.all(axis=0)
        for name, missing in zip(batch.table.column_names, nulls, strict=True):
            batch.refuse(missing & ~blank, f"{name} is empty")
        batch = SourceBatch(batch.file, batch.table.filter(pa.array(~blank)), batch.lines[~blank])
    return batch


def _next(reader: pacsv.CSVStreamingReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None


def _located(path: Path, error: Exception) -> SourceError:
    """Turn Arrow's message into ours: its row numbers count lines, since blank ones are not skipped."""
    text = str(error).splitlines()[0]
    row = _ROW_OF_ARROW.search(text)
    detail = _ROW_OF_ARROW.sub("", text).replace("CSV parse error: ", "")
    return SourceError(path, detail, line=int(row.group(1)) if row else None)


class _DoubleColons(io.RawIOBase):
    """Shows a file separated by `::` as one separated by tabs, which Arrow can split."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._held = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        while True:
            more = self._file.read(size)
            data = self._held + more
            self._held = b""
            colons = len(data) - len(data.rstrip(b":"))
            if more and colons % 2:  # the other half of a pair may come with the next read
                data, self._held = data[:-1], b":"
            if data or not more:  # nothing would mean the end
                return data.replace(b"::", b"\t")
