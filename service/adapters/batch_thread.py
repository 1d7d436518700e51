"""One thread that runs all waiting jobs together: blocking work behind an awaitable face, cheap under load.

A hop to a thread and back costs more than most of the work done here. So the thread takes whatever has queued up since
its last turn, does it in one go and wakes the event loop once for all of it: the busier, the cheaper per job.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from service.recommend.errors import StoreUnavailable

X = TypeVar("X")
Y = TypeVar("Y")

_Entry = tuple[X, asyncio.Future[Y]]


class BatchThread(Generic[X, Y]):
    """Callers await one result each; `run` makes them together, in order, in its own thread.

    Each entry carries its own future: a caller that gives up takes only itself away. `run` returns one result or one
    exception for each job; if `run` itself raises, all jobs of that turn get the exception.
    """

    def __init__(
        self, run: Callable[[Sequence[X]], Sequence[Y | Exception]], *, name: str, max_batch: int, max_waiting: int
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[_Entry[X, Y] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._turn_for_ever, name=name, daemon=True)
        self._closed = False

    async def __call__(self, job: X, *, timeout_s: float) -> Y:
        """Return the job's result.

        Raises:
            StoreUnavailable: Too many jobs wait, or no result came within `timeout_s`; the job may still be done.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._thread.start()
        if self._closed or self._queue.qsize() >= self._max_waiting:
            raise StoreUnavailable("closed" if self._closed else f"{self._max_waiting} calls wait for the store")
        future: asyncio.Future[Y] = loop.create_future()
        timer = loop.call_later(timeout_s, _expire, future, timeout_s)
        self._queue.put((job, future))
        try:
            return await future
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Finish what has been queued, then end the thread; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._loop is None:
            return
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _turn_for_ever(self) -> None:
        assert self._loop is not None
        open_ = True
        while open_:
            entries, open_ = self._next()
            if not entries:
                continue
            try:
                results: Sequence[Y | Exception] = self._run([job for job, _ in entries])
            except Exception as error:  # noqa: BLE001 - told to every caller of this turn
                results = [error] * len(entries)
            futures = [future for _, future in entries]
            try:
                self._loop.call_soon_threadsafe(_deliver, futures, results)
            except RuntimeError:
                return  # the loop is closed: nobody is left to be told

    def _next(self) -> tuple[list[_Entry[X, Y]], bool]:
        """Wait for a job; return all that wait, up to the bound, and whether more may come."""
        entry = self._queue.get()
        entries: list[_Entry[X, Y]] = []
        while entry is not None:
            if not entry[1].done():
                entries.append(entry)
            if len(entries) >= self._max_batch:
                return entries, True
            try:
                entry = self._queue.get_nowait()
            except Empty:
                return entries, True
        return entries, False


def _deliver(futures: Sequence[asyncio.Future[Y]], results: Sequence[Y | Exception]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _expire(future: asyncio.Future[Y], timeout_s: float) -> None:
    if not future.done():
        future.set_exception(StoreUnavailable(f"no answer within {timeout_s:g} s"))
