"""Ctrl-C and SIGTERM asked for an end; a run ends at the next step, with a checkpoint."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping_on_signals() -> Iterator[Callable[[], bool]]:
    """Give a question that is answered True after the first SIGINT or SIGTERM; a second one ends the process at once.

    Only in the main thread, where Python lets signals be handled.
    """
    asked = False
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()

    for number in previous:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        restore()
