"""`prismrec-index`: one result or one line of what went wrong, and exit codes that say which."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.cli import app
from index.config import RebuildConfig
from index.store import ArtifactStore
from tests.bundles import make_bundle, make_random_dataset, make_snapshot

CONFIGS = sorted((Path(__file__).parents[3] / "index" / "configs").glob("*.toml"))


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def test_rebuild_then_check_list_current_rollback_and_prune(store, toy_dataset):
    bundle = make_bundle(store, toy_dataset)
    first = run("rebuild", "--store", store.root, "--bundle", bundle, "--data", toy_dataset)
    assert first.exit_code == 0, first.output
    version = store.current()
    assert first.stdout.startswith(f"{version}: 60 items (60 encoded), Flat, recall@100 1.0000, in ")
    assert "encode items: 60 of 60" in first.stderr
    second = run("rebuild", "--store", store.root, "--bundle", bundle, "--data", toy_dataset, "--config", CONFIGS[0])
    assert "60 items (0 encoded)" in second.stdout
    assert run("current", "--store", store.root).stdout.strip() == store.current() != version

    listed = run("list", "--store", store.root).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [bundle, version, store.current()]
    assert listed[1].endswith("rollback goes here")
    assert listed[2].endswith(f"bundle {bundle}  current")

    checked = run("check", "--store", store.root, "--version", version)
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.startswith(f"{version}: all files are as published")

    assert run("rollback", "--store", store.root).stdout == f"{version} is current now\n"
    pruned = run("prune", "--store", store.root, "--keep", "0")
    assert pruned.stdout.splitlines()[-1] == "1 removed"
    assert [entry.version for entry in store.list()] == [bundle, version]


def failure(result) -> str:
    """The one line of an error."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("prismrec-index: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def test_what_fails_is_told_in_one_line(store, toy_dataset, tmp_path):
    version = make_snapshot(store, toy_dataset)
    bundle = next(entry.version for entry in store.list() if entry.kind == "bundle")
    config = tmp_path / "config.toml"
    config.write_text("[search]\nnprobes = 3\n")
    rebuild = ("rebuild", "--store", store.root, "--data", toy_dataset, "--bundle")
    assert "no such version" in failure(run(*rebuild, "bundle-20200101t000000z-abcdef"))
    assert "not the name of a version" in failure(run(*rebuild, "../../etc"))
    assert "config.toml: search.nprobes: Extra inputs" in failure(run(*rebuild, bundle, "--config", config))
    assert "missing" in failure(run("rebuild", "--store", store.root, "--data", tmp_path / "no", "--bundle", bundle))
    assert "no earlier snapshot" in failure(run("rollback", "--store", store.root))
    assert "there is no current snapshot" in failure(run("current", "--store", tmp_path / "empty"))
    (store.path_of(version) / "candidates.npy").write_bytes(b"x")
    assert "candidates.npy: has 1 bytes" in failure(run("check", "--store", store.root))
    (store.root / "CURRENT").write_text("nonsense")
    assert "CURRENT: holds 'nonsense'" in failure(run("prune", "--store", store.root))


def test_a_recall_below_the_floor_fails_the_check(store, tmp_path):
    data = make_random_dataset(tmp_path / "data", num_items=1200, dims={"text": 8}, num_users=10)
    config = RebuildConfig(exact_max_items=0, factory="PQ1x4fs", search={"refine": 1}, min_recall_at_100=0)
    recall = store.open_snapshot(make_snapshot(store, data, config=config))[1].recall_at_100
    assert recall < 0.9
    assert run("check", "--store", store.root).exit_code == 0
    result = run("check", "--store", store.root, "--min-recall", "0.99")
    assert f"PQ1x4fs has recall@100 {recall:.4f}, the floor is 0.99" in failure(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rebuild"],
        ["nonsense"],
        ["rebuild", "--store", "x", "--bundle", "y"],
        ["prune", "--store", "x", "--keep", "-1"],
        ["check", "--store", "x", "--min-recall", "2"],
        ["prune", "--store", "x", "--keep", "many"],
    ],
)
def test_wrong_usage_is_exit_code_two(arguments):
    assert run(*arguments).exit_code == 2


def test_an_empty_store_is_said_to_be_empty(tmp_path):
    result = run("list", "--store", tmp_path / "none")
    assert result.exit_code == 0
    assert "no version is published here" in result.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_one(path):
    config = RebuildConfig.load(path)
    assert config.factory == tomllib.loads(path.read_text())["factory"]


def test_the_default_config_file_says_what_the_defaults_are():
    assert RebuildConfig.load(CONFIGS[0].parent / "default.toml") == RebuildConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"exact_max_items = -1", "exact_max_items: Input should be greater than or equal to 0"),
        (b"factory = ''", "factory: String should have at least 1 character"),
        (b"colour = 1", "colour: Extra inputs"),
        (b"min_recall_at_100 = 1.5", "min_recall_at_100"),
        (b"factory =", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
    ],
)
def test_a_wrong_config_names_file_and_field(tmp_path, content, message):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.toml: {message}"):
        RebuildConfig.load(path)
    with pytest.raises(ValueError, match="can not be read"):
        RebuildConfig.load(tmp_path / "none.toml")
