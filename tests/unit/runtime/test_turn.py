"""The lane on the event loop: as the batcher, no caller's fate is another's, and the loop turns between batches."""

import asyncio

import pytest

from service.recommend.errors import Overloaded
from service.runtime.turn import TurnBatcher


class Run:
    """Multiplies by ten and remembers its batches; fails whole for -1, for other negative values one by one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, values):
        self.batches.append(list(values))
        if -1 in values:
            raise ValueError("a bad batch")
        return [KeyError(value) if value < 0 else value * 10 for value in values]


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def lane(run) -> TurnBatcher:
    return TurnBatcher(run, name="test", max_batch=3, max_waiting=6)


def start(lane, *values) -> list[asyncio.Task]:
    return [asyncio.create_task(lane(value)) for value in values]


async def test_callers_of_one_turn_share_batches_and_each_gets_its_own_result(run, lane):
    assert await asyncio.gather(*start(lane, 1, 2, 3, 4, 5)) == [10, 20, 30, 40, 50]
    assert run.batches == [[1, 2, 3], [4, 5]]


async def test_a_lone_caller_waits_for_nobody(run, lane):
    assert await lane(1) == 10
    assert await lane(2) == 20
    assert run.batches == [[1], [2]]


async def test_the_loop_turns_between_batches(run, lane):
    seen: list[int] = []
    callers = start(lane, 1, 2, 3, 4)
    await asyncio.sleep(0)  # all have queued up, and the first batch is due
    asyncio.get_running_loop().call_soon(lambda: seen.append(len(run.batches)))
    await asyncio.gather(*callers)
    assert seen == [1]


async def test_a_cancelled_caller_takes_only_itself_away(run, lane):
    one, two, three = start(lane, 1, 2, 3)
    await asyncio.sleep(0)
    two.cancel()
    assert await asyncio.gather(one, three) == [10, 30]
    assert two.cancelled()
    gone = start(lane, 4)[0]
    await asyncio.sleep(0)
    gone.cancel()
    assert await lane(5) == 50
    assert not any(4 in batch for batch in run.batches)


async def test_a_bad_batch_fails_only_its_own_callers_and_the_next_one_works(run, lane):
    results = await asyncio.gather(*start(lane, -1, 2, 3, 4), return_exceptions=True)
    assert [str(error) for error in results[:3]] == ["a bad batch"] * 3
    assert results[3] == 40


async def test_a_bad_value_fails_alone(run, lane):
    one, bad, three = await asyncio.gather(*start(lane, 1, -7, 3), return_exceptions=True)
    assert (one, three) == (10, 30)
    assert isinstance(bad, KeyError)


async def test_a_full_lane_refuses_at_once(run, lane):
    callers = start(lane, 1, 2, 3, 4, 5, 6)
    await asyncio.sleep(0)
    assert lane.num_waiting == 6
    with pytest.raises(Overloaded, match="6 callers wait"):
        await lane(7)
    assert await asyncio.gather(*callers) == [10, 20, 30, 40, 50, 60]
    assert lane.num_waiting == 0


@pytest.mark.parametrize("bound", ["max_batch", "max_waiting"])
def test_bounds_below_one_are_refused(run, bound):
    bounds = {"max_batch": 1, "max_waiting": 1} | {bound: 0}
    with pytest.raises(ValueError, match=bound):
        TurnBatcher(run, name="test", **bounds)
