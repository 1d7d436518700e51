"""The reloader: follows CURRENT, refuses a bad version once, and never takes the good one away."""

import asyncio
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from index.store import ArtefactError
from service.runtime.registry import ServableRegistry
from service.runtime.reloader import Reloader
from tests.fakes import FakeServable


class Fixture:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 0.0
        self.loads: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.swapped: list[str] = []
        self.refused: list[tuple[str | None, str]] = []
        self.made: dict[str, FakeServable] = {}
        self.before_load = lambda: None
        self.registry = ServableRegistry()
        self.reloader = Reloader(
            store=self,
            registry=self.registry,
            load=self.load,
            interval_s=0.001,
            on_swapped=lambda version, seconds: self.swapped.append(version),
            on_refused=lambda version, reason: self.refused.append((version, reason)),
            clock=lambda: self.now,
        )

    def current(self):
        try:
            text = (self.root / "CURRENT").read_text()
        except FileNotFoundError:
            return None
        if text == "garbage":
            raise ArtefactError(self.root / "CURRENT", "holds garbage")
        return text

    def point(self, version: str) -> None:
        new = self.root / f".{version}-{len(list(self.root.iterdir()))}"
        new.write_text(version)
        new.replace(self.root / "CURRENT")

    def load(self, version: str):
        self.loads.append(version)
        self.before_load()
        if version in self.errors:
            raise self.errors[version]
        self.made[version] = FakeServable(5, version=version)
        return self.made[version]

    @property
    def serves(self):
        return self.reloader.status().current


@pytest.fixture
def fixture(tmp_path, logs) -> Fixture:
    return Fixture(tmp_path)


async def test_without_a_current_version_nothing_is_loaded_and_nothing_is_wrong(fixture):
    await fixture.reloader.check()
    status = fixture.reloader.status()
    assert (status.current, status.refused, fixture.loads) == (None, None, [])


async def test_a_new_version_is_loaded_once_and_swapped_in(fixture):
    for version in ("snapshot-1", "snapshot-2"):
        fixture.point(version)
        await fixture.reloader.check()
        await fixture.reloader.check()
        assert fixture.serves == version
    assert fixture.loads == fixture.swapped == ["snapshot-1", "snapshot-2"]


async def test_the_version_before_comes_back_without_a_load(fixture):
    for version in ("snapshot-1", "snapshot-2", "snapshot-1"):
        fixture.point(version)
        await fixture.reloader.check()
    assert fixture.loads == ["snapshot-1", "snapshot-2"]
    assert fixture.serves == "snapshot-1"
    assert fixture.reloader.status().previous == "snapshot-2"


async def test_a_bad_version_is_refused_once_and_the_old_one_goes_on(fixture):
    fixture.point("snapshot-1")
    await fixture.reloader.check()
    fixture.errors["snapshot-2"] = ArtefactError("index.faiss", "has another SHA-256")
    fixture.point("snapshot-2")
    for _ in range(3):
        await fixture.reloader.check()
        fixture.now += 1_000
    assert fixture.loads == ["snapshot-1", "snapshot-2"]
    assert fixture.serves == "snapshot-1"
    refusal = fixture.reloader.status().refused
    assert (refusal.version, refusal.final) == ("snapshot-2", True)
    assert "SHA-256" in refusal.reason
    assert len(fixture.refused) == 1


async def test_a_refused_version_is_tried_again_when_current_is_written_anew(fixture):
    fixture.errors["snapshot-1"] = ArtefactError("x", "broken")
    fixture.point("snapshot-1")
    await fixture.reloader.check()
    del fixture.errors["snapshot-1"]
    await fixture.reloader.check()
    assert fixture.serves is None
    fixture.point("snapshot-1")
    await fixture.reloader.check()
    assert fixture.serves == "snapshot-1"
    assert fixture.reloader.status().refused is None


async def test_going_back_to_what_is_served_takes_the_refusal_away(fixture):
    fixture.point("snapshot-1")
    await fixture.reloader.check()
    fixture.errors["snapshot-2"] = ArtefactError("x", "broken")
    fixture.point("snapshot-2")
    await fixture.reloader.check()
    fixture.point("snapshot-1")
    await fixture.reloader.check()
    assert fixture.reloader.status().refused is None
    assert fixture.loads == ["snapshot-1", "snapshot-2"]


async def test_what_may_pass_by_itself_is_tried_again_ever_more_rarely(fixture):
    fixture.errors["snapshot-1"] = OSError(5, "Input/output error")
    fixture.point("snapshot-1")
    attempts = []
    for _ in range(200):
        before = len(fixture.loads)
        await fixture.reloader.check()
        if len(fixture.loads) > before:
            attempts.append(fixture.now)
        fixture.now += 1.0
    waits = [later - earlier for earlier, later in pairwise(attempts)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not fixture.reloader.status().refused.final
    del fixture.errors["snapshot-1"]
    fixture.now += 60
    await fixture.reloader.check()
    assert fixture.serves == "snapshot-1"


async def test_where_memory_is_short_the_previous_version_makes_room(fixture):
    for version in ("snapshot-1", "snapshot-2"):
        fixture.point(version)
        await fixture.reloader.check()
    fixture.errors["snapshot-3"] = MemoryError()
    fixture.point("snapshot-3")
    await fixture.reloader.check()
    assert fixture.made["snapshot-1"].closed
    assert (fixture.serves, fixture.reloader.status().previous) == ("snapshot-2", None)


async def test_a_current_file_that_can_not_be_read_is_refused_and_the_old_version_goes_on(fixture):
    fixture.point("snapshot-1")
    await fixture.reloader.check()
    fixture.point("garbage")
    await fixture.reloader.check()
    assert fixture.serves == "snapshot-1"
    assert fixture.reloader.status().refused.version is None
    (fixture.root / "CURRENT").unlink()
    await fixture.reloader.check()
    assert fixture.serves == "snapshot-1"


async def test_the_loop_turns_while_a_version_is_loaded(fixture):
    entered, go = threading.Event(), threading.Event()
    fixture.before_load = lambda: (entered.set(), go.wait(20))
    fixture.point("snapshot-1")
    checking = asyncio.create_task(fixture.reloader.check())
    await asyncio.to_thread(entered.wait)
    assert fixture.reloader.status().loading == "snapshot-1"
    go.set()
    await checking
    assert fixture.reloader.status().loading is None


async def test_a_version_that_was_loaded_for_nobody_is_closed(fixture):
    entered, go = threading.Event(), threading.Event()
    fixture.before_load = lambda: (entered.set(), go.wait(20))
    fixture.point("snapshot-1")
    checking = asyncio.create_task(fixture.reloader.check())
    await asyncio.to_thread(entered.wait)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    go.set()
    async with asyncio.timeout(20):
        while "snapshot-1" not in fixture.made or not fixture.made["snapshot-1"].closed:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
    assert fixture.registry.current is None


async def test_running_follows_current_until_it_is_cancelled(fixture):
    task = asyncio.create_task(fixture.reloader.run())
    for version in ("snapshot-1", "snapshot-2"):
        fixture.point(version)
        async with asyncio.timeout(20):
            while fixture.serves != version:  # noqa: ASYNC110 - the reloader has no event to wait for
                await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
