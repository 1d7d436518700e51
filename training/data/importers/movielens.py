"""Import MovieLens as GroupLens ships it: ml-latest(-small), 20M, 25M, 32M (csv) and 1M, 10M (`::`).

Every film of the film list becomes an item, rated or not. Modalities: `category` (genres), `text` (title and, where the
set has them, tags), `visual` (posters, where a folder of them is given), and any feature file.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent
from training.data.importers.interactions import write_interactions
from training.data.importers.items import FeatureOptions, SourceItems, write_items
from training.data.importers.sources import SourceBatch, SourceError, read_delimited, read_rows

LICENCE = "MovieLens: research use, no redistribution without permission; see the README of the set (GroupLens)"

_MAX_TAGS = 20
_TITLE = re.compile(r"^(?P<name>.*?)\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$")
_NO_GENRES = "(no genres listed)"


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one generation of the sets is written."""

    suffix: str
    delimiter: str
    ratings: tuple[str, str, str, str]
    header: tuple[str, ...] | None


_CSV = _Layout(".csv", ",", ("userId", "movieId", "rating", "timestamp"), None)
_DAT = _Layout(".dat", "::", ("user", "movie", "rating", "timestamp"), ("user", "movie", "rating", "timestamp"))


def import_movielens(
    writer: DatasetWriter,
    source: Path,
    *,
    features: FeatureOptions,
    min_rating: float | None = None,
    on_progress: Reporter = silent,
) -> None:
    """Write the items, features and ratings of an unpacked MovieLens folder.

    Args:
        writer: Takes the dataset.
        source: The folder that holds ratings.csv or ratings.dat.
        features: Posters and feature files.
        min_rating: Ratings below it are left out; None keeps all.
        on_progress: Told how far it is.

    Raises:
        SourceError: A file is missing or a line is malformed; names file and line.
    """
    layout = _layout(source)
    items = _items(source, layout)
    write_items(writer, items, features, on_progress=on_progress)
    ratings = source / f"ratings{layout.suffix}"
    write_interactions(
        writer,
        _ratings(ratings, layout, min_rating, on_progress),
        item_ids=items.table["item_id"].to_pylist(),
        source_bytes=ratings.stat().st_size,
        on_progress=on_progress,
    )


def _layout(source: Path) -> _Layout:
    for layout in (_CSV, _DAT):
        if (source / f"ratings{layout.suffix}").is_file():
            return layout
    raise SourceError(source, "is no MovieLens folder: it has neither ratings.csv nor ratings.dat")


def _items(source: Path, layout: _Layout) -> SourceItems:
    path = source / f"movies{layout.suffix}"
    tags = _tags(source / f"tags{layout.suffix}", layout)
    columns: dict[str, list[object]] = defaultdict(list)
    texts: list[str] = []
    seen: set[str] = set()
    header = ("movie", "title", "genres") if layout.header is not None else None
    for line, (movie, title, genres) in read_rows(path, delimiter=layout.delimiter, header=header):
        item_id = _number(path, line, movie, "movie id")
        if item_id in seen:
            raise SourceError(path, f"movie {item_id} appears again", line=line)
        seen.add(item_id)
        match = _TITLE.match(title)
        name = match["name"] if match else title
        of_movie = [tag for tag, _ in tags[item_id].most_common(_MAX_TAGS)]
        columns["item_id"].append(item_id)
        columns["title"].append(title)
        columns["description"].append(", ".join(of_movie))
        columns["categories"].append([] if genres == _NO_GENRES else [genre for genre in genres.split("|") if genre])
        columns["year"].append(int(match["year"]) if match else None)
        texts.append(f"{name}. {', '.join(of_movie)}" if of_movie else name)
    if not texts:
        raise SourceError(path, "has no movies")
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("title", pa.string()),
            ("description", pa.string()),
            ("categories", pa.list_(pa.string())),
            ("year", pa.int64()),
        ]
    )
    return SourceItems(table=pa.table(dict(columns), schema=schema), texts=texts)


def _tags(path: Path, layout: _Layout) -> dict[str, Counter[str]]:
    """Return how often each tag was given to each movie; sets without a file of tags have none."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    if path.is_file():
        header = ("user", "movie", "tag", "timestamp") if layout.header is not None else None
        for line, (_, movie, tag, _) in read_rows(path, delimiter=layout.delimiter, header=header):
            counts[_number(path, line, movie, "movie id")][tag.strip().lower()] += 1
    return counts


def _ratings(path: Path, layout: _Layout, min_rating: float | None, on_progress: Reporter) -> Iterator[SourceBatch]:
    user, movie, rating, timestamp = layout.ratings
    columns = {user: pa.int64(), movie: pa.int64(), rating: pa.float32(), timestamp: pa.int64()}
    batches = read_delimited(
        path,
        columns=columns,
        delimiter=layout.delimiter,
        header=layout.header,
        quote=None,
        on_progress=on_progress,
    )
    for batch in batches:
        batch.refuse(~np.isfinite(batch.table[rating].to_numpy()), "rating {value} is no number", column=rating)
        table = pa.table(
            {
                "user_id": batch.table[user].cast(pa.string()),
                "item_id": batch.table[movie].cast(pa.string()),
                "timestamp": batch.table[timestamp],
                "rating": batch.table[rating],
                "event": pa.repeat("rating", batch.table.num_rows),
            }
        )
        lines = batch.lines
        if min_rating is not None:
            keep = pc.greater_equal(table["rating"], pa.scalar(min_rating, pa.float32()))
            table, lines = table.filter(keep), lines[keep.to_numpy()]
        yield SourceBatch(path, table, lines)


def _number(path: Path, line: int, text: str, what: str) -> str:
    try:
        return str(int(text))
    except ValueError as error:
        raise SourceError(path, f"{what} is {text!r}, expected a whole number", line=line) from error
