"""MIND news as published."""

import pytest

from index.dataset_validate import validate
from index.dataset_write import DatasetWriter
from training.data.importers.items import FeatureOptions
from training.data.importers.mind import import_mind
from training.data.importers.sources import SourceError

NEWS = [
    'N1\tsports\tgolf\tA "close" match\tThey played.\thttps://x\t[{"Label": "a::b"}]\t[]',
    "N2\tnews\tnews\tElection day\t\thttps://y\t[]\t[]",
    "N3\tfoodanddrink\trecipes\tPie\tApples.\thttps://z\t[]\t[]",
]
BEHAVIORS = [
    "2\tU1\t11/15/2019 9:00:10 AM\tN1 N2\tN3-1 N2-0",
    "1\tU1\t11/15/2019 8:59:10 AM\tN1 N2\tN2-1 N1-1 N3-0",
    "3\tU2\t11/15/2019 8:00:00 PM\t\tN1-0 N3-0",
    "4\tU3\t11/15/2019 12:00:00 AM\tN3\tN1-0",
]
MORNING = 1_573_808_350  # 2019-11-15 08:59:10 UTC


def write(path, behaviors=BEHAVIORS, news=NEWS):
    path.mkdir(parents=True, exist_ok=True)
    (path / "news.tsv").write_text("".join(f"{line}\n" for line in news), encoding="utf-8")
    (path / "behaviors.tsv").write_text("".join(f"{line}\n" for line in behaviors), encoding="utf-8")
    return path


def imported(source, target):
    with DatasetWriter(target, name="mind") as writer:
        import_mind(writer, source, features=FeatureOptions())
        return writer.publish()


def rows(dataset):
    return [tuple(row.values()) for row in dataset.interactions().to_pylist()]


def test_clicks_follow_the_history_that_came_before_the_first_impression(tmp_path):
    dataset = imported(write(tmp_path / "in"), tmp_path / "out")
    assert validate(dataset.path) == []
    assert rows(dataset) == [
        ("U1", "N1", MORNING - 2, "history"),
        ("U1", "N2", MORNING - 1, "history"),
        ("U1", "N2", MORNING, "click"),
        ("U1", "N1", MORNING, "click"),
        ("U1", "N3", MORNING + 60, "click"),
        ("U3", "N3", 1_573_776_000 - 1, "history"),
    ]


def test_news_have_titles_abstracts_and_categories_without_repeats(tmp_path):
    dataset = imported(write(tmp_path / "in"), tmp_path / "out")
    assert dataset.items().to_pylist()[0] == {
        "item_id": "N1",
        "title": 'A "close" match',
        "description": "They played.",
        "url": "https://x",
        "categories": ["sports", "golf"],
    }
    assert dataset.items()["categories"].to_pylist()[1] == ["news"]
    assert dataset.modality_names == ("text", "category")


def test_train_and_dev_folders_are_joined(tmp_path):
    write(tmp_path / "in" / "MINDsmall_train")
    more = ["N4\tautos\tcars\tNew car\tFast.\thttps://c\t[]\t[]", NEWS[0]]
    later = ["9\tU1\t11/16/2019 8:59:10 AM\tN1 N2\tN4-1"]
    write(tmp_path / "in" / "MINDsmall_dev", later, more)
    dataset = imported(tmp_path / "in", tmp_path / "out")
    assert sorted(dataset.item_ids) == ["N1", "N2", "N3", "N4"]
    assert [row[1] for row in rows(dataset) if row[0] == "U1"] == ["N1", "N2", "N2", "N1", "N3", "N4"]


def test_many_buckets_and_small_batches_give_the_same_rows(tmp_path, monkeypatch):
    expected = rows(imported(write(tmp_path / "in"), tmp_path / "out"))
    monkeypatch.setattr("training.data.importers.spill._BYTES_PER_BUCKET", 16)
    monkeypatch.setattr("training.data.importers.mind._BATCH_ROWS", 1)
    assert sorted(rows(imported(tmp_path / "in", tmp_path / "out2"))) == sorted(expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5\tU4\t11/15/2019 8:00:00 PM\tN1", "line 5: has 4 values, expected 5"),
        ("5\t\t11/15/2019 8:00:00 PM\tN1\tN1-1", "line 5: user is empty"),
        ("5\tU4\t2019-11-15 20:00\tN1\tN1-1", "line 5: time is '2019-11-15 20:00', expected such as"),
        ("5\tU4\t11/15/2019 8:00:00 PM\tN1\tN1 N2", "line 5: impression is 'N1', expected NEWS-0 or NEWS-1"),
        ("5\tU4\t11/15/2019 8:00:00 PM\tN1\tN1-2", "line 5: impression is 'N1-2'"),
        ("5\tU4\t11/15/2019 8:00:00 PM\tN9\tN1-1", r"line 5: news 'N9' is not in news\.tsv"),
        ("5\tU4\t11/15/2019 8:00:00 PM\tN1\tN9-1", r"line 5: news 'N9' is not in news\.tsv"),
    ],
)
def test_a_malformed_line_is_told(tmp_path, line, message):
    with pytest.raises(SourceError, match=rf"behaviors\.tsv, {message}"):
        imported(write(tmp_path / "in", [*BEHAVIORS, line]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_malformed_news_and_missing_files_are_told(tmp_path):
    with pytest.raises(SourceError, match=r"news\.tsv, line 4: has 2 values, expected 8"):
        imported(write(tmp_path / "in", news=[*NEWS, "N4\tx"]), tmp_path / "out")
    (tmp_path / "in" / "news.tsv").unlink()
    with pytest.raises(SourceError, match=r"news\.tsv: file is missing"):
        imported(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "behaviors.tsv").unlink()
    with pytest.raises(SourceError, match="is no MIND folder"):
        imported(tmp_path / "in", tmp_path / "out")
