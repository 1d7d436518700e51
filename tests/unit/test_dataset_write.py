"""A dataset folder is written whole or not at all."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from index.dataset import Dataset, DatasetError
from index.dataset_validate import validate
from index.dataset_write import DatasetWriter

ITEMS = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
CLICKS = pa.table({"user_id": ["u", "u", "v"], "item_id": ["a", "b", "c"], "timestamp": [1, 2, 1]})
FEATURES = np.eye(3, dtype=np.float32)
PRESENT = np.array([True, True, False])


def write(writer, *, items=ITEMS, clicks=CLICKS):
    writer.add_items(items)
    writer.add_modality("visual", dim=3, batches=[(FEATURES[:2], PRESENT[:2]), (FEATURES[2:], PRESENT[2:])])
    writer.add_interactions(clicks)


def publish(target, *, items=ITEMS, clicks=CLICKS):
    with DatasetWriter(target, name="small") as writer:
        write(writer, items=items, clicks=clicks)
        return writer.publish()


def test_what_is_published_opens_and_is_valid(tmp_path):
    with DatasetWriter(tmp_path / "deep" / "set", name="small", licence="none") as writer:
        write(writer)
        writer.add_interactions(CLICKS.set_column(2, "timestamp", pa.array([2, 3, 4])))
        (writer.staging / "extra.txt").write_text("more")
        dataset = writer.publish()
    assert dataset.path == tmp_path / "deep" / "set"
    assert (dataset.manifest.num_users, dataset.manifest.num_items, dataset.manifest.num_interactions) == (2, 3, 6)
    assert dataset.features("visual").dtype == np.float16
    np.testing.assert_array_equal(dataset.features("visual"), FEATURES)
    np.testing.assert_array_equal(dataset.presence("visual"), PRESENT)
    assert sorted(path.name for path in dataset.path.iterdir()) == [
        "dataset.json",
        "extra.txt",
        "features",
        "interactions.parquet",
        "items.parquet",
    ]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]


def test_the_same_rows_give_the_same_fingerprint(tmp_path):
    assert publish(tmp_path / "one").fingerprint() == publish(tmp_path / "two").fingerprint()


def test_leaving_without_publishing_leaves_nothing(tmp_path):
    with DatasetWriter(tmp_path / "set", name="small") as writer:
        write(writer)
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="type is string, expected int64"):
        publish(tmp_path / "set", clicks=pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": ["never"]}))
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_there_is_left_alone(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"), DatasetWriter(target, name="small"):
        pass
    assert (target / "precious").read_text() == "mine"


def test_an_empty_folder_is_a_fine_target(tmp_path):
    with DatasetWriter(tmp_path / "set", name="small") as writer:
        (tmp_path / "set").mkdir()
        write(writer)
        writer.publish()
    assert validate(tmp_path / "set") == []


@pytest.mark.parametrize(
    ("items", "clicks", "message"),
    [
        (ITEMS, CLICKS.set_column(1, "item_id", pa.array(["a", "b", "z"])), "row 2, column item_id: item 'z'"),
        (ITEMS, CLICKS.set_column(2, "timestamp", pa.array([2, 1, 1])), "row 1, column timestamp: timestamp 1 of user"),
        (
            ITEMS.set_column(0, "item_id", pa.array(["a", "b", "a"])),
            CLICKS,
            "row 2, column item_id: item id 'a' appears",
        ),
        (ITEMS.drop_columns(["item_id"]), CLICKS, "items.parquet, column item_id: column is missing"),
        (ITEMS, CLICKS.drop_columns(["timestamp"]), "interactions.parquet, column timestamp: column is missing"),
    ],
)
def test_what_is_wrong_is_not_published(tmp_path, items, clicks, message):
    with pytest.raises(DatasetError, match=message):
        publish(tmp_path / "set", items=items, clicks=clicks)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_modalities_is_not_published(tmp_path):
    with DatasetWriter(tmp_path / "set", name="small") as writer:
        writer.add_items(ITEMS)
        writer.add_interactions(CLICKS)
        with pytest.raises(DatasetError, match="at least one modality"):
            writer.publish()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(FEATURES[:2], PRESENT[:2])], "got 2 rows for 3 items"),
        ([(FEATURES, PRESENT), (FEATURES[:1], PRESENT[:1])], r"row 3: got features \(1, 3\)"),
        ([(FEATURES[:, :2], PRESENT)], r"row 0: got features \(3, 2\) .* for 3 columns"),
        ([(FEATURES, PRESENT[:2])], r"presence \(2,\)"),
    ],
)
def test_features_that_do_not_cover_the_items_are_refused(tmp_path, batches, message):
    with DatasetWriter(tmp_path / "set", name="small") as writer:
        writer.add_items(ITEMS)
        with pytest.raises(DatasetError, match=message):
            writer.add_modality("visual", dim=3, batches=batches)


KILLED = """
import os, signal, sys
from pathlib import Path
from index.dataset_write import DatasetWriter
from tests.unit.test_dataset_write import write
with DatasetWriter(Path(sys.argv[1]), name="small") as writer:
    write(writer)
    if sys.argv[2] == "in publish":
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        writer.publish()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["while writing", "in publish"])
def test_a_killed_writer_leaves_no_dataset_and_the_next_one_cleans_up(tmp_path, moment, pytestconfig):
    target = tmp_path / "set"
    killed = subprocess.run([sys.executable, "-c", KILLED, target, moment], cwd=pytestconfig.rootpath, check=False)
    assert killed.returncode == -9
    assert not target.exists()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".tmp-set-")
    if moment == "while writing":
        with pytest.raises(DatasetError):
            Dataset.open(leftover)
    publish(target)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert not (target / ".lock").exists()


def test_two_writers_of_one_target_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "set"
    with DatasetWriter(target, name="first") as first, DatasetWriter(target, name="second") as second:
        write(first)
        write(second)
        first.publish()
        with pytest.raises(OSError, match="not empty"):
            second.publish()
    assert Dataset.open(target).manifest.name == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
