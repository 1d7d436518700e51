"""The artefact store: all or nothing, verified, and never pruned away under somebody's feet."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api_schemas.manifest import SearchSettings, SnapshotManifest
from index.artefacts import MANIFEST, sha256_of
from index.dataset import Dataset
from index.store import UNPUBLISHED, ArtefactError, ArtifactStore
from tests.bundles import make_bundle

VERSION = "snapshot-20260101t000000z-abcdef"


@pytest.fixture(scope="module")
def published(tmp_path_factory, toy_dataset) -> Path:
    """A store with one bundle, to be copied."""
    store = ArtifactStore(tmp_path_factory.mktemp("published"))
    make_bundle(store, Dataset.open(toy_dataset))
    return store.root


@pytest.fixture
def store(tmp_path, published) -> ArtifactStore:
    subprocess.run(["cp", "-r", str(published), str(tmp_path / "store")], check=True)
    return ArtifactStore(tmp_path / "store")


def bundle_of(store: ArtifactStore) -> str:
    return next(entry.version for entry in store.list() if entry.kind == "bundle")


def manifest_for(store: ArtifactStore, bundle: str | None = None) -> SnapshotManifest:
    version = bundle or bundle_of(store)
    path, made = store.open_bundle(version)
    return SnapshotManifest(
        version=UNPUBLISHED,
        created_at=datetime.now(UTC),
        bundle_version=version,
        bundle_sha256=sha256_of(path / MANIFEST),
        dataset_name="toy",
        data_fingerprint="0",
        num_items=1,
        dim=made.dim,
        history_dim=made.history_dim,
        state_dim=made.state_dim,
        history_is_candidate=True,
        modalities=made.modalities,
        factory="Flat",
        exact=True,
        search=SearchSettings(),
        recall_at_100=1,
        num_encoded=1,
        files=[],
    )


def publish(store: ArtifactStore, *, content: bytes = b"vectors", bundle: str | None = None) -> str:
    """Publish a snapshot of two small files."""
    with store.stage("snapshot") as stage:
        (stage.path / "states").mkdir()
        (stage.path / "states" / "text.npy").write_bytes(content)
        (stage.path / "candidates.npy").write_bytes(content * 3)
        return stage.publish(manifest_for(store, bundle))


def leftovers(store: ArtifactStore) -> list[str]:
    return [path.name for path in store.root.rglob(".tmp-*")]


def test_a_published_version_opens_with_time_and_files_set(store):
    before = datetime.now(UTC)
    version = publish(store)
    path, manifest = store.open_snapshot(version)
    assert manifest.version == version == path.name
    assert [(entry.path, entry.size_bytes) for entry in manifest.files] == [
        ("candidates.npy", 21),
        ("states/text.npy", 7),
    ]
    assert before <= manifest.created_at <= datetime.now(UTC)
    assert leftovers(store) == []


def test_what_is_not_published_leaves_nothing(store):
    versions = store.list()
    with store.stage("snapshot") as stage:
        (stage.path / "candidates.npy").write_bytes(b"x")
    with pytest.raises(ZeroDivisionError), store.stage("bundle") as stage:
        (stage.path / "half").write_bytes(bytes([1 // 0]))
    assert store.list() == versions
    assert leftovers(store) == []


def test_a_stage_publishes_once_and_only_its_own_kind(store):
    with (
        store.stage("bundle") as stage,
        pytest.raises(ArtefactError, match="a snapshot manifest was given for a bundle"),
    ):
        stage.publish(manifest_for(store))
    with store.stage("snapshot") as stage:
        stage.publish(manifest_for(store))
        with pytest.raises(ArtefactError, match="already published"):
            stage.publish(manifest_for(store))


@pytest.mark.parametrize("name", ["../x", "A", "a/b", "-a", "a" * 65, "a\n", "ä"])
def test_a_name_that_is_no_file_name_is_refused(store, name):
    with pytest.raises(ValueError, match="name"), store.stage("bundle", name=name):
        pass


@pytest.mark.parametrize(
    "version", ["../../etc", "/etc/passwd", "", "snapshot-x", VERSION + "\n", VERSION + "/..", "."]
)
def test_a_version_that_is_no_version_never_becomes_a_path(store, version):
    for use in (store.open_bundle, store.open_snapshot, store.set_current, store.path_of):
        with pytest.raises(ArtefactError, match="not the name of a version"):
            use(version)
    with pytest.raises(ArtefactError, match="not the name"), store.pin(version):
        pass


def test_a_version_that_is_not_there_is_named(store):
    with pytest.raises(ArtefactError, match=f"{VERSION}: no such version"):
        store.open_snapshot(VERSION)
    with pytest.raises(ArtefactError, match=f"{VERSION}: no such version"), store.pin(VERSION):
        pass


def change(path: Path, **fields) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **fields}))


DAMAGES = {
    "missing file": (lambda path: (path / "candidates.npy").unlink(), "candidates.npy: is missing"),
    "cut file": (
        lambda path: os.truncate(path / "candidates.npy", 5),
        "candidates.npy: has 5 bytes, the manifest says 21",
    ),
    "one bit": (
        lambda path: (path / "candidates.npy").write_bytes(b"vectorsvectorsvectorS"),
        "candidates.npy: has another SHA-256",
    ),
    "extra file": (lambda path: (path / "states" / "more.npy").write_bytes(b""), "more.npy: is not in the manifest"),
    "link": (lambda path: (path / "link").symlink_to("/etc/hostname"), "link: is not a plain file"),
    "link for file": (
        lambda path: ((path / "candidates.npy").unlink(), (path / "candidates.npy").symlink_to("/etc/hostname")),
        "candidates.npy: is not a plain file",
    ),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "manifest.json: is missing"),
    "cut manifest": (lambda path: os.truncate(path / MANIFEST, 100), "manifest.json: document: Invalid JSON"),
    "newer schema": (lambda path: change(path, schema_version=2), "manifest.json: schema_version: Input should be 1"),
    "unknown field": (lambda path: change(path, colour="red"), "manifest.json: colour: Extra inputs"),
    "other kind": (lambda path: change(path, kind="bundle"), "manifest.json: kind: Input should be 'snapshot'"),
    "other version": (lambda path: change(path, version=VERSION), f"manifest.json: names version {VERSION}"),
    "path that leaves": (
        lambda path: change(path, files=[{"path": "../../CURRENT", "size_bytes": 1, "sha256": "0" * 64}]),
        "manifest.json: files.0.path: String should match pattern",
    ),
    "file twice": (
        lambda path: change(path, files=2 * json.loads((path / MANIFEST).read_text())["files"]),
        "manifest.json: names a file twice",
    ),
    "other bundle": (lambda path: change(path, bundle_sha256="0" * 64), "manifest.json: was made with another bundle"),
    "bundle away": (
        lambda path: change(path, bundle_version="bundle-20260101t000000z-abcdef"),
        "needs bundle bundle-20260101t000000z-abcdef, which is not in the store",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused_with_file_and_reason_and_the_old_one_stays_current(store, damage):
    good, bad = publish(store), publish(store)
    store.set_current(good)
    harm, message = DAMAGES[damage]
    harm(store.path_of(bad))
    with pytest.raises(ArtefactError, match=message) as caught:
        store.open_snapshot(bad)
    assert str(caught.value).startswith(str(store.path_of(bad)))
    with pytest.raises(ArtefactError, match=message):
        store.set_current(bad)
    assert store.current() == good


def test_a_snapshot_whose_bundle_is_damaged_does_not_become_current(store):
    version = publish(store)
    graph = store.path_of(bundle_of(store)) / "user_encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtefactError, match="has another SHA-256"):
        store.set_current(version)
    assert store.current() is None


def test_a_snapshot_can_not_be_published_without_its_bundle(store):
    manifest = manifest_for(store)
    subprocess.run(["rm", "-r", str(store.path_of(manifest.bundle_version))], check=True)
    with store.stage("snapshot") as stage, pytest.raises(ArtefactError, match="which is not in the store"):
        stage.publish(manifest)
    assert store.list() == ()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"../x\n", b"bundle-20260101t000000z-abcdef\n", b"\xff\xfe", b"a" * 500]
)
def test_a_damaged_current_is_told_and_can_be_set_anew(store, content):
    version = publish(store)
    (store.root / "CURRENT").write_bytes(content)
    with pytest.raises(ArtefactError, match="CURRENT: holds"):
        store.current()
    with pytest.raises(ArtefactError, match="CURRENT"):
        store.prune(keep=1)
    assert all(not entry.is_current for entry in store.list())
    store.set_current(version)
    assert store.current() == version


def test_an_empty_store_has_nothing_and_looking_makes_no_folder(tmp_path):
    store = ArtifactStore(tmp_path / "none")
    assert store.current() is None
    assert store.list() == ()
    assert store.rollback_target() is None
    assert not store.root.exists()
    with pytest.raises(ArtefactError, match="no earlier snapshot"):
        store.rollback()


def test_each_rollback_goes_one_further_back(store):
    first, second, third = (publish(store) for _ in range(3))
    for version in (first, second, third):
        store.set_current(version)
    assert store.rollback() == second == store.current()
    assert store.rollback() == first == store.current()
    with pytest.raises(ArtefactError, match="no earlier snapshot"):
        store.rollback()
    assert store.current() == first


def test_after_a_rollback_the_bad_one_is_not_gone_back_to(store):
    good, bad, new = (publish(store) for _ in range(3))
    store.set_current(good)
    store.set_current(bad)
    store.rollback()
    store.set_current(new)
    assert store.rollback() == good


def test_setting_the_same_version_again_changes_no_way_back(store):
    first, second = publish(store), publish(store)
    store.set_current(first)
    store.set_current(second)
    store.set_current(second)
    assert store.rollback() == first


def test_a_rollback_passes_over_what_is_gone(store):
    first, second, third = (publish(store) for _ in range(3))
    for version in (first, second, third):
        store.set_current(version)
    subprocess.run(["rm", "-r", str(store.path_of(second))], check=True)
    assert store.rollback() == first


def test_a_change_that_a_crash_kept_from_current_does_not_count(store):
    first, second, third = (publish(store) for _ in range(3))
    store.set_current(first)
    before = (store.root / "CURRENT").read_bytes()
    store.set_current(second)
    (store.root / "CURRENT").write_bytes(before)  # as if killed after the log and before the rename
    assert store.rollback_target() is None
    store.set_current(third)
    assert store.rollback() == first


def test_a_log_line_that_a_crash_cut_spoils_no_other(store):
    first, second = publish(store), publish(store)
    store.set_current(first)
    with (store.root / "CURRENT.log").open("ab") as log:
        log.write(b'{"at": "2026-')
    store.set_current(second)
    assert store.rollback() == first


def test_list_is_in_the_order_of_publishing_and_shows_what_is_broken(store):
    versions = [publish(store) for _ in range(5)]
    (store.path_of(versions[2]) / MANIFEST).write_text("{")
    (store.root / "versions" / "notes.txt").write_text("not ours")
    store.set_current(versions[3])
    listed = [entry for entry in store.list() if entry.kind == "snapshot"]
    assert [entry.version for entry in listed if not entry.problem] == [v for v in versions if v != versions[2]]
    assert [entry.version for entry in listed if entry.is_current] == [versions[3]]
    assert [entry.version for entry in listed if entry.problem] == [versions[2]]
    assert listed[-1].size_bytes == 28


def test_prune_keeps_the_current_one_the_way_back_and_their_bundles(store, toy_dataset):
    old_bundle = bundle_of(store)
    current, target = publish(store), publish(store)
    store.set_current(target)
    store.set_current(current)
    unused = make_bundle(store, toy_dataset)
    newest_bundle = make_bundle(store, toy_dataset)
    others = [publish(store, bundle=newest_bundle) for _ in range(3)]
    removed = store.prune(keep=1)
    assert set(removed) == {unused, *others[:2]}
    assert {entry.version for entry in store.list()} == {old_bundle, newest_bundle, current, target, others[2]}
    assert set(store.prune(keep=0)) == {newest_bundle, others[2]}
    assert store.rollback() == target
    store.open_snapshot(target)


def test_prune_removes_the_broken_and_refuses_a_negative_number(store):
    version = publish(store)
    (store.path_of(version) / MANIFEST).write_text("{")
    assert store.prune(keep=5) == (version,)
    with pytest.raises(ValueError, match="keep"):
        store.prune(keep=-1)


def test_prune_leaves_alone_what_is_pinned_and_its_bundle(store):
    version = publish(store)
    with store.pin(version) as path:
        assert store.prune(keep=0) == ()
        assert path.is_dir()
    bundle = bundle_of(store)
    assert set(store.prune(keep=0)) == {version, bundle}


def test_a_version_just_published_is_safe_until_its_stage_ends(store):
    with store.stage("snapshot") as stage:
        version = stage.publish(manifest_for(store))
        assert version not in store.prune(keep=0)
        store.set_current(version)
    assert version not in store.prune(keep=0)


WRITER = """
import sys
from pathlib import Path
from index.store import ArtifactStore
with ArtifactStore(Path(sys.argv[1])).stage("snapshot") as stage:
    (stage.path / "half").write_bytes(b"x" * 1000)
    print(stage.path.name, flush=True)
    sys.stdin.read()
"""


def test_prune_leaves_a_living_writer_alone_and_clears_up_after_a_killed_one(store):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        name = writer.stdout.readline().strip()
        store.prune(keep=3)
        assert leftovers(store) == [name]
        writer.kill()
        writer.wait()
        assert leftovers(store) == [name]
        (store.root / ".tmp-CURRENT-1-abcd").write_text("of a killed set_current")
        store.prune(keep=3)
    assert leftovers(store) == []


def test_the_next_writer_clears_up_after_a_killed_one(store):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        writer.stdout.readline()
        writer.kill()
    publish(store)
    assert leftovers(store) == []


PUBLISHER = """
import sys
from pathlib import Path
from index.store import ArtifactStore
store = ArtifactStore(Path(sys.argv[1]))
manifest = store.open_snapshot(sys.argv[2])[1]
print(flush=True)
sys.stdin.readline()
for _ in range(10):
    with store.stage("snapshot") as stage:
        (stage.path / "candidates.npy").write_bytes(b"x" * 10_000)
        store.set_current(stage.publish(manifest))
    store.prune(keep=2)
"""


def test_processes_that_publish_and_prune_at_once_do_not_hurt_each_other(store):
    first = publish(store)
    store.set_current(first)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(store.root), first], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    try:
        while any(process.poll() is None for process in processes):  # a reader in between sees whole versions only
            version = store.current()
            assert version is not None
            try:
                store.open_snapshot(version)
            except ArtefactError:
                assert store.current() != version, "what is current can be opened"
    finally:
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert leftovers(store) == []
    store.open_snapshot(store.current())
    store.open_snapshot(store.rollback())
