"""What a bundle has learned of items and users by id: looked up rightly, and refused when it can not be right."""

import numpy as np
import pyarrow as pa
import pytest

from index.artefacts import ArtefactError
from index.known import KnownTable
from tests.id_bundles import write_ids

IDS = ("b", "zoë", "a", "Ω", "aa", "\U0001f3a7")
SHAPE = (len(IDS), 2, 3)


@pytest.fixture
def files(tmp_path):
    write_ids(tmp_path / "t/ids.arrow", "item_id", IDS)
    vectors = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    np.save(tmp_path / "t/vectors.npy", vectors)
    return tmp_path / "t/ids.arrow", tmp_path / "t/vectors.npy", vectors


def opened(files, shape=SHAPE) -> KnownTable:
    return KnownTable.open(files[0], "item_id", files[1], shape=shape)


@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string()])
def test_every_id_finds_its_row_and_no_other_does(files, dtype):
    write_ids(files[0], "item_id", IDS, dtype)
    table = opened(files)
    assert [table.row(one) for one in IDS] == list(range(len(IDS)))
    assert [table.row(one) for one in ("", "A", "c", "zz", "\U0001f3a8", "a\ud800")] == [-1] * 6
    wanted = pa.chunked_array([["aa", "?"], ["b"]], pa.string())
    assert table.rows(wanted).tolist() == [4, -1, 0]
    np.testing.assert_array_equal(table.vectors, files[2])
    assert len(table) == len(IDS)


def test_what_was_learned_can_not_be_written_to(files):
    with pytest.raises(ValueError, match="read-only"):
        opened(files).vectors[0] = 1


@pytest.mark.parametrize(
    ("column", "ids", "dtype", "message"),
    [
        ("item_id", IDS[:5], None, "ids.arrow: has 5 ids, the manifest says 6"),
        ("item_id", (*IDS[:5], "b"), None, "ids.arrow: rows 0 and 5 have the same item_id 'b'"),
        ("item_id", (*IDS[:5], None), None, "ids.arrow: row 5 has no item_id"),
        ("item_id", (*IDS[:5], ""), None, "ids.arrow: row 5 has no item_id"),
        ("item_id", range(6), pa.int64(), "ids.arrow: column item_id holds int64, expected text"),
        ("id", IDS, None, "ids.arrow: needs one column 'item_id', has"),
    ],
)
def test_ids_that_can_not_be_right_are_refused_by_row(files, column, ids, dtype, message):
    write_ids(files[0], column, tuple(ids), dtype)
    with pytest.raises(ArtefactError, match=message):
        opened(files)


def test_ids_that_are_no_text_are_refused(files):
    broken = pa.Array.from_buffers(
        pa.large_string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int64)), pa.py_buffer(b"\xff")]
    )
    write_ids(files[0], "item_id", broken)
    with pytest.raises(ArtefactError, match=r"ids.arrow: column item_id: .*UTF8"):
        opened(files, shape=(1, 2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype(np.float64), "holds float64 6x2x3, expected float32 6x2x3"),
        (lambda v: v[:, :1], "holds float32 6x1x3, expected float32 6x2x3"),
        (lambda v: v[:5], "holds float32 5x2x3, expected float32 6x2x3"),
        (lambda v: np.where(v == 20, np.nan, v), "row 3, 'Ω', holds NaN or infinity"),
        (lambda v: np.where(v == 0, np.inf, v), "row 0, 'b', holds NaN or infinity"),
    ],
)
def test_numbers_that_can_not_be_right_are_refused(files, change, message):
    np.save(files[1], change(files[2]))
    with pytest.raises(ArtefactError, match=rf"vectors.npy: {message}"):
        opened(files)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", [None, b"", b"garbage" * 50])
def test_a_file_that_is_none_is_refused_by_name(files, which, damage):
    if damage is None:
        files[which].unlink()
    else:
        files[which].write_bytes(damage)
    with pytest.raises(ArtefactError, match=files[which].name):
        opened(files)
