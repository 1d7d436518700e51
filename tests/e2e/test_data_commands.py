"""`prismrec-train data`: what the commands print, make and answer."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from index.dataset import Dataset, DatasetError
from tests import toy
from training.data.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def movielens(path, num_ratings=40):
    path.mkdir()
    rows = [f"{1 + i % 7},{1 + i % 5},{1 + i % 5},{1000 + i}" for i in range(num_ratings)]
    (path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows, ""]))
    films = [f"{i},Film {i} (199{i}),Drama" for i in range(1, 6)]
    (path / "movies.csv").write_text("\n".join(["movieId,title,genres", *films, ""]))
    return path


def test_make_ends_with_one_line_of_what_was_made_and_where(tmp_path):
    result = run("make", tmp_path / "data", "--users", 9, "--items", 24, "--seed", 5, "--covers", 32)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"made {tmp_path / 'data'}: 9 users, 24 items, ")
    assert len(result.stdout.splitlines()) == 1
    assert "users: 9 of 9" in result.stderr
    dataset = Dataset.open(tmp_path / "data")
    assert (dataset.path / dataset.items()["image_url"].drop_null()[0].as_py()).is_file()
    assert run("validate", tmp_path / "data").exit_code == 0


def test_a_target_that_is_there_fails_with_its_reason(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").touch()
    result = run("make", tmp_path / "data")
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["make"],
        ["make", "data", "--users", "0"],
        ["make", "data", "--items", "3"],
        ["make", "data", "--seed", "-1"],
        ["make", "data", "--covers", "4"],
        ["make", "data", "--colour", "red"],
        ["import", "netflix", ".", "data"],
        ["import", "movielens", "nowhere", "data"],
        ["import", "tables", ".", "data", "--min-rating", "3"],
        ["import", "movielens", ".", "data", "--column", "a=b"],
        ["import", "mind", ".", "data", "--time-unit", "ms"],
        ["import", "tables", ".", "data", "--column", "user_id"],
        ["import", "tables", ".", "data", "--features", "sound"],
        ["import", "tables", ".", "data", "--features", "Sound!=x.npy"],
        ["import", "tables", ".", "data", "--images", "nowhere"],
        ["import", "tables", ".", "data", "--image-model", "nowhere.onnx"],
        ["mask", "source", "data"],
        ["mask", "source", "data", "--share", "1.1"],
        ["validate"],
        ["unknown"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_makes_nothing(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_import_takes_options_and_ends_with_one_line(tmp_path):
    source = movielens(tmp_path / "ml-tiny")
    np.save(tmp_path / "sound.npy", np.eye(2, 3, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("5\n1\n")
    features = f"sound={tmp_path / 'sound.npy'},{tmp_path / 'ids.txt'}"
    result = run("import", "movielens", source, tmp_path / "out", "--min-rating", 3, "--features", features)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"imported {tmp_path / 'out'}: 7 users, 5 items, 24 interactions; sound (3), text (256), category (1)\n"
    )
    manifest = Dataset.open(tmp_path / "out").manifest
    assert manifest.name == "ml-tiny"
    assert "GroupLens" in manifest.licence


def test_import_of_tables_maps_columns(tmp_path):
    source = tmp_path / "shop"
    source.mkdir()
    (source / "items.csv").write_text("sku,title\na,Alpha\n")
    (source / "interactions.csv").write_text("user_id,sku,timestamp\nu,a,5000\n")
    result = run(
        "import", "tables", source, tmp_path / "out", "--column", "item_id=sku", "--time-unit", "ms", "--name", "shop x"
    )
    assert result.exit_code == 0, result.output
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.interactions()["timestamp"].to_pylist() == [5]
    assert dataset.manifest.name == "shop x"


def test_import_takes_a_vision_model_by_path_and_tells_when_it_is_none(tmp_path):
    source = movielens(tmp_path / "ml")
    (tmp_path / "posters").mkdir()
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    options = ["--images", tmp_path / "posters", "--image-model", tmp_path / "bad.onnx", "--image-scaling", "clip"]
    result = run("import", "movielens", source, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert "bad.onnx: is not a readable ONNX model" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_import_says_why_and_leaves_nothing(tmp_path):
    source = movielens(tmp_path / "ml")
    with (source / "ratings.csv").open("a") as file:
        file.write("1,1,much,5\n")
    result = run("import", "movielens", source, tmp_path / "out")
    assert result.exit_code == 1
    assert "error: ratings.csv, line 42: In CSV column #2" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


def test_mask_makes_a_valid_copy_and_ends_with_one_line(tmp_path):
    source = toy.make_dataset(tmp_path / "toy", num_users=12, num_items=30)
    result = run("mask", source, tmp_path / "less", "--share", 0.5, "--modality", "text", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"masked {tmp_path / 'less'}: 12 users, 30 items, ")
    assert len(result.stdout.splitlines()) == 1
    assert run("validate", tmp_path / "less").exit_code == 0
    again = run("mask", source, tmp_path / "less", "--share", 0.5)
    assert again.exit_code == 1
    assert "less is there already" in again.stderr
    strange = run("mask", source, tmp_path / "other", "--share", 0.5, "--modality", "smell")
    assert strange.exit_code == 1
    assert "no modality 'smell'; it has visual, text, category" in strange.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["less", "toy"]


def test_validate_tells_all_problems_and_fails(tmp_path):
    folder = toy.make_dataset(tmp_path / "toy", num_users=12, num_items=30)
    result = run("validate", folder)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"valid: {folder}: 12 users, 30 items")
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(manifest | {"num_users": 13}))
    (folder / "features" / "text.npy").unlink()
    result = run("validate", folder)
    assert result.exit_code == 1
    assert "error: interactions.parquet, column user_id: has 12 users, but" in result.stdout
    assert "error: features/text.npy: file is missing" in result.stdout
    assert f"{folder}: not valid, 2 errors" in result.stderr


def test_validate_of_a_folder_that_is_not_there_fails(tmp_path):
    assert run("validate", tmp_path / "nowhere").exit_code == 1


KILLED = """
import signal, sys
from training.data.cli import app
from training.data.importers.spill import UserBuckets

signum = int(sys.argv.pop())

def die(*_):
    signal.raise_signal(signum)  # to this very thread: one that waits could miss what another one was sent
    raise AssertionError("the signal did not end it")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
UserBuckets.tables = die  # items and features are written, ratings are read
app()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_import_leaves_no_folder_that_opens_and_can_be_repeated(tmp_path, signum, pytestconfig):
    source, target = movielens(tmp_path / "ml"), tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "import", "movielens", source, target, str(int(signum))],
        cwd=pytestconfig.rootpath,
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode in (-signum, 128 + signum), killed.stderr
    for folder in tmp_path.iterdir():
        with pytest.raises(DatasetError):
            Dataset.open(folder)
    assert run("import", "movielens", source, target).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml", "out"]
