"""The executor: both lanes, and no use of a version after it was closed."""

import asyncio
import threading

import numpy as np
import pytest

from service.recommend.admission import Admission
from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, InvalidQuery, Overloaded
from service.recommend.recommender import Recommender
from service.recommend.types import HistoryItem, ItemId, Query
from service.runtime import executor as executor_module
from service.runtime.executor import Executor
from service.runtime.registry import ServableRegistry
from tests.fakes import FakeRanker, FakeServable, FakeStore

LATER = Deadline.after(3_600.0)
QUERY = Query(history=(HistoryItem(ItemId("i1")),), k=5)


class Service:
    def __init__(self, *, on_loop_below_s: float = 0.0) -> None:
        self.executor = Executor(max_waiting=4, max_batch=2, on_loop_below_s=on_loop_below_s)
        self.registry = ServableRegistry()
        self.servable = FakeServable()
        self.registry.swap(self.servable)
        self.recommender = Recommender(
            servables=self.registry,
            history=FakeStore(),
            compute=self.executor,
            admission=Admission(100),
            store_timeout_s=1.0,
        )

    async def recommend(self, query: Query = QUERY, deadline: Deadline = LATER):
        return await self.recommender.recommend(query, deadline=deadline)


@pytest.fixture
async def service():
    made = Service()
    serving = asyncio.create_task(made.executor.serve())
    yield made
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    made.registry.close()
    assert made.servable.closed


@pytest.fixture
def gate(service):
    """Hold every search until `go`."""
    entered, go = threading.Semaphore(0), threading.Event()
    service.servable.before["search"] = lambda: (entered.release(), go.wait(20))
    yield entered, go
    go.set()


async def test_answers_and_explanations_come_from_other_threads(service):
    threads = set()
    for name in ("encode_users", "attribute"):
        service.servable.before[name] = lambda: threads.add(threading.current_thread().name)
    slate = await service.recommend(Query(history=QUERY.history, explain="full"))
    assert slate.explanation is not None
    assert threads == {"recommend-0", "lone-0"}


async def test_what_is_cheaper_than_a_thread_is_answered_on_the_loop_and_the_rest_is_not():
    made = Service(on_loop_below_s=0.001)
    serving = asyncio.create_task(made.executor.serve())
    threads = []
    made.servable.before["search"] = lambda: threads.append(threading.current_thread())
    made.servable.before["attribute"] = lambda: threads.append(threading.current_thread().name)
    cheap = await made.recommend(Query(history=QUERY.history, k=5, explain="summary"))
    made.servable.answer_cpu_s = 0.001
    dear = await made.recommend()
    serving.cancel()
    await asyncio.wait([serving])
    assert cheap.items[0].item_id == dear.items[0].item_id
    assert [threads[0], threads[1], threads[2].name] == [threading.main_thread(), "lone-0", "recommend-0"]


async def test_on_the_loop_a_deadline_that_passed_in_the_queue_is_told():
    made = Service(on_loop_below_s=1.0)
    ticks = iter([0.0])  # in time when it is queued, and never again
    with pytest.raises(DeadlineExceeded):
        await made.recommend(deadline=Deadline(1.0, lambda: next(ticks, 2.0)))


async def test_many_callers_each_get_their_own_answer(service):
    service.executor._jobs._max_waiting = 100
    queries = [Query(history=(HistoryItem(ItemId(f"i{row}")),), k=3) for row in range(40)]
    alone = [await service.recommend(query) for query in queries]
    together = await asyncio.gather(*(service.recommend(query) for query in queries))
    assert [slate.items for slate in together] == [slate.items for slate in alone]


async def test_a_version_stays_open_while_a_thread_uses_it_although_its_caller_has_gone(service, gate):
    entered, go = gate
    caller = asyncio.create_task(service.recommend())
    await asyncio.to_thread(entered.acquire)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    service.registry.close()
    assert not service.servable.closed
    go.set()
    async with asyncio.timeout(20):
        while not service.servable.closed:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)


async def test_a_caller_whose_work_hangs_is_told_in_time(service, gate):
    with pytest.raises(DeadlineExceeded):
        await service.recommend(deadline=Deadline.after(0.02))


async def test_a_full_lane_refuses_at_once_and_the_other_lane_goes_on(service, gate):
    entered, go = gate
    callers = [asyncio.create_task(service.recommend()) for _ in range(4)]
    await asyncio.to_thread(entered.acquire)
    with pytest.raises(Overloaded):
        await service.recommend()
    assert service.executor.num_waiting == 4
    assert (await service.recommender.popular(k=3, deadline=LATER)).items
    go.set()
    await asyncio.gather(*callers)
    assert service.executor.num_waiting == 0


async def test_an_overloaded_explanation_is_left_out(service):
    service.executor._lone._max_waiting = 0
    slate = await service.recommend(Query(history=QUERY.history, explain="summary"))
    assert slate.degraded == ("explanation_overloaded",)
    assert slate.items


async def test_a_very_long_request_goes_alone(service, monkeypatch):
    monkeypatch.setattr(executor_module, "HEAVY_IDS", 2)
    threads = []
    service.servable.before["score"] = lambda: threads.append(threading.current_thread().name)
    candidates = tuple(ItemId(f"i{row}") for row in range(10))
    slate = await service.recommend(Query(history=QUERY.history, candidate_item_ids=candidates))
    assert len(slate.items) == 9
    assert threads == ["lone-0"]


async def test_a_request_that_brings_many_vectors_goes_alone(service):
    threads = []
    service.servable.before["search"] = lambda: threads.append(threading.current_thread().name)
    raw = {"visual": np.ones(6, dtype=np.float32)}
    brought = tuple(HistoryItem(ItemId(f"new-{number}"), modalities=raw) for number in range(9))
    assert (await service.recommend(Query(history=brought))).events_used == 5
    assert (await service.recommend(Query(history=brought[:8]))).events_used == 5
    assert threads == ["lone-0", "recommend-0"]


async def test_an_error_of_lone_work_reaches_its_caller_as_it_is(service):
    with pytest.raises(InvalidQuery):
        await service.recommender.explain(QUERY, item_ids=(ItemId("nope"),), deadline=LATER)


async def test_a_storm_of_cancelled_callers_leaves_everything_as_it_was(service):
    service.executor._jobs._max_waiting = 1_000
    for round_number in range(10):
        callers = [asyncio.create_task(service.recommend()) for _ in range(20)]
        for _ in range(round_number % 3):
            await asyncio.sleep(0)
        for caller in callers[::2]:
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert all(len(slate.items) == 5 for slate in results[1::2])
    assert service.executor.num_waiting == 0
    async with asyncio.timeout(20):
        while service.servable.holds > 1:  # noqa: ASYNC110 - a thread may still be at the last batch
            await asyncio.sleep(0)


def with_ranker(service: Service) -> FakeRanker:
    service.servable.ranker = FakeRanker(num_candidates=20)
    return service.servable.ranker


async def test_a_ranker_has_a_thread_of_its_own_unless_it_costs_less_than_one():
    made = Service(on_loop_below_s=0.001)
    ranker, threads = with_ranker(made), []
    ranker.before["score"] = lambda: threads.append(threading.current_thread().name)
    serving = asyncio.create_task(made.executor.serve())
    cheap = await made.recommend()
    ranker.rerank_cpu_s = 0.001
    dear = await made.recommend()
    serving.cancel()
    await asyncio.wait([serving])
    assert cheap.items == dear.items
    assert threads == [threading.main_thread().name, "rerank-0"]


async def test_re_rankings_that_wait_are_computed_together(service):
    service.executor._rerankings._max_waiting = service.executor._jobs._max_waiting = 100
    ranker = with_ranker(service)
    queries = [Query(history=(HistoryItem(ItemId(f"i{row}")),), k=3) for row in range(40)]
    alone = [await service.recommend(query) for query in queries]
    ranker.calls.clear()
    together = await asyncio.gather(*(service.recommend(query) for query in queries))
    assert [slate.items for slate in together] == [slate.items for slate in alone]
    assert ranker.calls.count("encode_users") < ranker.calls.count("score") == 40


async def test_a_ranker_that_hangs_costs_its_order_alone(service):
    entered, go = threading.Semaphore(0), threading.Event()
    with_ranker(service).before["score"] = lambda: (entered.release(), go.wait(20))
    late = await service.recommend(deadline=Deadline.after(0.2))
    assert (late.degraded, len(late.items), late.ranker) == (("rerank_late",), 5, None)
    service.executor._rerankings._max_waiting = 0
    refused = await service.recommend()
    assert (refused.degraded, refused.items) == (("rerank_overloaded",), late.items)
    go.set()


async def test_a_very_long_request_is_ranked_alone(service, monkeypatch):
    monkeypatch.setattr(executor_module, "HEAVY_IDS", 2)
    threads = []
    with_ranker(service).before["score"] = lambda: threads.append(threading.current_thread().name)
    candidates = tuple(ItemId(f"i{row}") for row in range(10))
    slate = await service.recommend(Query(history=QUERY.history, candidate_item_ids=candidates))
    assert (len(slate.items), slate.degraded, threads) == (9, (), ["lone-0"])
    service.servable.ranker.fail["score"] = RuntimeError("boom")
    slate = await service.recommend(Query(history=QUERY.history, candidate_item_ids=candidates))
    assert slate.degraded == ("rerank_failed",)
