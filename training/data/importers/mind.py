"""Import MIND news (Wu et al., ACL 2020): behaviors.tsv and news.tsv, in one folder or in its train and dev folders.

A clicked impression is an interaction at the time of the impression. The click history that a line carries is older
than all of the user's impressions and has no times of its own: it is put one second apart before the first of them.
Modalities: `text` (title and abstract), `category` (category and subcategory), pictures and feature files as given.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent
from training.data.importers.items import FeatureOptions, SourceItems, write_items
from training.data.importers.sources import SourceError, read_rows
from training.data.importers.spill import UserBuckets

LICENCE = "MIND: Microsoft Research License Terms, research use only"

_NEWS = ("news", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
_BEHAVIORS = ("impression", "user", "time", "history", "impressions")
_TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
_BATCH_ROWS = 20_000
_RAW = pa.schema(
    [
        ("user_id", pa.string()),
        ("timestamp", pa.int64()),
        ("history", pa.list_(pa.string())),
        ("clicks", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class _Impression:
    user: str
    timestamp: int
    history: list[str]
    clicks: list[str]


def import_mind(
    writer: DatasetWriter, source: Path, *, features: FeatureOptions, on_progress: Reporter = silent
) -> None:
    """Write the news, features and clicks of a MIND folder.

    Args:
        writer: Takes the dataset.
        source: Holds behaviors.tsv and news.tsv, or folders that do (MINDsmall_train, MINDsmall_dev).
        features: Pictures and feature files.
        on_progress: Told how far it is.

    Raises:
        SourceError: A file is missing or a line is malformed; names file and line.
    """
    folders = _folders(source)
    items = _items(folders)
    write_items(writer, items, features, on_progress=on_progress)
    known = frozenset(items.table["item_id"].to_pylist())
    size = sum((folder / "behaviors.tsv").stat().st_size for folder in folders)
    with UserBuckets(writer.staging / "sorting", source_bytes=size) as buckets:
        for folder in folders:
            _read_behaviors(folder / "behaviors.tsv", known, buckets, on_progress)
        done = 0
        for table in buckets.tables(["timestamp"]):
            writer.add_interactions(_interactions(table))
            done += table.num_rows
            on_progress("impressions in order", done, buckets.num_rows)


def _folders(source: Path) -> list[Path]:
    candidates = [source, *sorted(path for path in source.glob("*") if path.is_dir())]
    found = [folder for folder in candidates if (folder / "behaviors.tsv").is_file()]
    if not found:
        raise SourceError(source, "is no MIND folder: there is no behaviors.tsv in it or in a folder below it")
    return found


def _items(folders: list[Path]) -> SourceItems:
    rows: dict[str, list[str]] = {}
    for folder in folders:  # news of dev mostly repeat those of train
        for _, values in read_rows(folder / "news.tsv", delimiter="\t", header=_NEWS):
            rows.setdefault(values[0], values)
    if not rows:
        raise SourceError(folders[0] / "news.tsv", "has no news")
    _, category, subcategory, title, abstract, url, _, _ = (list(column) for column in zip(*rows.values(), strict=True))
    table = pa.table(
        {
            "item_id": pa.array(list(rows), pa.string()),
            "title": title,
            "description": abstract,
            "url": url,
            "categories": [
                [name for name in dict.fromkeys(names) if name] for names in zip(category, subcategory, strict=True)
            ],
        }
    )
    return SourceItems(table=table, texts=[f"{a}. {b}" if b else a for a, b in zip(title, abstract, strict=True)])


def _read_behaviors(path: Path, known: frozenset[str], buckets: UserBuckets, on_progress: Reporter) -> None:
    size_mb = path.stat().st_size // 1_000_000
    pending: list[_Impression] = []
    read = 0
    for line, values in read_rows(path, delimiter="\t", header=_BEHAVIORS):
        pending.append(_impression(path, line, values, known))
        read += sum(map(len, values)) + len(values)
        if len(pending) == _BATCH_ROWS:
            buckets.add(_raw_table(pending))
            pending.clear()
            on_progress(f"{path.parent.name}/{path.name} (MB)", min(size_mb, read // 1_000_000), size_mb)
    if pending:
        buckets.add(_raw_table(pending))


def _impression(path: Path, line: int, values: list[str], known: frozenset[str]) -> _Impression:
    _, user, time, history, impressions = values
    if not user:
        raise SourceError(path, "user is empty", line=line)
    try:
        moment = datetime.strptime(time, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError as error:
        detail = f"time is {time!r}, expected such as 11/15/2019 8:55:22 AM"
        raise SourceError(path, detail, line=line) from error
    clicks = []
    for shown in impressions.split():
        news, dash, label = shown.rpartition("-")
        if not dash or label not in ("0", "1"):
            detail = (
                f"impression is {shown!r}, expected NEWS-0 or NEWS-1; a test set without labels can not be imported"
            )
            raise SourceError(path, detail, line=line)
        if label == "1":
            clicks.append(news)
    past = history.split()
    for news in (*past, *clicks):
        if news not in known:
            raise SourceError(path, f"news {news!r} is not in news.tsv", line=line)
    return _Impression(user, int(moment.timestamp()), past, clicks)


def _raw_table(impressions: list[_Impression]) -> pa.Table:
    return pa.table(
        {
            "user_id": [row.user for row in impressions],
            "timestamp": [row.timestamp for row in impressions],
            "history": [row.history for row in impressions],
            "clicks": [row.clicks for row in impressions],
        },
        schema=_RAW,
    )


def _interactions(table: pa.Table) -> pa.Table:
    """Turn the impressions of some users, in time order within a user, into their interactions."""
    users = table["user_id"].to_pylist()
    times = table["timestamp"].to_pylist()
    histories, clicks = table["history"].to_pylist(), table["clicks"].to_pylist()
    columns: dict[str, list[object]] = {"user_id": [], "item_id": [], "timestamp": [], "event": []}

    def add(user: str, item: str, timestamp: int, event: str) -> None:
        for name, value in zip(columns, (user, item, timestamp, event), strict=True):
            columns[name].append(value)

    for row, (user, time) in enumerate(zip(users, times, strict=True)):
        if row == 0 or users[row - 1] != user:
            past = histories[row]
            for before, item in zip(range(len(past), 0, -1), past, strict=True):
                add(user, item, max(0, time - before), "history")
        for item in clicks[row]:
            add(user, item, time, "click")
    types = [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64()), ("event", pa.string())]
    return pa.table(columns, schema=pa.schema(types))
