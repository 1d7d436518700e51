"""What the recommender needs to compute; `service.runtime.executor` provides it."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from service.recommend.deadline import Deadline
from service.recommend.job import Answer, Job
from service.recommend.rerank import Reranking

Y = TypeVar("Y")


class Compute(Protocol):
    """Runs what computes: what is long away from the event loop."""

    async def answer(self, job: Job) -> Answer:
        """Answer a job together with whatever else waits.

        Raises:
            Overloaded: Too many jobs wait; said at once.
            DeadlineExceeded: The job's deadline passed, waiting or computing.
            RecommendError: The job's own failure.
        """
        ...

    async def rerank(self, reranking: Reranking) -> Answer:
        """Order an answer's candidates together with whatever else waits for the same.

        Raises:
            Overloaded: Too many wait; said at once.
            DeadlineExceeded: The re-ranking's deadline passed, or would.
            Exception: What the ranker raised.
        """
        ...

    async def alone(self, work: Callable[[], Y], *, deadline: Deadline) -> Y:
        """Run something long by itself, so that it holds up no job, and return its result or raise its exception.

        Raises:
            Overloaded: Too much waits; said at once.
            DeadlineExceeded: The deadline passed, waiting or computing.
        """
        ...
