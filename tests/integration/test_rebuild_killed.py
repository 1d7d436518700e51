"""A rebuild that is killed at any moment leaves the store as it was, and the next one clears up after it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from index.bundle import Bundle
from index.config import RebuildConfig
from index.dataset import Dataset
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.bundles import make_bundle, make_random_dataset

NUM_ITEMS = 20_000
LAST_LINE = f"check values: {NUM_ITEMS:,} of {NUM_ITEMS:,}"


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[ArtifactStore, str, Path, Path]:
    folder = tmp_path_factory.mktemp("killed")
    data = make_random_dataset(folder / "data", num_items=NUM_ITEMS, num_users=50)
    store = ArtifactStore(folder / "store")
    bundle = make_bundle(store, data, dim=32)
    rebuild(store, bundle_version=bundle, dataset=Dataset.open(data))
    other = make_bundle(store, data, dim=32, seed=1)  # nothing of the first snapshot fits it, so all is encoded
    config = folder / "config.toml"
    config.write_text('exact_max_items = 0\nfactory = "IVF16,SQ8"\nbatch_rows = 256\n')
    return store, other, data, config


def start(case) -> subprocess.Popen:
    store, bundle, data, config = case
    command = [sys.executable, "-m", "index.cli", "rebuild", "--store", str(store.root), "--bundle", bundle]
    command += ["--data", str(data), "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen, lines: int, wait_s: float) -> None:
    """Kill -9 when so many lines of progress have come and then some time has passed, or it is done."""
    with process:
        for _ in range(lines):
            process.stderr.readline()
        try:
            process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            process.kill()


def kill_after_line(process: subprocess.Popen, line: str, wait_s: float) -> None:
    with process:
        while (said := process.stderr.readline()) and said.strip() != line:
            pass
        try:
            process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            process.kill()


def assert_serves(store: ArtifactStore, before: str) -> str:
    """CURRENT is what it was, or, when the rebuild was faster than the kill, the whole new version."""
    version = store.current()
    path, manifest = store.open_snapshot(version)
    Bundle.open(store.open_bundle(manifest.bundle_version)[0]).check_golden()
    assert IndexSnapshot.open(path, manifest).item_ids([NUM_ITEMS - 1]) == [f"item-{NUM_ITEMS - 1}"]
    assert version == before or version > before
    return version


def test_a_rebuild_killed_at_any_stage_changes_nothing(case):
    store = case[0]
    chance = random.Random(0)
    before = store.current()
    for lines in (0, 3, 6, 9):
        kill_after(start(case), lines, chance.uniform(0, 0.2))
        assert assert_serves(store, before) == before
        leftovers = list(store.root.rglob(".tmp-*"))
        assert len(leftovers) <= 1, "each rebuild removes what the one before it left"
    store.prune(keep=5)
    assert list(store.root.rglob(".tmp-*")) == []


def test_a_rebuild_killed_while_it_publishes_is_published_whole_or_not_at_all(case):
    store = case[0]
    before = store.current()
    for wait_s in (0.0, 0.03, 0.1):
        kill_after_line(start(case), LAST_LINE, wait_s)
        before = assert_serves(store, before)
        for entry in store.list():
            assert entry.problem is None
            (store.open_bundle if entry.kind == "bundle" else store.open_snapshot)(entry.version)


def test_of_two_rebuilds_at_once_one_killed_the_other_succeeds(case):
    store = case[0]
    before = store.current()
    doomed, lucky = start(case), start(case)
    kill_after(doomed, 4, 0)
    with lucky:
        lucky.stderr.read()
    assert lucky.returncode == 0
    assert store.current() != before
    after = assert_serves(store, before)
    store.set_current(after)
    store.prune(keep=1)
    assert list(store.root.rglob(".tmp-*")) == []


def test_after_all_that_a_rebuild_works_and_a_rollback_leads_back(case):
    store, bundle, data, config = case
    before = store.current()
    made = rebuild(store, bundle_version=bundle, dataset=Dataset.open(data), config=RebuildConfig.load(config))
    assert store.current() == made.version
    assert store.rollback() == before
    assert_serves(store, before)
