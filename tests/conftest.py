"""Fixtures that several parts need, and the guard against skipped tests."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from index.store import ArtifactStore
from tests import bundles, toy
from tests.processes import RedisServer
from tests.skips import SkipGuard, shared_root


def pytest_configure(config: pytest.Config) -> None:
    """Make every unexpected skip a failure."""
    config.pluginmanager.register(SkipGuard(), "skip-guard")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured data sets (`ml1m-mm`, ...). Its tests carry the mark `needs_shared`."""
    root = shared_root()
    if root is None:
        pytest.skip("the measured data sets are not here")
    return root / "data"


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set, read-only: 120 users, 60 items, three modalities, a known right answer."""
    return toy.make_dataset(tmp_path_factory.mktemp("toy") / "data")


@dataclass(frozen=True)
class Published:
    """A data set, and the store with a bundle and a snapshot that were made from it. To be read only."""

    dataset: Path
    store: Path
    bundle: str
    snapshot: str


@pytest.fixture(scope="session")
def toy_store(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The toy data under a bundle of a linear model that needs no training: made in a second."""
    store = ArtifactStore(tmp_path_factory.mktemp("toy-store"))
    bundle = bundles.make_bundle(store, toy_dataset)
    snapshot = bundles.make_snapshot(store, toy_dataset, bundle=bundle)
    return Published(toy_dataset, store.root, bundle, snapshot)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The toy data under a Demure that was trained on it, exported, published and rebuilt by the commands themselves.

    It takes longer than all else here, so it is made once for all workers: only for tests of what training and serving
    are together.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "versions.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            versions = train_and_rebuild(toy.make_dataset(folder / "data"), folder)
            (folder / "versions.json").write_text(json.dumps(versions))
        return Published(folder / "data", folder / "store", **json.loads((folder / "versions.json").read_text()))


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real redis-server for the tests of one file; who uses it empties it first."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "redis"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where events and changes are kept: an empty place of each kind."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/events.db"
    server: RedisServer = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    return server.url


def train_and_rebuild(dataset: Path, folder: Path) -> dict[str, str]:
    """Run both commands and return the versions that they made."""
    from index.cli import app as index_app
    from training.cli import app as train_app

    config, store = folder / "run.toml", folder / "store"
    config.write_text(RUN)
    line = told(train_app, "run", config, "--data", dataset, "--store", store)
    bundle = re.search(r"bundle-\S+", line)[0]
    line = told(index_app, "rebuild", "--store", store, "--bundle", bundle, "--data", dataset)
    return {"bundle": bundle, "snapshot": re.search(r"snapshot-[a-z0-9-]+", line)[0]}


def told(app: typer.Typer, *arguments: object) -> str:
    """Run a command in this process and return the last line that it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.strip().splitlines()[-1]


RUN = """
name = "toy"
[model]
kind = "demure"
dim = 16
history_length = 12
[optim]
batch_size = 128
epochs = 16
lr = 1e-2
[eval]
cutoffs = [10]
monitor = "recall@10"
every_epochs = 8
[export]
faithfulness_users = 4
"""
