"""Waiting together, each for their own: in a thread (SQLite) and in a task (Redis)."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.adapters.batch_thread import BatchThread
from service.adapters.batcher import Batcher
from service.recommend.errors import StoreUnavailable


class Work:
    """Doubles numbers; can be held up, and fails on what it is told to."""

    def __init__(self, kind):
        self.batches = []
        self.fail_on = None
        self.thread_gate = threading.Event()
        self.task_gate = asyncio.Event()
        self.open()
        if kind == "thread":
            made = BatchThread(self.in_thread, name="test", max_batch=4, max_waiting=8)
            self.call = lambda job: made(job, timeout_s=5)
        else:
            made = Batcher(self.in_task, max_batch=4, max_waiting=8)
            self.call = made
        self.close = made.close

    def open(self):
        self.thread_gate.set()
        self.task_gate.set()

    def shut(self):
        self.thread_gate.clear()
        self.task_gate.clear()

    def in_thread(self, jobs):
        self.thread_gate.wait()
        return self._do(jobs)

    async def in_task(self, jobs):
        await self.task_gate.wait()
        return self._do(jobs)

    def _do(self, jobs):
        self.batches.append(list(jobs))
        if self.fail_on in jobs:
            raise ZeroDivisionError(self.fail_on)
        return [2 * job for job in jobs]


@pytest.fixture(params=["thread", "task"])
async def work(request):
    work = Work(request.param)
    yield work
    work.open()
    await work.close()


async def test_callers_that_wait_together_are_served_together_and_each_gets_its_own(work):
    work.shut()
    tasks = [asyncio.create_task(work.call(number)) for number in range(7)]
    await asyncio.sleep(0)
    work.open()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12]
    assert max(map(len, work.batches)) > 1
    assert max(map(len, work.batches)) <= 4


async def test_a_cancelled_caller_takes_only_itself_away(work):
    work.shut()
    tasks = [asyncio.create_task(work.call(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[5].cancel()
    work.open()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer for answer in answers if not isinstance(answer, BaseException)] == [0, 4, 6, 8]
    assert await work.call(21) == 42


async def test_a_bad_batch_fails_its_own_callers_and_the_next_one_works(work):
    work.fail_on = 1
    with pytest.raises(ZeroDivisionError):
        await work.call(1)
    assert await work.call(2) == 4


async def test_a_full_queue_refuses_at_once(work):
    work.shut()
    tasks = [asyncio.create_task(work.call(number)) for number in range(30)]
    for _ in range(5):
        await asyncio.sleep(0)
    refused = [task for task in tasks if task.done()]
    assert len(refused) >= 30 - 8 - 4  # those that wait, and those in hand
    assert all(isinstance(task.exception(), StoreUnavailable) for task in refused)
    work.open()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_closing_finishes_what_was_begun_and_refuses_the_rest(work):
    work.shut()
    tasks = [asyncio.create_task(work.call(number)) for number in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(work.close())
    await asyncio.sleep(0)
    work.open()
    await closing
    assert await asyncio.gather(*tasks) == [0, 2, 4]
    with pytest.raises(StoreUnavailable):
        await work.call(1)
    await work.close()


async def test_what_takes_too_long_in_the_thread_is_given_up_and_its_late_result_goes_to_nobody():
    work = Work("thread")
    slow = BatchThread(work.in_thread, name="slow", max_batch=4, max_waiting=8)
    work.shut()
    with pytest.raises(StoreUnavailable, match=r"0\.01 s"):
        await slow(1, timeout_s=0.01)
    work.open()
    assert await slow(2, timeout_s=5) == 4
    await slow.close()


async def test_one_result_that_is_an_error_fails_one_caller():
    thread = BatchThread(
        lambda jobs: [ValueError("odd") if job % 2 else job for job in jobs], name="mixed", max_batch=9, max_waiting=9
    )
    answers = await asyncio.gather(*[thread(number, timeout_s=5) for number in range(4)], return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, ValueError, int, ValueError]
    await thread.close()


@pytest.mark.parametrize("kind", ["thread", "task"])
@settings(max_examples=20, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(0, 99), st.booleans(), st.integers(0, 3)), max_size=12))
def test_no_interleaving_loses_or_crosses_a_reply(kind, plan):
    async def main():
        work = Work(kind)
        tasks = []
        for number, leave, turns in plan:
            task = asyncio.create_task(work.call(number))
            for _ in range(turns):
                await asyncio.sleep(0)
            if leave:
                task.cancel()
            tasks.append((number, leave, task))
        answers = await asyncio.gather(*[task for _, _, task in tasks], return_exceptions=True)
        for (number, leave, _), answer in zip(tasks, answers, strict=True):
            if isinstance(answer, BaseException):
                assert leave or isinstance(answer, StoreUnavailable)
            else:
                assert answer == 2 * number
        await work.close()

    asyncio.run(main())
