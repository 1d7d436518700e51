"""Ids that nobody can guess: random bytes of the kernel, fetched for many ids at once.

A call into the kernel lets go of the interpreter lock, and a loop that has let go of it waits until another thread has
had its turn: an id cost a request far more than the call itself takes.
"""

import os

_FETCHED = 4_096


class _Pool:
    """Random bytes, each given out once. A child process begins with none: it would give out its parent's."""

    def __init__(self) -> None:
        self._bytes = b""

    def take(self, size: int) -> bytes:
        if len(self._bytes) < size:
            self._bytes = os.urandom(_FETCHED)
        taken, self._bytes = self._bytes[:size], self._bytes[size:]
        return taken

    def clear(self) -> None:
        self._bytes = b""


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.clear)


def random_id(num_bytes: int) -> str:
    """Return so many random bytes, at most 4,096, in hexadecimal digits. For the event loop's thread alone."""
    return _pool.take(num_bytes).hex()
