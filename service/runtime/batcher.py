"""Callers await one result each; a worker thread runs whatever waits together.

Nothing waits for a batch to fill: a batch is what is queued when a worker becomes free, so an idle service answers at
once and a busy one shares its calls. Each entry carries its own future, so a caller that gives up takes only itself
away, and a failed batch fails only the callers in it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, Overloaded

X = TypeVar("X")
Y = TypeVar("Y")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[X, Y]):
    value: X
    deadline: Deadline
    future: asyncio.Future[Y]


class Batcher(Generic[X, Y]):
    """Runs callers' values in batches on its own threads.

    `run` gets the values of one batch and returns, for each, a result or the exception that its caller shall get.
    """

    def __init__(
        self,
        run: Callable[[Sequence[X]], Sequence[Y | Exception]],
        *,
        name: str,
        max_batch: int,
        max_waiting: int,
        num_threads: int = 1,
    ) -> None:
        for field, value in (("max_batch", max_batch), ("max_waiting", max_waiting), ("num_threads", num_threads)):
            if value < 1:
                raise ValueError(f"{field}: {value} is below 1")
        self._run = run
        self._name = name
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._num_threads = num_threads
        self._queue: queue.SimpleQueue[_Entry[X, Y] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._stopped = False

    @property
    def num_waiting(self) -> int:
        """How many callers wait or are being answered."""
        return self._waiting

    async def __call__(self, value: X, *, deadline: Deadline) -> Y:
        """Return the result for `value`.

        Raises:
            Overloaded: Too many callers wait, or serving has stopped; said at once.
            DeadlineExceeded: The deadline passed, in the queue or at work.
            Exception: What `run` returned or raised for this value.
        """
        if self._waiting >= self._max_waiting or self._stopped:
            raise Overloaded(f"{self._name}: {self._waiting} callers wait")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Y] = loop.create_future()
        timer = loop.call_later(max(0.0, deadline.remaining_s()), _expire, future)
        self._waiting += 1
        self._queue.put(_Entry(value, deadline, future))
        try:
            return await future
        finally:
            self._waiting -= 1
            timer.cancel()

    async def serve(self) -> None:
        """Run batches until cancelled. Owned by a task group: should a worker die, this raises."""
        loop = asyncio.get_running_loop()
        died: asyncio.Future[None] = loop.create_future()
        threads = [
            threading.Thread(target=self._work, args=(loop, died), name=f"{self._name}-{number}", daemon=True)
            for number in range(self._num_threads)
        ]
        for thread in threads:
            thread.start()
        try:
            await died
        finally:
            self._stopped = True
            for _ in threads:
                self._queue.put(None)
            for thread in threads:
                await asyncio.shield(loop.run_in_executor(None, thread.join))
            while not self._queue.empty():  # left behind by a worker that died
                if (entry := self._queue.get()) is not None and not entry.future.done():
                    entry.future.set_exception(Overloaded(f"{self._name}: the worker ended"))

    def _work(self, loop: asyncio.AbstractEventLoop, died: "asyncio.Future[None]") -> None:
        try:
            while (entries := self._next()) is not None:
                self._answer(loop, entries)
        except BaseException as error:  # noqa: BLE001 - told to the task that serves, which ends the process
            loop.call_soon_threadsafe(_fail, died, error)

    def _next(self) -> list[_Entry[X, Y]] | None:
        """Wait for an entry and take whatever else is there; None: stop."""
        first = self._queue.get()
        if first is None:
            return None
        entries = [first]
        while len(entries) < self._max_batch:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                self._queue.put(None)
                break
            entries.append(entry)
        return entries

    def _answer(self, loop: asyncio.AbstractEventLoop, entries: list[_Entry[X, Y]]) -> None:
        results: list[tuple[asyncio.Future[Y], Y | Exception]] = []
        waiting: list[_Entry[X, Y]] = []
        for entry in entries:
            if entry.future.done():  # its caller has gone
                continue
            try:
                entry.deadline.check()
            except DeadlineExceeded as error:
                results.append((entry.future, error))
            else:
                waiting.append(entry)
        if waiting:
            try:
                answers = self._run([entry.value for entry in waiting])
                results += list(zip((entry.future for entry in waiting), answers, strict=True))
            except Exception as error:  # noqa: BLE001 - told to every caller of this batch
                results += [(entry.future, error) for entry in waiting]
            except BaseException:  # the worker ends here, and its callers must not wait for it
                gone = Overloaded(f"{self._name}: the worker ended")
                results += [(entry.future, gone) for entry in waiting]
                loop.call_soon_threadsafe(_deliver, results)
                raise
        if results:
            loop.call_soon_threadsafe(_deliver, results)


def _deliver(results: list[tuple["asyncio.Future[Y]", Y | Exception]]) -> None:
    for future, result in results:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _expire(future: "asyncio.Future[Y]") -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the time given for this request is over"))


def _fail(died: "asyncio.Future[None]", error: BaseException) -> None:
    if not died.done():
        died.set_exception(error if isinstance(error, Exception) else RuntimeError(f"a worker ended: {error!r}"))
