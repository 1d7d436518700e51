"""Tables of any catalogue: CSV, TSV and Parquet, with the columns that their owner has."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index.dataset_validate import validate
from index.dataset_write import DatasetWriter
from training.data.importers.items import FeatureFile, FeatureOptions
from training.data.importers.sources import SourceError
from training.data.importers.tables import TimeUnit, import_tables

ITEMS = """item_id,title,description,categories,price,stock,sold_out,note
007,"Mug, large",Holds tea.,kitchen|gifts,9.5,3,false,x
B2,"Print
of a fox",,art,20,,true,
"""
CLICKS = """user_id,item_id,timestamp,weight,split
u1,B2,30,1.5,test
u1,007,10,1,train
u2,007,20,1,train
"""


def source(path, items=ITEMS, clicks=CLICKS, suffix="csv"):
    path.mkdir(exist_ok=True)
    (path / f"items.{suffix}").write_text(items)
    (path / f"interactions.{suffix}").write_text(clicks)
    return path


def imported(folder, target, **options):
    options = {"features": FeatureOptions(), "columns": {}} | options
    with DatasetWriter(target, name="tables") as writer:
        import_tables(writer, folder, **options)
        return writer.publish()


def test_csv_tables_keep_their_attributes_with_types(tmp_path):
    dataset = imported(source(tmp_path / "in"), tmp_path / "out")
    assert validate(dataset.path) == []
    assert dataset.items().to_pylist() == [
        {
            "item_id": "007",
            "title": "Mug, large",
            "description": "Holds tea.",
            "categories": ["kitchen", "gifts"],
            "price": 9.5,
            "stock": 3,
            "sold_out": False,
            "note": "x",
        },
        {
            "item_id": "B2",
            "title": "Print\nof a fox",
            "description": None,
            "categories": ["art"],
            "price": 20.0,
            "stock": None,
            "sold_out": True,
            "note": None,
        },
    ]
    assert dataset.modality_names == ("text", "category")
    assert dataset.interactions().to_pylist() == [
        {"user_id": "u1", "item_id": "007", "timestamp": 10, "weight": 1.0, "split": "train"},
        {"user_id": "u1", "item_id": "B2", "timestamp": 30, "weight": 1.5, "split": "test"},
        {"user_id": "u2", "item_id": "007", "timestamp": 20, "weight": 1.0, "split": "train"},
    ]


def test_tsv_tables_are_read(tmp_path):
    folder = source(
        tmp_path / "in", "item_id\ttitle\na\tOne, two\n", "user_id\titem_id\ttimestamp\nu\ta\t5\n", suffix="tsv"
    )
    assert imported(folder, tmp_path / "out").items()["title"].to_pylist() == ["One, two"]


def test_parquet_tables_with_whole_number_ids_and_times_are_read(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(
        pa.table({"item_id": [5, 6], "title": ["a", "b"], "categories": [["x"], []]}), folder / "items.parquet"
    )
    times = pa.array([2_000_000, 1_000_000], pa.timestamp("us"))
    clicks = pa.table({"user_id": [1, 1], "item_id": [5, 6], "timestamp": times, "rating": [4, 5]})
    pq.write_table(clicks, folder / "interactions.parquet")
    dataset = imported(folder, tmp_path / "out")
    assert dataset.item_ids == ["5", "6"]
    assert dataset.interactions().to_pylist() == [
        {"user_id": "1", "item_id": "6", "timestamp": 1, "rating": 5.0},
        {"user_id": "1", "item_id": "5", "timestamp": 2, "rating": 4.0},
    ]


def test_columns_that_are_called_otherwise_are_mapped(tmp_path):
    folder = source(tmp_path / "in", "sku,name\na,Alpha\n", "customer,sku,at\nu,a,5\n")
    columns = {"item_id": "sku", "title": "name", "user_id": "customer", "timestamp": "at"}
    dataset = imported(folder, tmp_path / "out", columns=columns)
    assert dataset.items().to_pylist() == [{"item_id": "a", "title": "Alpha"}]
    assert dataset.interactions().to_pylist() == [{"user_id": "u", "item_id": "a", "timestamp": 5}]


@pytest.mark.parametrize(
    ("unit", "written", "seconds"),
    [
        (TimeUnit.SECONDS, "1700000000", 1_700_000_000),
        (TimeUnit.MILLISECONDS, "1700000000999", 1_700_000_000),
        (TimeUnit.ISO_8601, "2023-11-14T22:13:20Z", 1_700_000_000),
        (TimeUnit.ISO_8601, "2023-11-14T23:13:20+01:00", 1_700_000_000),
        (TimeUnit.ISO_8601, "2023-11-14 22:13:20.75Z", 1_700_000_000),
    ],
)
def test_timestamps_are_seconds_whatever_their_unit(tmp_path, unit, written, seconds):
    folder = source(tmp_path / "in", clicks=f"user_id,item_id,timestamp\nu,B2,{written}\n")
    dataset = imported(folder, tmp_path / "out", time_unit=unit)
    assert dataset.interactions()["timestamp"].to_pylist() == [seconds]


def test_without_timestamps_the_order_of_the_file_counts(tmp_path):
    folder = source(tmp_path / "in", clicks="user_id,item_id\nu,B2\nv,007\nu,007\n")
    rows = imported(folder, tmp_path / "out").interactions().to_pylist()
    assert [row["item_id"] for row in rows if row["user_id"] == "u"] == ["B2", "007"]
    assert {row["timestamp"] for row in rows} == {0}


def test_features_and_pictures_below_the_folder_are_found(tmp_path):
    folder = source(tmp_path / "in")
    (folder / "features").mkdir()
    np.save(folder / "features" / "sound.npy", np.array([[1, 2]], np.float32))
    (folder / "features" / "sound.ids.txt").write_text("B2\n")
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8), (1, 200, 3)).save(folder / "images" / "007.png")
    dataset = imported(folder, tmp_path / "out")
    assert dataset.modality_names == ("sound", "visual", "text", "category")
    assert dataset.presence("sound").tolist() == [False, True]
    assert dataset.presence("visual").tolist() == [True, False]


def test_a_feature_file_named_by_hand_wins(tmp_path):
    folder = source(tmp_path / "in")
    (folder / "features").mkdir()
    np.save(folder / "features" / "sound.npy", np.zeros((2, 2), np.float32))
    np.save(tmp_path / "better.npy", np.eye(2, dtype=np.float32))
    options = FeatureOptions(files=(FeatureFile("sound", tmp_path / "better.npy"),))
    np.testing.assert_array_equal(imported(folder, tmp_path / "out", features=options).features("sound"), np.eye(2))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("title\nx\n", "items.csv: column 'item_id': column is missing"),
        ("item_id,title\na,x\na,y\n", r"items.csv: row 2: item 'a' appears again \(first in row 1\)"),
        ("item_id,title\na,x\n,y\n", "items.csv: row 2: item_id is empty"),
        ("item_id,title\na,x,y\n", "items.csv, line 2: has 3 values, expected 2"),
        ("item_id,title\n", "items.csv: has no items"),
        ("item_id,price\nB2,1\n007,2\n", "items: no text, category, picture or feature file"),
    ],
)
def test_a_malformed_items_table_is_told(tmp_path, items, message):
    with pytest.raises(SourceError, match=message):
        imported(source(tmp_path / "in", items), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ("user_id,timestamp\nu,1\n", "interactions.csv, line 1: column 'item_id' is missing"),
        ("user_id,item_id,timestamp\nu,B2,1\nu,zzz,2\n", "interactions.csv, line 3: item 'zzz' is not among the items"),
        ("user_id,item_id,timestamp\nu,B2,1\n,B2,2\n", "interactions.csv, line 3: user_id is empty"),
        ("user_id,item_id,timestamp\nu,B2,soon\n", "interactions.csv, line 2: .*'soon'"),
        ("user_id,item_id,timestamp\nu,B2,-4\n", "interactions.csv, line 2: timestamp -4 is negative"),
        ("user_id,item_id,rating\nu,B2,inf\n", "interactions.csv, line 2: rating is inf"),
    ],
)
def test_a_malformed_interaction_is_told_with_its_line(tmp_path, clicks, message):
    with pytest.raises(SourceError, match=message):
        imported(source(tmp_path / "in", clicks=clicks), tmp_path / "out")


def test_a_wrong_split_is_refused_before_anything_is_published(tmp_path):
    clicks = "user_id,item_id,split\nu,B2,dev\n"
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, valid, test"):
        imported(source(tmp_path / "in", clicks=clicks), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_doubled_tables_are_named(tmp_path):
    folder = source(tmp_path / "in")
    (folder / "items.tsv").write_text("item_id\na\n")
    with pytest.raises(SourceError, match=r"needs one of items\.csv, .* has items\.csv and items\.tsv"):
        imported(folder, tmp_path / "out")
    (folder / "interactions.csv").unlink()
    with pytest.raises(SourceError, match=r"needs one of interactions\.csv, .*, has none"):
        imported(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["items", "interactions"])
def test_a_broken_parquet_file_is_named(tmp_path, name):
    folder = source(tmp_path / "in")
    (folder / f"{name}.csv").unlink()
    (folder / f"{name}.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(SourceError, match=rf"{name}\.parquet: is not a readable Parquet file"):
        imported(folder, tmp_path / "out")


def test_an_empty_value_in_parquet_is_told_with_its_row(tmp_path):
    folder = source(tmp_path / "in")
    (folder / "interactions.csv").unlink()
    clicks = pa.table({"user_id": ["u", None], "item_id": ["B2", "B2"], "timestamp": [1, 2]})
    pq.write_table(clicks, folder / "interactions.parquet")
    with pytest.raises(SourceError, match=r"interactions\.parquet, line 2: user_id is empty"):
        imported(folder, tmp_path / "out")
