"""Changes of items are written down before a build's process starts, in a thread that ends when nobody wants them."""

import asyncio
import errno
import threading

import pytest

from api_schemas.jobs import IndexRequest
from index.jobs import PROCESS_ENDED, JobStore
from service.recommend.errors import StoreUnavailable
from service.runtime.builds import Builder

REQUEST = IndexRequest(model="bundle-20260101t000000z-000000", data="shop")


@pytest.fixture
def jobs(tmp_path) -> JobStore:
    return JobStore(tmp_path)


def builder(jobs, tmp_path, export) -> Builder:
    return Builder(
        jobs, store=tmp_path, data=tmp_path, config=None, interval_s=0.01, export=export, trim=lambda: (0, 0)
    )


async def ended(jobs, job):
    for _ in range(2_000):
        state = await asyncio.to_thread(jobs.get, job.id)
        if state.is_over:
            return state
        await asyncio.sleep(0.005)
    raise AssertionError(state)


def left(tmp_path):
    return [path.suffix for path in (tmp_path / "jobs").glob("job-*")]


class Endless:
    """An export that goes on until it is told to end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.has_ended = threading.Event()

    def __call__(self, file, check) -> None:
        file.with_name(f"{file.name}.part").write_text("half")
        self.begun.set()
        try:
            while True:
                check()
        finally:
            self.has_ended.set()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/secret"), "be written: No space left on device"),
        (StoreUnavailable("redis://user:secret@host"), "be read; the log has more"),
        (ValueError("/secret: no database"), "be read; the log has more"),
    ],
)
async def test_a_build_whose_changes_can_not_be_had_fails_and_leaves_nothing(jobs, tmp_path, error, said):
    def export(file, _check):
        file.with_name(f"{file.name}.part").write_text("half")
        raise error

    serving = asyncio.create_task(builder(jobs, tmp_path, export).serve())
    for _ in range(2):  # the second one: the loop goes on
        job = await ended(jobs, await asyncio.to_thread(jobs.submit, REQUEST))
        assert (job.state, job.error) == ("failed", f"the changes of items can not {said}")
    serving.cancel()
    await asyncio.wait([serving])
    assert left(tmp_path) == [".json"] * 2


async def test_a_build_can_be_cancelled_while_the_changes_are_written(jobs, tmp_path):
    export = Endless()
    serving = asyncio.create_task(builder(jobs, tmp_path, export).serve())
    job = await asyncio.to_thread(jobs.submit, REQUEST)
    await asyncio.to_thread(export.begun.wait)
    await asyncio.to_thread(jobs.cancel, job.id)
    assert (await ended(jobs, job)).state == "cancelled"
    serving.cancel()
    await asyncio.wait([serving])
    assert sorted(left(tmp_path)) == [".cancel", ".json"]


async def test_a_service_that_ends_meanwhile_ends_the_build(jobs, tmp_path):
    export = Endless()
    serving = asyncio.create_task(builder(jobs, tmp_path, export).serve())
    job = await asyncio.to_thread(jobs.submit, REQUEST)
    await asyncio.to_thread(export.begun.wait)
    serving.cancel()
    await asyncio.wait([serving])
    assert export.has_ended.is_set()
    state = jobs.get(job.id)
    assert (state.state, state.error) == ("failed", PROCESS_ENDED)
    assert left(tmp_path) == [".json"]
