"""Reading interactions: order, numbers of users, and rows that can not be."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.dataset import Dataset, DatasetError
from tests import toy
from tests.unit.training.worlds import interactions
from training.data.interactions import TEST, TRAIN, gather_rows, read_interactions, read_timed_interactions


def rewrite(path, table):
    """Give the toy data set other interactions."""
    pq.write_table(table, path / "interactions.parquet")
    manifest = (path / "dataset.json").read_text().splitlines()
    text = "\n".join(
        f'"num_interactions": {len(table)},' if '"num_interactions"' in line else line for line in manifest
    )
    (path / "dataset.json").write_text(text)
    return Dataset.open(path)


def table(rows, **columns):
    users, items, times = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": items, "timestamp": pa.array(times, pa.int64()), **columns})


@pytest.fixture
def folder(tmp_path):
    return toy.make_dataset(tmp_path / "data", num_users=3, num_items=20)


def test_users_are_numbered_by_name_and_items_ordered_by_time_whatever_the_order_of_the_file(folder):
    rows = [("zoe", "i0003", 5), ("al", "i0001", 9), ("zoe", "i0002", 4), ("al", "i0000", 2)]
    read = read_interactions(rewrite(folder, table(rows)))
    assert read.user_ids == ("al", "zoe")
    assert [read.of(0).tolist(), read.of(1).tolist()] == [[0, 1], [2, 3]]


def test_equal_times_keep_the_order_of_the_file(folder):
    read = read_interactions(rewrite(folder, table([("u", f"i{n:04d}", 7) for n in (4, 1, 3, 0)])))
    assert read.of(0).tolist() == [4, 1, 3, 0]


def test_times_are_kept_where_they_are_asked_for_in_the_order_of_the_items(folder):
    dataset = rewrite(folder, table([("zoe", "i0003", 5), ("al", "i0001", 9), ("zoe", "i0002", 4), ("al", "i0000", 2)]))
    assert read_interactions(dataset).times_of(0) is None
    timed = read_timed_interactions(dataset)
    assert [timed.times_of(0).tolist(), timed.times_of(1).tolist()] == [[2, 9], [4, 5]]
    assert timed.of(1).tolist() == [2, 3]


@pytest.mark.parametrize("moments", [(0, 0, 0), (4, 4, 9)], ids=["one time", "a time for each user"])
def test_times_that_tell_no_ones_items_apart_are_an_error_with_the_column(folder, moments):
    rows = [(user, f"i{n:04d}", moment) for n, (user, moment) in enumerate(zip("aab", moments, strict=True))]
    with pytest.raises(DatasetError, match=r"interactions.parquet, column timestamp: .* of one time"):
        read_timed_interactions(rewrite(folder, table(rows)))


def test_an_unknown_item_is_an_error_with_row_and_column(folder):
    dataset = rewrite(folder, table([("u", "i0001", 1), ("u", "nothing", 2)]))
    with pytest.raises(DatasetError, match=r"interactions.parquet, row 1, column item_id: 'nothing' is not known"):
        read_interactions(dataset)


def test_an_unknown_split_is_an_error(folder):
    dataset = rewrite(folder, table([("u", "i0001", 1), ("u", "i0002", 2)], split=["train", "dev"]))
    with pytest.raises(DatasetError, match=r"row 1, column split: 'dev' is not known"):
        read_interactions(dataset)


def test_the_data_sets_own_split_is_kept_in_time_order(folder):
    rows = [("u", "i0001", 9), ("u", "i0002", 1)]
    read = read_interactions(rewrite(folder, table(rows, split=["test", "train"])))
    assert read.split_E.tolist() == [TRAIN, TEST]


def test_rows_of_some_users_are_gathered_flat():
    place, items = gather_rows(interactions([[1, 2], [], [3, 4, 5]]), np.array([2, 1, 0]))
    assert place.tolist() == [0, 0, 0, 2, 2]
    assert items.tolist() == [3, 4, 5, 1, 2]


def test_popularity_counts_only_the_users_asked_for():
    assert interactions([[1, 2], [2]], num_items=4).popularity(np.array([0])).tolist() == [0, 1, 1, 0]


def test_a_selection_keeps_all_users():
    kept = interactions([[1, 2], [2, 3]]).select(np.array([True, False, False, False]))
    assert [kept.of(0).tolist(), kept.of(1).tolist()] == [[1], []]


def test_what_users_hold_is_known_for_any_items():
    held = interactions([[1, 2, 2], [], [5, 1]]).holds(np.array([2, 0, 1]), np.array([5, 2, 9]))
    assert held.tolist() == [[True, False, False], [False, True, False], [False, False, False]]
