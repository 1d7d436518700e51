"""Where the core computes: on the event loop, in batches in a thread, or alone in one, by what the work costs."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.job import Answer, Job
from service.recommend.rerank import Reranking, rerank
from service.runtime.batcher import Batcher
from service.runtime.turn import TurnBatcher

Y = TypeVar("Y")

HEAVY_IDS = 1_000
"""A job with more ids to look up than this, blocked ones too, goes alone: it would hold up its neighbours."""

HEAVY_DIVERSE_K = 100
"""So does one for a diverse slate of more items than this: they are chosen one after the other."""

HEAVY_ITEMS = 8
"""So does one that brings the vectors of more items than this to be encoded."""


class Executor:
    """Bounded lanes that run the core's stages: `Compute` of `service.recommend`.

    Answers and re-rankings have a lane on the event loop and one in threads each, so that a ranker that takes its time
    holds up no search.

    Args of the constructor:
        max_waiting: Callers that may wait in each lane; more are refused at once.
        max_batch: Recommendations that are computed together.
        num_threads: Threads of each batched lane.
        num_lone_threads: Threads of the lane for explanations, similar items and very long requests.
        on_loop_below_s: A version whose answers cost less processor time is asked on the event loop, and so is one
            whose ranker does for its part; 0: never.
    """

    def __init__(
        self,
        *,
        max_waiting: int,
        max_batch: int = 16,
        num_threads: int = 1,
        num_lone_threads: int = 1,
        on_loop_below_s: float = 0.0,
    ) -> None:
        self._on_loop_below_s = on_loop_below_s
        self._turns: TurnBatcher[Job, Answer] = TurnBatcher(
            answer_jobs, name="turn", max_batch=max_batch, max_waiting=max_waiting
        )
        self._jobs: Batcher[Job, Answer] = Batcher(
            answer_jobs, name="recommend", max_batch=max_batch, max_waiting=max_waiting, num_threads=num_threads
        )
        self._rerank_turns: TurnBatcher[Reranking, Answer] = TurnBatcher(
            rerank, name="rerank turn", max_batch=max_batch, max_waiting=max_waiting
        )
        self._rerankings: Batcher[Reranking, Answer] = Batcher(
            rerank, name="rerank", max_batch=max_batch, max_waiting=max_waiting, num_threads=num_threads
        )
        self._lone: Batcher[Callable[[], object], object] = Batcher(
            _run_each, name="lone", max_batch=1, max_waiting=max_waiting, num_threads=num_lone_threads
        )

    @property
    def num_waiting(self) -> int:
        """How many callers wait or are being answered, in all lanes."""
        lanes = (self._turns, self._jobs, self._rerank_turns, self._rerankings, self._lone)
        return sum(lane.num_waiting for lane in lanes)

    async def serve(self) -> None:
        """Run the threads until cancelled; raises when one of them dies. Owned by the lifespan's task group."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._jobs.serve())
            group.create_task(self._rerankings.serve())
            group.create_task(self._lone.serve())

    async def answer(self, job: Job) -> Answer:
        """Answer a job together with whatever else waits; a very long one alone.

        Raises:
            Overloaded: Too many jobs wait; said at once.
            DeadlineExceeded: The job's deadline passed, waiting or computing.
            RecommendError: The job's own failure.
        """
        if _is_heavy(job):
            return _given(await self.alone(lambda: answer_jobs([job]), deadline=job.deadline))
        if job.servable.answer_cpu_s < self._on_loop_below_s and not job.query.diversity:
            return await self._turns(job)
        return await self._jobs(job, deadline=job.deadline)

    async def rerank(self, reranking: Reranking) -> Answer:
        """Order an answer's candidates together with whatever else waits for the same; of a very long request alone.

        Raises:
            Overloaded: Too many wait; said at once.
            DeadlineExceeded: The re-ranking's deadline passed, or would.
            Exception: What the ranker raised.
        """
        if _is_heavy(reranking.job):
            return _given(await self.alone(lambda: rerank([reranking]), deadline=reranking.deadline))
        ranker = reranking.job.servable.ranker
        on_loop = ranker is not None and ranker.rerank_cpu_s < self._on_loop_below_s
        if on_loop and not reranking.job.query.diversity:
            return await self._rerank_turns(reranking)
        return await self._rerankings(reranking, deadline=reranking.deadline)

    async def alone(self, work: Callable[[], Y], *, deadline: Deadline) -> Y:
        """Run something long by itself and return its result or raise its exception.

        Raises:
            Overloaded: Too much waits; said at once.
            DeadlineExceeded: The deadline passed, waiting or computing.
        """
        return cast("Y", await self._lone(work, deadline=deadline))


def _given(results: Sequence[Answer | Exception]) -> Answer:
    """Return the only result, or raise it."""
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def _is_heavy(job: Job) -> bool:
    query, num_blocked = job.query, len(job.stored.blocked_item_ids)
    if query.diversity and query.k > HEAVY_DIVERSE_K:
        return True
    if len(query.candidate_item_ids or ()) + len(query.exclude_item_ids) + num_blocked > HEAVY_IDS:
        return True
    return bool(query.history) and sum(item.modalities is not None for item in query.history or ()) > HEAVY_ITEMS


def _run_each(works: Sequence[Callable[[], object]]) -> list[object]:
    results: list[object] = []
    for work in works:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - handed to the caller whose work it is
            results.append(error)
    return results
