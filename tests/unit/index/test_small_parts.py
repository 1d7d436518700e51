"""Tables, columns, metadata, factory strings, progress, and durable small files."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pytest

from index.artefacts import ArtefactError, list_files, sha256_of, write_durably
from index.build import num_lists, resolve_factory
from index.columns import TextColumn, open_ipc
from index.items import ItemsWriter, ItemTable
from index.progress import _Lines, reporting
from index.tables import Table, TableWriter


def test_a_table_written_in_pieces_is_a_plain_npy_file(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    with TableWriter(tmp_path / "new" / "table.npy", dtype=np.float32, shape=(6, 4)) as table:
        table.append(values[:1])
        table.append(np.asfortranarray(values[1:5]))
        table.append(values[5:].astype(np.float64))
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "table.npy"), values)
    mapped = Table(tmp_path / "new" / "table.npy", dtype=np.float32, shape=(None, 4))
    np.testing.assert_array_equal(mapped.array, values)
    mapped.release()
    np.testing.assert_array_equal(mapped.array, values)
    assert not mapped.array.flags.writeable
    assert mapped.array.ctypes.data % 64 == 0


def test_a_table_of_no_rows_can_be_read(tmp_path):
    with TableWriter(tmp_path / "t.npy", dtype=np.int32, shape=(0,)) as table:
        table.append(np.zeros(0, np.int32))
    assert Table(tmp_path / "t.npy", dtype=np.int32, shape=(0,)).array.shape == (0,)


def test_rows_that_do_not_fit_or_are_missing_are_an_error(tmp_path):
    table = TableWriter(tmp_path / "t.npy", dtype=np.float32, shape=(2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        table.append(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="do not fit"):
        table.append(np.zeros((3, 3)))
    table.append(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="1 rows were written, 2 were announced"):
        table.close()


def test_a_failing_block_hides_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), TableWriter(tmp_path / "t.npy", dtype=np.float32, shape=(2,)):
        _ = 1 // 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.float64), "holds float64 2x3, expected float32 2xany"),
        (np.zeros((3, 3), np.float32), "holds float32 3x3, expected float32 2xany"),
        (np.zeros(2, np.float32), "holds float32 2, expected"),
        (np.asfortranarray(np.zeros((2, 3), np.float32)), "Fortran order"),
    ],
)
def test_another_table_than_expected_is_refused(tmp_path, array, message):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(ArtefactError, match=message):
        Table(tmp_path / "t.npy", dtype=np.float32, shape=(2, None))


def test_a_table_with_bytes_too_many_or_too_few_is_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros(9, np.float32))
    size = (tmp_path / "t.npy").stat().st_size
    for wrong in (size - 1, size + 1):
        os.truncate(tmp_path / "t.npy", wrong)
        with pytest.raises(ArtefactError, match="which is not what its header says"):
            Table(tmp_path / "t.npy", dtype=np.float32, shape=(9,))


def test_text_is_read_across_chunks_and_never_outside(tmp_path):
    texts = ["", "a", "ß" * 300, "日本語", "\x00", "end"]
    table = pa.table({"text": pa.chunked_array([texts[:1], [], texts[1:4], texts[4:]], pa.large_string())})
    column = TextColumn(table, "text")
    assert [column[row] for row in range(len(column))] == texts
    sliced = TextColumn(table.slice(2, 3), "text")
    assert [sliced[row] for row in range(3)] == texts[2:5]
    for row in (-1, 6):
        with pytest.raises(IndexError):
            column[row]


def test_no_text_at_all_is_a_column_too():
    column = TextColumn(pa.table({"text": pa.array([], pa.large_string())}), "text")
    assert len(column) == 0
    with pytest.raises(IndexError):
        column[0]


def test_a_file_that_is_not_arrow_is_refused(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"ARROW1 or not")
    with pytest.raises(ArtefactError, match="is not an Arrow file"):
        open_ipc(tmp_path / "x.arrow")
    with pytest.raises(ArtefactError, match="is missing"):
        open_ipc(tmp_path / "y.arrow")


def items(folder, table: pa.Table) -> ItemTable:
    writer = ItemsWriter(folder)
    for batch in table.to_batches(max_chunksize=2):
        writer.append(batch)
    writer.close()
    return ItemTable(folder, num_items=table.num_rows)


def test_metadata_leaves_out_what_is_missing_and_keeps_types_and_unicode(tmp_path):
    table = items(
        tmp_path,
        pa.table(
            {
                "item_id": ["a", "b", "c"],
                "title": ['Straße \u2028 "quoted"', None, ""],
                "categories": pa.array([["x", "y"], None, []], pa.list_(pa.string())),
                "price": pa.array([1.5, float("nan"), float("inf")]),
                "year": pa.array([2000, None, -1]),
                "new": pa.array([True, None, False]),
            }
        ),
    )
    expected = [
        {
            "title": 'Straße \u2028 "quoted"',
            "categories": ["x", "y"],
            "attributes": {"price": 1.5, "year": 2000, "new": True},
        },
        {"attributes": {}},
        {"title": "", "categories": [], "attributes": {"year": -1, "new": False}},
    ]
    assert table.metadata([0, 1, 2]) == expected
    assert table.metadata([2, 0, 2]) == [expected[2], expected[0], expected[2]]
    json.dumps(table.metadata([0, 1, 2]))


def test_a_catalogue_of_ids_alone_has_empty_metadata(tmp_path):
    assert items(tmp_path, pa.table({"item_id": ["a", "b", "c"]})).metadata([2]) == [{"attributes": {}}]


def test_remembered_metadata_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("index.items._REMEMBERED", 3)
    table = items(tmp_path, pa.table({"item_id": list("abcdefgh"), "title": list("ABCDEFGH")}))
    for row in [0, 1, 2, 3, 0, 7, 6, 5, 4]:
        assert table.metadata([row, 0])[0]["title"] == "ABCDEFGH"[row]
        assert len(table._known) <= 3
    assert [one["title"] for one in table.metadata(range(8))] == list("ABCDEFGH")


@pytest.mark.parametrize(
    ("num_items", "lists"), [(1, 1), (50, 1), (10_000, 128), (100_000, 1024), (1_000_000, 2048), (10_000_000, 8192)]
)
def test_the_number_of_lists_follows_the_number_of_items(num_items, lists):
    factory = resolve_factory("IVF{nlist},PQ{dim}x4fs", num_items=num_items, dim=48)
    assert factory == f"IVF{lists},PQ48x4fs"
    assert num_lists(factory) == lists
    assert num_lists("HNSW32,Flat") == 0


def test_progress_without_a_terminal_is_a_line_a_stage_and_one_now_and_then():
    stream, now = io.StringIO(), iter([0.0, 1.0, 6.0, 6.5, 7.0, 8.0])
    report = _Lines(stream, clock=lambda: next(now))
    for stage, done in (("read", 1), ("read", 2), ("read", 3), ("read", 4), ("read", 1000), ("write", 1)):
        report(stage, done, 1000)
    assert stream.getvalue().splitlines() == [
        "read: 1 of 1,000",
        "read: 3 of 1,000",
        "read: 1,000 of 1,000",
        "write: 1 of 1,000",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar():
    terminal = Terminal()
    with reporting(terminal) as report:
        report("encode items", 10, 20)
        report("encode items", 20, 20)
    assert "encode items" in terminal.getvalue()
    assert "20/20" in terminal.getvalue()


def test_a_small_file_is_replaced_at_once_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "CURRENT"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"newer")
    assert path.read_bytes() == b"new"
    assert list_files(tmp_path) == ["CURRENT"]
    assert sha256_of(path) == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
