"""Interactions as arrays: each user's items in time order, users one after another.

Legend: `U` users, `E` interactions.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.dataset import INTERACTIONS_FILE, Dataset, DatasetError, Problem

TRAIN, VALID, TEST = 0, 1, 2
Number = TypeVar("Number", np.int64, np.int8)

_SPLITS = pa.array(["train", "valid", "test"])


@dataclass(frozen=True, slots=True)
class Interactions:
    """Compressed rows by user: user u's items are `item_E[start_U1[u]:start_U1[u + 1]]`, oldest first."""

    user_ids: tuple[str, ...]
    """Sorted, so that a user's number does not depend on the order of the file."""
    start_U1: NDArray[np.int64]
    item_E: NDArray[np.int64]
    """Rows of the catalogue."""
    split_E: NDArray[np.int8] | None
    """TRAIN, VALID or TEST where the data set brings its own split, else None."""
    num_items: int
    time_E: NDArray[np.int64] | None = None
    """Seconds since the epoch; None: not asked for."""

    @property
    def num_users(self) -> int:
        """Return U."""
        return len(self.user_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return each user's number of interactions."""
        return np.diff(self.start_U1)

    def of(self, user: int) -> NDArray[np.int64]:
        """Return one user's items, oldest first."""
        return self.item_E[self.start_U1[user] : self.start_U1[user + 1]]

    def times_of(self, user: int) -> NDArray[np.int64] | None:
        """Return when one user's items were, if that was asked for."""
        return None if self.time_E is None else self.time_E[self.start_U1[user] : self.start_U1[user + 1]]

    def select(self, keep_E: NDArray[np.bool_]) -> "Interactions":
        """Return the interactions for which `keep_E` holds; users stay, with nothing if need be."""
        kept = np.concatenate([[0], np.cumsum(keep_E)])
        return Interactions(
            user_ids=self.user_ids,
            start_U1=kept[self.start_U1],
            item_E=self.item_E[keep_E],
            split_E=None if self.split_E is None else self.split_E[keep_E],
            num_items=self.num_items,
            time_E=None if self.time_E is None else self.time_E[keep_E],
        )

    def popularity(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how often each item occurs with these users: `[num_items]`."""
        _, items = gather_rows(self, users)
        return np.bincount(items, minlength=self.num_items)

    def holds(self, users_B: NDArray[np.int64], items_P: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some distinct items each user has interacted with, ever: `[B, P]`."""
        place_of_item = np.full(self.num_items, -1)
        place_of_item[items_P] = np.arange(len(items_P))
        user_X, item_X = gather_rows(self, users_B)
        place_X = place_of_item[item_X]
        holds_BP = np.zeros((len(users_B), len(items_P)), np.bool_)
        holds_BP[user_X[place_X >= 0], place_X[place_X >= 0]] = True
        return holds_BP


def gather_rows(interactions: Interactions, users_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all interactions of some users, flat: place in `users_B` and item row of each."""
    start_B, length_B = interactions.start_U1[users_B], interactions.lengths[users_B]
    place_X = np.repeat(np.arange(len(users_B)), length_B)
    within_X = np.arange(len(place_X)) - np.repeat(np.cumsum(length_B) - length_B, length_B)
    return place_X, interactions.item_E[start_B[place_X] + within_X]


def read_interactions(dataset: Dataset) -> Interactions:
    """Read a data set's interactions batch by batch; strings become numbers at once, so memory stays small.

    Raises:
        DatasetError: An interaction names an item that items.parquet lacks, or a split that does not exist.
    """
    return _read(dataset)[0]


def read_timed_interactions(dataset: Dataset) -> Interactions:
    """Read the same with the time of each.

    Raises:
        DatasetError: As `read_interactions`; or no user has interactions of different times, so that the column says
            nothing.
    """
    interactions, time_E = _read(dataset)
    inner_E = np.ones(len(time_E), np.bool_)
    inner_E[interactions.start_U1[:-1][interactions.lengths > 0]] = False  # nobody's first one
    if not np.diff(time_E, prepend=0)[inner_E].any():
        detail = "does not tell a user's interactions apart: all of them are of one time"
        raise DatasetError(Problem(INTERACTIONS_FILE, detail, column="timestamp"))
    return replace(interactions, time_E=time_E)


def _read(dataset: Dataset) -> tuple[Interactions, NDArray[np.int64]]:
    """Return the interactions, and the time of each."""
    item_ids = pa.array(dataset.item_ids, pa.string())
    number_of_user: dict[str, int] = {}
    users: list[NDArray[np.int64]] = []
    items: list[NDArray[np.int64]] = []
    times: list[NDArray[np.int64]] = []
    splits: list[NDArray[np.int8]] = []
    row = 0
    for batch in dataset.iter_interactions():
        users.append(_user_numbers(batch.column("user_id"), number_of_user))
        items.append(_codes(batch.column("item_id"), item_ids, name="item_id", first_row=row))
        times.append(batch.column("timestamp").to_numpy(zero_copy_only=False))
        if "split" in batch.schema.names:
            splits.append(_codes(batch.column("split"), _SPLITS, name="split", first_row=row).astype(np.int8))
        row += batch.num_rows
    names = sorted(number_of_user)
    rank = np.empty(len(names), np.int64)
    rank[[number_of_user[name] for name in names]] = np.arange(len(names))
    user_E = rank[_joined(users, np.int64)]
    time_E = _joined(times, np.int64)
    order = np.lexsort((time_E, user_E))  # stable: equal times keep the file's order
    lengths = np.bincount(user_E, minlength=len(names))
    interactions = Interactions(
        user_ids=tuple(names),
        start_U1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_E=_joined(items, np.int64)[order],
        split_E=_joined(splits, np.int8)[order] if splits else None,
        num_items=dataset.num_items,
    )
    return interactions, time_E[order]


def _user_numbers(column: pa.Array, number_of_user: dict[str, int]) -> NDArray[np.int64]:
    encoded = column.dictionary_encode()
    local = [number_of_user.setdefault(name, len(number_of_user)) for name in encoded.dictionary.to_pylist()]
    numbers: NDArray[np.int64] = np.array(local, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]
    return numbers


def _codes(column: pa.Array, known: pa.Array, *, name: str, first_row: int) -> NDArray[np.int64]:
    codes = pc.index_in(column, value_set=known)
    if codes.null_count:
        row = int(np.argmax(codes.is_null().to_numpy(zero_copy_only=False)))
        detail = f"{column[row].as_py()!r} is not known"
        raise DatasetError(Problem(INTERACTIONS_FILE, detail, row=first_row + row, column=name))
    numbers: NDArray[np.int64] = codes.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _joined(parts: list[NDArray[Number]], dtype: type[Number]) -> NDArray[Number]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
