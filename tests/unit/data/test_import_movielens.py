"""MovieLens folders as they are published, in both their forms, and what is wrong with them told by file and line."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from index.dataset import Dataset
from index.dataset_validate import validate
from index.dataset_write import DatasetWriter
from training.data.featurise.batches import PictureError
from training.data.importers.items import FeatureFile, FeatureOptions
from training.data.importers.movielens import import_movielens
from training.data.importers.sources import SourceError

RATINGS = [(2, 10, 4.0, 300), (1, 30, 3.5, 200), (2, 20, 0.5, 100), (1, 10, 5.0, 200), (1, 20, 2.0, 150)]
MOVIES_CSV = """movieId,title,genres
10,Toy Story (1995),Adventure|Animation
20,"American President, The (1995)",Drama
30,Untitled thing,(no genres listed)
"""
TAGS_CSV = """userId,movieId,tag,timestamp
1,10,Pixar,5
2,10,pixar,6
2,10,"fun, really",7
"""


def csv_folder(path, ratings=RATINGS, movies=MOVIES_CSV, tags=TAGS_CSV, end="\n"):
    path.mkdir(exist_ok=True)
    lines = ["userId,movieId,rating,timestamp", *(f"{u},{m},{r},{t}" for u, m, r, t in ratings)]
    (path / "ratings.csv").write_bytes((end.join(lines) + end).encode())
    (path / "movies.csv").write_bytes(movies.replace("\n", end).encode())
    if tags:
        (path / "tags.csv").write_bytes(tags.replace("\n", end).encode())
    return path


def dat_folder(path):
    path.mkdir(exist_ok=True)
    (path / "ratings.dat").write_text("".join(f"{u}::{m}::{r:g}::{t}\n" for u, m, r, t in RATINGS))
    films = ["10::Toy Story (1995)::Animation", "20::Misérables, Les (1995)::Drama", "30::Café: the end (2000)::Drama"]
    (path / "movies.dat").write_bytes("\n".join(films).encode("latin-1"))
    return path


def imported(source, target, **options):
    options.setdefault("features", FeatureOptions())
    with DatasetWriter(target, name="ml") as writer:
        import_movielens(writer, source, **options)
        return writer.publish()


def rows(dataset):
    return [tuple(row.values()) for row in dataset.interactions().to_pylist()]


def test_csv_sets_become_films_with_genres_years_titles_and_tags(tmp_path):
    dataset = imported(csv_folder(tmp_path / "ml"), tmp_path / "out")
    assert validate(dataset.path) == []
    assert dataset.items().to_pylist() == [
        {
            "item_id": "10",
            "title": "Toy Story (1995)",
            "description": "pixar, fun, really",
            "categories": ["Adventure", "Animation"],
            "year": 1995,
        },
        {
            "item_id": "20",
            "title": "American President, The (1995)",
            "description": "",
            "categories": ["Drama"],
            "year": 1995,
        },
        {"item_id": "30", "title": "Untitled thing", "description": "", "categories": [], "year": None},
    ]
    assert dataset.modality_names == ("text", "category")
    assert dataset.presence("category").tolist() == [True, True, False]
    assert dataset.presence("text").tolist() == [True, True, True]
    half = np.float16(np.sqrt(0.5))
    np.testing.assert_array_equal(dataset.features("category")[:2], [[half, half, 0], [0, 0, 1]])
    assert rows(dataset) == [
        ("1", "20", 150, 2.0, "rating"),
        ("1", "30", 200, 3.5, "rating"),
        ("1", "10", 200, 5.0, "rating"),
        ("2", "20", 100, 0.5, "rating"),
        ("2", "10", 300, 4.0, "rating"),
    ]


def test_double_colon_sets_in_latin_1_are_read(tmp_path):
    dataset = imported(dat_folder(tmp_path / "ml"), tmp_path / "out")
    assert dataset.items()["title"].to_pylist() == [
        "Toy Story (1995)",
        "Misérables, Les (1995)",
        "Café: the end (2000)",
    ]
    assert rows(dataset)[0] == ("1", "20", 150, 2.0, "rating")


def test_double_colons_are_found_across_the_borders_of_reads(tmp_path, monkeypatch):
    expected = rows(imported(dat_folder(tmp_path / "ml"), tmp_path / "out"))
    for size in (23, 24, 25, 26):  # a block of Arrow must hold a line
        monkeypatch.setattr("training.data.importers.sources._BLOCK_BYTES", size)
        assert rows(imported(tmp_path / "ml", tmp_path / f"out{size}")) == expected


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tail", ["", "{end}", "{end}{end}"])
def test_line_ends_and_blank_last_lines_do_not_matter(tmp_path, end, tail):
    source = csv_folder(tmp_path / "ml", end=end)
    path = source / "ratings.csv"
    path.write_bytes(path.read_bytes().rstrip() + tail.format(end=end).encode())
    assert len(rows(imported(source, tmp_path / "out"))) == 5


def test_a_byte_order_mark_is_passed_over(tmp_path):
    source = csv_folder(tmp_path / "ml")
    for name in ("ratings.csv", "movies.csv"):
        (source / name).write_bytes(b"\xef\xbb\xbf" + (source / name).read_bytes())
    assert len(rows(imported(source, tmp_path / "out"))) == 5


def test_ratings_below_the_least_are_left_out(tmp_path):
    dataset = imported(csv_folder(tmp_path / "ml"), tmp_path / "out", min_rating=3.5)
    assert [row[3] for row in rows(dataset)] == [3.5, 5.0, 4.0]
    assert dataset.num_items == 3  # films without a rating stay in the catalogue


def test_many_buckets_give_every_user_whole_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.importers.spill._BYTES_PER_BUCKET", 64)
    monkeypatch.setattr("training.data.importers.sources._BLOCK_BYTES", 200)
    rng = np.random.default_rng(0)
    ratings = [
        (int(user), int(10 * (1 + movie)), 4.0, int(time))
        for user, movie, time in zip(
            rng.integers(0, 40, 500), rng.integers(0, 3, 500), rng.integers(0, 50, 500), strict=True
        )
    ]
    dataset = imported(csv_folder(tmp_path / "ml", ratings), tmp_path / "out")
    found = rows(dataset)
    users = [row[0] for row in found]
    borders = sum(a != b for a, b in pairwise(users))
    assert borders + 1 == len(set(users)) == dataset.manifest.num_users
    for user in set(users):
        # Ratings of one second stay in the order of the file.
        expected = sorted((r for r in ratings if str(r[0]) == user), key=lambda row: row[3])
        assert [(row[1], row[2]) for row in found if row[0] == user] == [(str(r[1]), r[3]) for r in expected]
    assert not (tmp_path / "out" / "sorting").exists()


def test_posters_become_the_visual_modality(tmp_path):
    posters = tmp_path / "posters"
    posters.mkdir()
    Image.new("RGB", (20, 30), (200, 0, 0)).save(posters / "20.jpg")
    Image.new("RGB", (20, 30), (0, 0, 200)).save(posters / "999.png")
    dataset = imported(csv_folder(tmp_path / "ml"), tmp_path / "out", features=FeatureOptions(images=posters))
    assert dataset.modality_names == ("visual", "text", "category")
    assert dataset.presence("visual").tolist() == [False, True, False]


def test_a_broken_poster_is_named(tmp_path):
    (tmp_path / "20.jpg").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"20\.jpg: is not a readable picture"):
        imported(csv_folder(tmp_path / "ml"), tmp_path / "out", features=FeatureOptions(images=tmp_path))


class TestFeatureFiles:
    @pytest.fixture
    def source(self, tmp_path):
        return csv_folder(tmp_path / "ml")

    def features(self, tmp_path, array, ids=None, name="sound"):
        np.save(tmp_path / "sound.npy", array)
        if ids is not None:
            (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n")
        file = FeatureFile(name, tmp_path / "sound.npy", tmp_path / "ids.txt" if ids is not None else None)
        return FeatureOptions(files=(file,))

    def test_rows_go_to_their_items_and_items_without_a_row_lack_it(self, source, tmp_path):
        options = self.features(tmp_path, np.array([[1, 2], [3, 4], [5, 6]], np.float32), ["30", "77", "10"])
        dataset = imported(source, tmp_path / "out", features=options)
        np.testing.assert_array_equal(dataset.features("sound"), [[5, 6], [0, 0], [1, 2]])
        assert dataset.presence("sound").tolist() == [True, False, True]

    def test_a_file_takes_the_place_of_the_built_in_modality(self, source, tmp_path):
        options = self.features(tmp_path, np.eye(3, dtype=np.float16), name="text")
        dataset = imported(source, tmp_path / "out", features=options)
        assert dataset.modality_names == ("text", "category")
        np.testing.assert_array_equal(dataset.features("text"), np.eye(3))

    @pytest.mark.parametrize(
        ("array", "ids", "message"),
        [
            (np.eye(2, 4, dtype=np.float32), None, r"sound\.npy: has 2 rows for 3 items"),
            (np.eye(3, dtype=np.float32), ["10", "20"], r"ids\.txt: has 2 lines, but sound\.npy has 3 rows"),
            (np.eye(2, dtype=np.float32), ["10", "10"], r"ids\.txt, line 2: item '10' appears again"),
            (np.eye(3, dtype=np.int64), None, r"sound\.npy: is int64 \(3, 3\), expected one floating point array"),
            (np.ones(3, dtype=np.float32), None, r"sound\.npy: is float32 \(3,\)"),
            (np.array([[1, 2], [3, np.nan], [5, 6]], np.float32), None, r"sound\.npy: row 1, column 1: value is nan"),
            (np.array([[1e9], [1], [2]]), None, None),
            (np.array([[1e39], [1], [2]]), None, r"sound\.npy: row 0, column 0: value is inf"),
        ],
    )
    def test_a_file_that_does_not_fit_is_named(self, source, tmp_path, array, ids, message):
        options = self.features(tmp_path, array, ids)
        if message is None:
            assert imported(source, tmp_path / "out", features=options).features("sound")[0, 0] == 1e9
            return
        with pytest.raises(SourceError, match=message):
            imported(source, tmp_path / "out", features=options)
        assert not (tmp_path / "out").exists()

    def test_objects_are_never_unpickled(self, source, tmp_path):
        np.save(tmp_path / "sound.npy", np.array([print] * 3, dtype=object), allow_pickle=True)
        options = FeatureOptions(files=(FeatureFile("sound", tmp_path / "sound.npy"),))
        with pytest.raises(SourceError, match=r"sound\.npy: is not a readable \.npy file"):
            imported(source, tmp_path / "out", features=options)

    def test_a_missing_file_is_named(self, source, tmp_path):
        options = FeatureOptions(files=(FeatureFile("sound", tmp_path / "nowhere.npy"),))
        with pytest.raises(SourceError, match=r"nowhere\.npy: file is missing"):
            imported(source, tmp_path / "out", features=options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,10,4.0", r"ratings\.csv, line 4: Expected 4 columns, got 3"),
        ("1,10,4.0,5,6", r"ratings\.csv, line 4: Expected 4 columns, got 5"),
        ("1,10,good,5", r"ratings\.csv, line 4: In CSV column #2: .*'good'"),
        ("1,10,4.0,yesterday", r"ratings\.csv, line 4: In CSV column #3: .*'yesterday'"),
        ("one,10,4.0,5", r"ratings\.csv, line 4: In CSV column #0: .*'one'"),
        (",10,4.0,5", r"ratings\.csv, line 4: userId is empty"),
        ("1,10,4.0,", r"ratings\.csv, line 4: timestamp is empty"),
        ("1,99,4.0,5", r"ratings\.csv, line 4: item '99' is not among the items"),
        ("1,10,4.0,-5", r"ratings\.csv, line 4: timestamp -5 is negative"),
        ("1,10,nan,5", r"ratings\.csv, line 4: rating nan is no number"),
        ("1,10,4.0,99999999999999999999", r"ratings\.csv, line 4: "),
        ("\xff,10,4.0,5", r"ratings\.csv, line 4: "),
    ],
)
@pytest.mark.parametrize("before", ["", "\n"], ids=["", "after a blank line"])
def test_a_malformed_rating_is_told_with_its_line(tmp_path, line, message, before):
    source = csv_folder(tmp_path / "ml")
    lines = (source / "ratings.csv").read_text().splitlines()
    lines[3] = line
    content = "\n".join(lines[:1]) + "\n" + before + "\n".join(lines[1:]) + "\n"
    (source / "ratings.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match=message.replace("line 4", "line 5") if before else message):
        imported(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


def test_a_malformed_rating_of_the_double_colon_form_is_told_with_its_line(tmp_path):
    source = dat_folder(tmp_path / "ml")
    with (source / "ratings.dat").open("a") as file:
        file.write("1::10:4::5\n")
    with pytest.raises(SourceError, match=r"ratings\.dat, line 6: Expected 4 columns, got 3"):
        imported(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("movies", "message"),
    [
        (MOVIES_CSV + "40,No genres\n", r"movies\.csv, line 5: has 2 values, expected 3"),
        (MOVIES_CSV + "10,Again (1999),Drama\n", r"movies\.csv, line 5: movie 10 appears again"),
        (MOVIES_CSV + "x,Title,Drama\n", r"movies\.csv, line 5: movie id is 'x'"),
        (MOVIES_CSV + '40,"open quote,Drama\n', r"movies\.csv, line 5: "),
        ("movieId,title,genres\n", r"movies\.csv: has no movies"),
        ("", r"movies\.csv: has no movies"),
    ],
)
def test_a_malformed_film_is_told_with_its_line(tmp_path, movies, message):
    with pytest.raises(SourceError, match=message):
        imported(csv_folder(tmp_path / "ml", movies=movies), tmp_path / "out")


def test_a_malformed_tag_is_told_with_its_line(tmp_path):
    with pytest.raises(SourceError, match=r"tags\.csv, line 5: has 2 values, expected 4"):
        imported(csv_folder(tmp_path / "ml", tags=TAGS_CSV + "1,10\n"), tmp_path / "out")


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"is no MovieLens folder: it has neither ratings\.csv nor ratings\.dat"):
        imported(tmp_path, tmp_path / "out")
    source = csv_folder(tmp_path / "ml")
    (source / "movies.csv").unlink()
    with pytest.raises(SourceError, match=r"movies\.csv: file is missing"):
        imported(source, tmp_path / "out")
    csv_folder(source)
    (source / "ratings.csv").write_text("userId,movieId,timestamp\n1,10,5\n")
    with pytest.raises(SourceError, match=r"ratings\.csv, line 1: column 'rating' is missing; it has userId, movieId"):
        imported(source, tmp_path / "out")
    (source / "ratings.csv").write_text("")
    with pytest.raises(SourceError, match=r"ratings\.csv, line 1: is empty"):
        imported(source, tmp_path / "out")


def test_progress_is_told(tmp_path):
    told = []
    imported(csv_folder(tmp_path / "ml"), tmp_path / "out", on_progress=lambda *progress: told.append(progress))
    assert ("text features", 3, 3) in told
    assert ("interactions in order", 5, 5) in told
    assert Dataset.open(tmp_path / "out").manifest.num_interactions == 5
