"""Calls that wait together go to a server together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from service.recommend.errors import StoreUnavailable

X = TypeVar("X")
Y = TypeVar("Y")


class Batcher(Generic[X, Y]):
    """Callers await one result each; a task of its own awaits `run` for all that have queued up.

    Each entry carries its own future, so a caller that gives up takes only itself away: no cancellation ever reaches a
    connection half-way through a reply, and a reply can not be taken by the next caller.
    """

    def __init__(
        self, run: Callable[[Sequence[X]], Awaitable[Sequence[Y]]], *, max_batch: int, max_waiting: int
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: list[tuple[X, asyncio.Future[Y]]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def __call__(self, job: X) -> Y:
        """Return the job's result.

        Raises:
            StoreUnavailable: Too many wait, or this is closed.
            Exception: What `run` raised for the batch.
        """
        if self._closed or len(self._waiting) >= self._max_waiting:
            raise StoreUnavailable("closed" if self._closed else f"{self._max_waiting} calls wait for the store")
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        future: asyncio.Future[Y] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        self._wake.set()
        return await future

    async def close(self) -> None:
        """Refuse new calls, finish those that wait, end the task; idempotent."""
        self._closed = True
        if self._task is not None:
            self._wake.set()
            await asyncio.wait([self._task])

    async def _serve(self) -> None:
        while self._waiting or not self._closed:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            entries = [entry for entry in self._waiting[: self._max_batch] if not entry[1].done()]
            del self._waiting[: self._max_batch]
            if entries:
                await self._turn(entries)

    async def _turn(self, entries: Sequence[tuple[X, asyncio.Future[Y]]]) -> None:
        try:
            results = await self._run([job for job, _ in entries])
        except Exception as error:  # noqa: BLE001 - told to every caller of this batch
            for _, future in entries:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(entries, results, strict=True):
            if not future.done():
                future.set_result(result)
