"""Ids survive the round trip through the tables, whatever they are made of and however their hashes fall."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.artefacts import ArtefactError
from index.ids import IdsWriter, IdTable, hash_id

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def constant(item_id: str) -> int:
    """Every id collides with every other."""
    return 2**64 - 1


def by_length(item_id: str) -> int:
    """Most ids collide with some others."""
    return len(item_id) % 3


def write(folder: Path, ids: list[str], *, hash_with=hash_id, batch: int = 7) -> IdTable:
    writer = IdsWriter(folder, num_items=len(ids), hash_with=hash_with)
    for start in range(0, len(ids), batch):
        writer.append(pa.array(ids[start : start + batch], pa.string()))
    writer.close()
    return IdTable(folder, num_items=len(ids), hash_with=hash_with)


@pytest.mark.parametrize("hash_with", [hash_id, by_length, constant])
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(texts, min_size=1, max_size=40, unique=True), others=st.lists(texts, max_size=10))
def test_every_id_leads_to_its_row_and_back_and_no_other_id_to_any(hash_with, ids, others):
    with tempfile.TemporaryDirectory() as folder:
        table = write(Path(folder), ids, hash_with=hash_with)
        for _ in range(2):  # the second time from memory
            np.testing.assert_array_equal(table.rows(ids), np.arange(len(ids)))
            assert table.item_ids(np.arange(len(ids))) == ids
            unknown = [item_id for item_id in others if item_id not in ids]
            np.testing.assert_array_equal(table.rows(unknown), [-1] * len(unknown))
        mixed = [*ids[:3], "\ud800", *ids[:3]]
        np.testing.assert_array_equal(table.rows(mixed), [*range(len(ids[:3])), -1, *range(len(ids[:3]))])


@pytest.mark.parametrize("hash_with", [hash_id, constant])
def test_an_id_that_is_there_twice_is_refused_with_both_rows(tmp_path, hash_with):
    with pytest.raises(ValueError, match="rows 2 and 9 have the same item_id 'c'"):
        write(tmp_path, [*"abcdefghi", "c"], hash_with=hash_with)


@pytest.mark.parametrize("missing", ["", None])
def test_a_missing_id_is_refused_with_its_row(tmp_path, missing):
    with pytest.raises(ValueError, match="row 8 has no item_id"):
        write(tmp_path, [*"abcdefgh", missing, "j"])


def test_the_number_of_ids_must_be_what_was_announced(tmp_path):
    writer = IdsWriter(tmp_path, num_items=3)
    writer.append(pa.array(["a", "b"]))
    with pytest.raises(ValueError, match="2 ids, 3 were announced"):
        writer.close()
    writer = IdsWriter(tmp_path, num_items=1)
    with pytest.raises(ValueError, match="more than the 1 ids"):
        writer.append(pa.array(["a", "b"]))


@pytest.mark.parametrize("name", ["ids.arrow", "id_hashes.npy", "id_rows.npy"])
def test_tables_of_another_size_are_refused(tmp_path, name):
    (tmp_path / "small").mkdir()
    write(tmp_path, ["a", "b", "c"])
    write(tmp_path / "small", ["a", "b"])
    (tmp_path / "small" / name).replace(tmp_path / name)
    with pytest.raises(ArtefactError, match=name):
        IdTable(tmp_path, num_items=3)


def test_a_row_that_is_not_there_is_an_error(tmp_path):
    table = write(tmp_path, ["a", "b", "c"])
    for row in (-1, 3):
        with pytest.raises(IndexError):
            table.item_ids([row])


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("index.ids._REMEMBERED", 4)
    ids = [f"item {number}" for number in range(30)]
    table = write(tmp_path, ids)
    for row, item_id in enumerate(ids):
        assert table.rows([item_id, "none"]).tolist() == [row, -1]
        assert table.item_ids([row]) == [item_id]
        assert len(table._row_of) <= 4
        assert len(table._id_of) <= 4
    assert table.item_ids(range(30)) == ids
    np.testing.assert_array_equal(table.rows(ids), np.arange(30))


def test_the_hash_is_the_same_in_every_process():
    assert hash_id("item-1") == 8406168460641299428
