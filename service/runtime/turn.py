"""Callers of one turn of the event loop are answered together, on the loop itself: no thread, no waiting for one.

For work that costs less than what a thread costs: handing a job over and back wakes two threads, and while both run
Python, each waits for the other's turn of the interpreter (up to `sys.setswitchinterval`) after every call of NumPy or
ONNX Runtime.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from service.recommend.errors import Overloaded

X = TypeVar("X")
Y = TypeVar("Y")


class TurnBatcher(Generic[X, Y]):
    """Runs callers' values in batches, each batch in a turn of its own, so that the loop turns between batches.

    `run` gets the values of one batch and returns, for each, a result or the exception that its caller shall get. Each
    entry carries its own future: a caller that gives up takes only itself away, and a failed batch fails only the
    callers in it.
    """

    def __init__(
        self, run: Callable[[Sequence[X]], Sequence[Y | Exception]], *, name: str, max_batch: int, max_waiting: int
    ) -> None:
        for field, value in (("max_batch", max_batch), ("max_waiting", max_waiting)):
            if value < 1:
                raise ValueError(f"{field}: {value} is below 1")
        self._run = run
        self._name = name
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._entries: deque[tuple[X, asyncio.Future[Y]]] = deque()
        self._scheduled = False

    @property
    def num_waiting(self) -> int:
        """How many callers wait for the next turn."""
        return len(self._entries)

    async def __call__(self, value: X) -> Y:
        """Return the result for `value`.

        Raises:
            Overloaded: Too many callers wait; said at once.
            Exception: What `run` returned or raised for this value.
        """
        if len(self._entries) >= self._max_waiting:
            raise Overloaded(f"{self._name}: {len(self._entries)} callers wait")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Y] = loop.create_future()
        self._entries.append((value, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._turn, loop)
        return await future

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        entries = [self._entries.popleft() for _ in range(min(self._max_batch, len(self._entries)))]
        self._scheduled = bool(self._entries)
        if self._scheduled:
            loop.call_soon(self._turn, loop)
        entries = [(value, future) for value, future in entries if not future.done()]  # the others' callers have gone
        if not entries:
            return
        try:
            results: Sequence[Y | Exception] = self._run([value for value, _ in entries])
        except Exception as error:  # noqa: BLE001 - told to every caller of this batch
            results = [error] * len(entries)
        for (_, future), result in zip(entries, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
