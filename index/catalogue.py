"""From a dataset's tables to a snapshot's: ids, metadata and postings of the items, and how popular each one is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import open_ipc
from index.dataset import INTERACTIONS_FILE, ITEMS_FILE, Dataset
from index.dataset_files import iter_batches, open_parquet
from index.features import Ages, Rows, ages_of
from index.ids import IDS_FILE, IdsWriter
from index.items import FIELDS, ItemsWriter
from index.postings import PostingsWriter
from index.progress import Reporter, silent
from index.snapshot import POPULAR_POSITIONS_FILE, POPULAR_ROWS_FILE, POPULARITY_FILE
from index.tables import TableWriter

_ITEM_ROWS = 65_536
_INTERACTION_ROWS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class UserHistory:
    """What one user did, in the file's order."""

    rows: Rows
    """Of the catalogue."""
    ages: Ages


def write_items(dataset: Dataset, folder: Path, *, report: Reporter = silent) -> None:
    """Write ids, metadata and postings in one pass over items.parquet.

    Raises:
        ValueError: An id is missing or there twice; names the row. A DatasetError when the file can not be read.
    """
    ids = IdsWriter(folder, num_items=dataset.num_items)
    items = ItemsWriter(folder)
    postings = PostingsWriter()
    row = 0
    with open_parquet(dataset.path, ITEMS_FILE) as file:
        for batch in iter_batches(file, ITEMS_FILE, batch_rows=_ITEM_ROWS):
            ids.append(batch.column("item_id"))
            items.append(batch)
            for name in batch.schema.names:
                if name == "categories":
                    postings.add_categories(batch.column(name), first_row=row)
                elif name != "item_id" and name not in FIELDS:
                    postings.add_attribute(name, batch.column(name), first_row=row)
            row += batch.num_rows
            report("write items", row, dataset.num_items)
    ids.close()
    items.close()
    postings.write(folder)


def write_popularity(
    dataset: Dataset, folder: Path, *, num_users: int, history_length: int, report: Reporter = silent
) -> list[UserHistory]:
    """Count how often each item occurs in the interactions, and return the histories of some users on the way.

    Args:
        dataset: The dataset; its interactions are streamed.
        folder: Where `write_items` has written the ids.
        num_users: How many histories are wanted; there may be fewer.
        history_length: Each is cut to its last so many items.
        report: Hears of the progress.

    Returns:
        What these users did.

    Raises:
        ValueError: An interaction is of an item that is not in items.parquet.
    """
    num_items = dataset.num_items
    ids = open_ipc(folder / IDS_FILE)["item_id"].combine_chunks()
    counts_N = np.zeros(num_items, dtype=np.int64)
    users: pa.Array | None = None
    histories: dict[str, list[tuple[int, int]]] = {}
    done = 0
    with open_parquet(dataset.path, INTERACTIONS_FILE) as file:
        columns = ["user_id", "item_id", "timestamp"]
        for batch in iter_batches(file, INTERACTIONS_FILE, batch_rows=_INTERACTION_ROWS, columns=columns):
            items = batch.column("item_id").cast(pa.large_string())
            rows = pc.index_in(items, value_set=ids)
            if rows.null_count:
                position = int(pc.index(rows.is_null(), True).as_py())
                raise ValueError(f"{INTERACTIONS_FILE}: row {done + position}: no item {items[position].as_py()!r}")
            rows_n = rows.to_numpy()
            counts_N += np.bincount(rows_n, minlength=num_items)
            if users is None:  # users of the first batch: as good as any, and found without a second pass
                users = batch.column("user_id").unique()[:num_users]
            chosen = pc.is_in(batch.column("user_id"), value_set=users)
            some = [batch.column(name).filter(chosen) for name in ("user_id", "timestamp")]
            chosen_n = chosen.to_numpy(zero_copy_only=False)
            for user, moment, row in zip(
                some[0].to_pylist(), some[1].fill_null(0).to_pylist(), rows_n[chosen_n].tolist(), strict=True
            ):
                histories.setdefault(user, []).append((row, moment))
            done += batch.num_rows
            report("count interactions", done, dataset.manifest.num_interactions)
    _write_order(counts_N, folder)
    return [_history(past[-history_length:]) for past in histories.values()]


def _history(past: list[tuple[int, int]]) -> UserHistory:
    rows_n, times_n = np.array(past, dtype=np.int64).T
    return UserHistory(np.ascontiguousarray(rows_n), ages_of(times_n))


def _write_order(counts_N: NDArray[np.int64], folder: Path) -> None:
    popular_rows_N = np.argsort(-counts_N, kind="stable")  # of equal ones, the earlier row first
    positions_N = np.empty_like(popular_rows_N)
    positions_N[popular_rows_N] = np.arange(len(counts_N))
    for name, values in (
        (POPULARITY_FILE, counts_N.astype(np.float32)),
        (POPULAR_ROWS_FILE, popular_rows_N),
        (POPULAR_POSITIONS_FILE, positions_N),
    ):
        with TableWriter(folder / name, dtype=values.dtype, shape=values.shape) as table:
            table.append(values)
