"""New versions under load: nothing is dropped, nothing is mixed, nothing leaks; bad versions never come to serve."""

import asyncio
import gc
import os
import shutil
import weakref
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from index.artefacts import MANIFEST, sha256_of
from index.store import ArtefactError, ArtifactStore
from service.recommend.admission import Admission
from service.recommend.deadline import Deadline
from service.recommend.recommender import Recommender
from service.recommend.types import HistoryItem, ItemId, Query
from service.runtime.executor import Executor
from service.runtime.live import LiveCatalogue
from service.runtime.registry import ServableRegistry
from service.runtime.reloader import Reloader
from service.runtime.servable import LoadedServable, load_servable
from tests import toy
from tests.bundles import make_bundle, make_snapshot
from tests.fakes import FakeChanges, FakeStore


class Versions:
    """A store with two good snapshots of different models, and the means to make bad ones."""

    def __init__(self, root: Path) -> None:
        self.data = toy.make_dataset(root / "data")
        self.store = ArtifactStore(root / "store")
        self.one = make_snapshot(self.store, self.data, seed=0, dim=8, history_length=5)
        self.two = make_snapshot(self.store, self.data, seed=1, dim=8, history_length=5)

    def folder(self, version: str) -> Path:
        return self.store.root / "versions" / version

    def copy_of_one(self) -> str:
        """Return a copy of snapshot one with a bundle of its own, both whole: to be spoilt by the caller."""
        return self.republish(lambda path: None)

    def republish(self, change_bundle, **bundle_update) -> str:
        _, snapshot = self.store.open_snapshot(self.one)
        _, bundle = self.store.open_bundle(snapshot.bundle_version)
        with self.store.stage("bundle") as stage:
            shutil.copytree(self.folder(bundle.version), stage.path, dirs_exist_ok=True)
            change_bundle(stage.path)
            bundle_version = stage.publish(bundle.model_copy(update=bundle_update))
        return self.snapshot_with(bundle_version)

    def snapshot_with(self, bundle_version: str, *, change=lambda path: None, **update) -> str:
        _, snapshot = self.store.open_snapshot(self.one)
        digest = sha256_of(self.folder(bundle_version) / MANIFEST)
        with self.store.stage("snapshot") as stage:
            shutil.copytree(self.folder(self.one), stage.path, dirs_exist_ok=True)
            change(stage.path)
            named = {"bundle_version": bundle_version, "bundle_sha256": digest}
            return stage.publish(snapshot.model_copy(update={**named, **update}))

    def point(self, version: str) -> None:
        """Write CURRENT without the checks that `set_current` makes."""
        new = self.store.root / ".tmp-current"
        new.write_text(version + "\n")
        new.replace(self.store.root / "CURRENT")


class Service:
    def __init__(self, store: ArtifactStore) -> None:
        self.registry = ServableRegistry()
        self.executor = Executor(max_waiting=1_000)
        self.live = LiveCatalogue(FakeChanges())
        self.loaded: list[weakref.ref] = []
        self.reloader = Reloader(store=store, registry=self.registry, load=self._load, interval_s=1.0)
        self.recommender = Recommender(
            servables=self.registry,
            history=FakeStore(),
            compute=self.executor,
            admission=Admission(1_000),
            store_timeout_s=1.0,
        )
        self._store = store

    def _load(self, version: str) -> LoadedServable:
        servable = load_servable(self._store, version)
        self.live.prepare(servable)
        self.loaded.append(weakref.ref(servable))
        return servable

    async def recommend(self, *, explain="none"):
        query = Query(history=(HistoryItem(ItemId(self.item_id)),), k=10, explain=explain)
        return await self.recommender.recommend(query, deadline=Deadline.after(60.0))

    @property
    def item_id(self) -> str:
        return self.registry.current.item_ids(np.array([3]))[0]


@asynccontextmanager
async def running(store: ArtifactStore):
    service = Service(store)
    serving = asyncio.create_task(service.executor.serve())
    with capture_logs():
        yield service
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    service.registry.close()


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> Versions:
    return Versions(tmp_path_factory.mktemp("swap"))


@pytest.fixture
async def service(versions):
    async with running(versions.store) as made:
        versions.point(versions.one)
        await made.reloader.check()
        assert made.reloader.status().current == versions.one
        yield made


async def test_swaps_under_load_drop_and_mix_nothing(versions, service):
    expected = {}
    for version in (versions.one, versions.two):
        versions.point(version)
        await service.reloader.check()
        expected[version] = (await service.recommend()).items
    assert expected[versions.one] != expected[versions.two]
    served, stop = set(), False

    async def caller(level: str) -> None:
        while not stop:
            slate = await service.recommend(explain=level)
            version = slate.version.index_version
            served.add(version)
            right = expected[version]
            assert [item.item_id for item in slate.items] == [item.item_id for item in right]
            assert np.allclose([item.score for item in slate.items], [item.score for item in right], atol=1e-5)
            assert slate.degraded == ()
            if level != "none":
                scores = [line.score for line in slate.explanation.items]
                assert np.allclose(scores, [item.score for item in right], atol=1e-4)

    async with asyncio.TaskGroup() as group:
        for level in ("none", "none", "none", "summary"):
            group.create_task(caller(level))
        for round_number in range(8):
            service.registry.forget_previous()  # so that each swap loads and closes for real
            versions.point((versions.one, versions.two)[round_number % 2])
            await service.reloader.check()
        stop = True
    assert served == {versions.one, versions.two}


def _mapped(store: ArtifactStore) -> int:
    return Path("/proc/self/maps").read_text().count(f"{store.root}/versions")


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_twenty_swaps_leave_no_file_no_mapping_and_no_object_behind(versions, service):
    async def swap(version: str) -> None:
        service.registry.forget_previous()
        versions.point(version)
        await service.reloader.check()
        await service.recommend()

    await swap(versions.two)
    await swap(versions.one)
    gc.collect()
    files, mapped = _open_files(), _mapped(versions.store)
    for _ in range(10):
        await swap(versions.two)
        await swap(versions.one)
    gc.collect()
    assert (_open_files(), _mapped(versions.store)) == (files, mapped)
    assert len(service.loaded) == 23
    assert sum(reference() is not None for reference in service.loaded) == 2


async def test_a_loaded_version_can_not_be_pruned_and_a_closed_one_can(versions, service):
    def locked(version: str) -> bool:
        descriptor = os.open(versions.folder(version), os.O_RDONLY)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    assert locked(versions.one)
    versions.point(versions.two)
    await service.reloader.check()
    service.registry.forget_previous()
    assert not locked(versions.one)
    assert locked(versions.two)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def _of_another_schema(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 999'))


SPOILS = {
    "a cut table": lambda v, s, b: _cut(v.folder(s) / "candidates.npy"),
    "a flipped bit in a table": lambda v, s, b: _flip(v.folder(s) / "ids.arrow"),
    "a missing file": lambda v, s, b: (v.folder(s) / "items.arrow").unlink(),
    "a file too many": lambda v, s, b: (v.folder(s) / "more.bin").write_bytes(b"x"),
    "a manifest that is no JSON": lambda v, s, b: (v.folder(s) / MANIFEST).write_text("{"),
    "an empty manifest": lambda v, s, b: (v.folder(s) / MANIFEST).write_text(""),
    "a flipped bit in a graph": lambda v, s, b: _flip(v.folder(b) / "user_encoder.onnx"),
    "a cut golden file": lambda v, s, b: _cut(v.folder(b) / "golden.npz"),
    "another manifest of the bundle": lambda v, s, b: (v.folder(b) / MANIFEST).write_text(
        (v.folder(b) / MANIFEST).read_text() + "\n"
    ),
    "a manifest of another schema": lambda v, s, b: _of_another_schema(v.folder(s) / MANIFEST),
    "no bundle": lambda v, s, b: shutil.rmtree(v.folder(b)),
    "no folder": lambda v, s, b: shutil.rmtree(v.folder(s)),
}


async def _is_refused(service: Service, versions: Versions, bad: str) -> str:
    before = (await service.recommend()).items
    versions.point(bad)
    for _ in range(2):
        await service.reloader.check()
    status = service.reloader.status()
    assert status.current == versions.one
    assert status.refused.version == bad
    assert status.refused.final
    assert (await service.recommend()).items == before
    versions.point(versions.two)
    await service.reloader.check()
    assert service.reloader.status().current == versions.two
    assert service.reloader.status().refused is None
    return status.refused.reason


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
async def test_a_spoilt_version_is_refused_and_the_old_one_goes_on(versions, service, spoil):
    bad = versions.copy_of_one()
    _, manifest = versions.store.open_snapshot(bad)
    spoil(versions, bad, manifest.bundle_version)
    assert await _is_refused(service, versions, bad)


def _other_golden(path: Path) -> None:
    with np.load(path / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["user_encoder/out/queries"] = arrays["user_encoder/out/queries"] + np.float32(0.01)
    np.savez(path / "golden.npz", **arrays)


async def test_a_bundle_that_does_not_give_its_golden_answers_is_refused(versions, service):
    reason = await _is_refused(service, versions, versions.republish(_other_golden))
    assert "golden" in reason


def _with_a_row_too_many(path: Path) -> None:
    table = np.load(path / "candidates.npy")
    np.save(path / "candidates.npy", np.concatenate([table, table[:1]]))


def _with_a_nan(path: Path) -> None:
    table = np.load(path / "candidates.npy")
    table[len(table) // 2, 0] = np.nan
    np.save(path / "candidates.npy", table)


@pytest.mark.parametrize(
    ("change", "says"), [(_with_a_row_too_many, r"holds float32 61x8, expected"), (_with_a_nan, "candidates: NaN")]
)
async def test_a_table_that_is_wrong_under_a_right_hash_is_refused(versions, service, change, says):
    _, snapshot = versions.store.open_snapshot(versions.one)
    reason = await _is_refused(service, versions, versions.snapshot_with(snapshot.bundle_version, change=change))
    assert says in reason


async def test_a_snapshot_with_a_bundle_of_other_width_is_refused(versions, service):
    wider = make_bundle(versions.store, versions.data, dim=12, history_length=5)
    reason = await _is_refused(service, versions, versions.snapshot_with(wider))
    assert "dim" in reason


def test_loading_what_is_not_there_says_so(versions):
    with pytest.raises(ArtefactError, match="no such version"):
        load_servable(versions.store, "snapshot-20260101t000000z-abcdef")
