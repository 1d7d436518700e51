"""The batcher: no caller's fate is another's, nothing is lost, nothing waits for ever."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, Overloaded
from service.runtime.batcher import Batcher

LATER = Deadline.after(3_600.0)


class Gate:
    """A `run` that stands still until it is told to go on, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def run(self, values):
        self.batches.append(list(values))
        self.entered.release()
        assert self.go.acquire(timeout=20)
        if -1 in values:
            raise ValueError("a bad batch")
        return [ValueError(str(value)) if value < 0 else value * 10 for value in values]

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


@asynccontextmanager
async def serving(batcher: Batcher):
    task = asyncio.create_task(batcher.serve())
    try:
        yield task
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def start(batcher, *values, deadline=LATER) -> list[asyncio.Task]:
    return [asyncio.create_task(batcher(value, deadline=deadline)) for value in values]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batcher(gate) -> Batcher:
    return Batcher(gate.run, name="test", max_batch=3, max_waiting=6)


async def test_what_waits_is_run_together_and_an_idle_worker_waits_for_nothing(gate, batcher):
    async with serving(batcher):
        first = start(batcher, 1)
        await gate.wait_entered()
        rest = start(batcher, 2, 3, 4, 5)
        await asyncio.sleep(0)
        gate.go.release(3)
        assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40, 50]
    assert gate.batches == [[1], [2, 3, 4], [5]]


async def test_a_cancelled_caller_takes_only_itself_away(gate, batcher):
    async with serving(batcher):
        busy = start(batcher, 1)
        await gate.wait_entered()
        one, two, three = start(batcher, 2, 3, 4)
        await asyncio.sleep(0)
        two.cancel()
        busy[0].cancel()
        gate.go.release(3)
        assert await asyncio.gather(one, three) == [20, 40]
    assert gate.batches == [[1], [2, 4]]
    assert batcher.num_waiting == 0


async def test_a_bad_batch_fails_only_its_own_callers_and_the_next_one_works(gate, batcher):
    gate.go.release(10)
    async with serving(batcher):
        with pytest.raises(ValueError, match="a bad batch"):
            await batcher(-1, deadline=LATER)
        assert await batcher(2, deadline=LATER) == 20


async def test_a_result_that_is_an_exception_is_for_its_caller_alone(gate, batcher):
    async with serving(batcher):
        busy = start(batcher, 1)
        await gate.wait_entered()
        good, bad = start(batcher, 2, -5)
        await asyncio.sleep(0)
        gate.go.release(3)
        assert await good == 20
        with pytest.raises(ValueError, match="-5"):
            await bad
        await asyncio.gather(*busy)


async def test_a_full_queue_refuses_at_once(gate, batcher):
    async with serving(batcher):
        tasks = start(batcher, 1, 2, 3, 4, 5, 6)
        await gate.wait_entered()
        with pytest.raises(Overloaded):
            await batcher(7, deadline=LATER)
        gate.go.release(10)
        assert await asyncio.gather(*tasks) == [10, 20, 30, 40, 50, 60]
        assert await batcher(7, deadline=LATER) == 70


async def test_a_caller_whose_deadline_passes_in_the_queue_is_not_run(gate, batcher):
    now = [0.0]
    async with serving(batcher):
        busy = start(batcher, 1)
        await gate.wait_entered()
        (late,) = start(batcher, 2, deadline=Deadline.after(50.0, clock=lambda: now[0]))
        await asyncio.sleep(0)
        now[0] = 51.0
        gate.go.release(3)
        with pytest.raises(DeadlineExceeded):
            await late
        assert await busy[0] == 10
    assert gate.batches == [[1]]


async def test_a_caller_whose_deadline_passes_at_work_is_told_in_time(gate, batcher):
    async with serving(batcher):
        with pytest.raises(DeadlineExceeded):
            await batcher(1, deadline=Deadline.after(0.01))
        gate.go.release(3)
        assert await batcher(2, deadline=LATER) == 20


async def test_callers_that_come_before_serving_starts_are_answered(gate, batcher):
    gate.go.release(3)
    waiting = start(batcher, 1)
    await asyncio.sleep(0)
    async with serving(batcher):
        assert await waiting[0] == 10


async def test_when_serving_stops_what_is_queued_is_finished_and_new_callers_are_refused(gate, batcher):
    gate.go.release(10)
    async with serving(batcher):
        tasks = start(batcher, 1, 2, 3, 4)
        await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
    with pytest.raises(Overloaded):
        await batcher(5, deadline=LATER)


async def test_a_worker_that_dies_ends_the_serving_task_and_leaves_nobody_waiting():
    def run(values):
        raise SystemExit

    batcher: Batcher[int, int] = Batcher(run, name="test", max_batch=1, max_waiting=4)
    tasks = start(batcher, 1, 2)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="SystemExit"):
        await batcher.serve()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, Overloaded)


async def test_a_run_that_forgets_a_result_fails_its_callers():
    batcher: Batcher[int, int] = Batcher(lambda values: [], name="test", max_batch=1, max_waiting=4)
    async with serving(batcher):
        with pytest.raises(ValueError, match="zip"):
            await batcher(1, deadline=LATER)


@pytest.mark.parametrize("field", ["max_batch", "max_waiting", "num_threads"])
def test_a_bound_below_one_is_refused_by_name(field):
    bounds = {"max_batch": 1, "max_waiting": 1, "num_threads": 1} | {field: 0}
    with pytest.raises(ValueError, match=field):
        Batcher(list, name="test", **bounds)
