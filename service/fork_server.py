"""ForkServer: a process that has imported everything and does nothing but fork workers.

Imports are most of the processor time until a worker answers, and half of the memory that is its own. A forked worker
begins with them, on pages that all workers share until one writes to them.

Why not fork in the supervisor: it has an event loop, signal handlers and other people's connections, of which a worker
must have nothing. This process is forked before there is any of that; and a worker before it has a thread, a loop, a
session of ONNX Runtime or an open store, so that what does not survive a fork is made after it.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Self

from service import control
from service.runtime.memory import give_back_memory

Work = Callable[[socket.socket, str], int]
"""What a worker does with its end of a channel and the note that was sent along; returns its exit code."""


class Forked(NamedTuple):
    """A worker is there."""

    number: int
    pid: int


class Ended(NamedTuple):
    """A worker is gone."""

    number: int
    exit_code: int
    """Negative: the signal that ended it."""


class ForkServer:
    """The supervisor's side of it. Made before the process has a second thread or an event loop."""

    def __init__(self, work: Work) -> None:
        """Fork the process, with all that is there in this one; `work` is run by every worker."""
        self.channel, theirs = control.pair()
        """Readable when there is something to hear."""
        gc.collect()
        give_back_memory()
        gc.freeze()  # a collection writes to all that it looks at, and a page that is written to is shared no more
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self.channel.close()
            _end_with(_Server(theirs, work).run)
        theirs.close()

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process; workers that it has forked go on."""
        self.channel.close()
        os.kill(self._pid, signal.SIGKILL)  # it has nothing to finish
        os.waitpid(self._pid, 0)

    def fork(self, number: int, *, end: socket.socket, note: str) -> None:
        """Ask for a worker; `hear` tells when it is there and when it has ended.

        Args:
            number: What the worker is called here.
            end: Of its channel; may be closed when this returns.
            note: Some hundred characters at most.

        Raises:
            OSError: The process is gone.
        """
        socket.send_fds(self.channel, [f"{number} {note}".encode()], [end.fileno()])

    def hear(self) -> Forked | Ended | None:
        """Return what has happened next; None when the process itself is gone.

        Raises:
            BlockingIOError: Nothing more has happened.
        """
        received = control.receive(self.channel)
        if received is None:
            return None
        kind, number, value = received[0].split()
        return (Forked if kind == control.FORKED else Ended)(int(number), int(value))


class _Server:
    """What the process does."""

    def __init__(self, channel: socket.socket, work: Work) -> None:
        self._channel = channel
        self._work = work
        self._numbers: dict[int, int] = {}
        """By the id of the process."""

    def run(self) -> int:
        """Fork when asked to, tell who has ended, until the supervisor is gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a terminal sends them to the whole group; see WorkerServer
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        with contextlib.suppress(ConnectionError):
            while True:
                ready, _, _ = select.select([self._channel.fileno(), woken], [], [])
                if woken in ready:
                    os.read(woken, 512)
                    self._tell_ends()
                if self._channel.fileno() in ready:
                    received = control.receive(self._channel)
                    if received is None:
                        break
                    message, descriptors = received
                    self._fork(message.decode(), descriptors[0], woken, wake)
        return 0

    def _fork(self, message: str, end: int, woken: int, wake: int) -> None:
        number, _, note = message.partition(" ")
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(woken)
            os.close(wake)
            self._channel.close()
            _end_with(lambda: self._work(socket.socket(fileno=end), note))
        os.close(end)
        self._numbers[pid] = int(number)
        self._tell(control.FORKED, int(number), pid)

    def _tell_ends(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._tell(control.ENDED, self._numbers.pop(pid), os.waitstatus_to_exitcode(status))

    def _tell(self, kind: bytes, number: int, value: int) -> None:
        select.select([], [self._channel], [])
        self._channel.send(b"%b %d %d" % (kind, number, value))


def _end_with(run: Callable[[], int]) -> NoReturn:
    """End this process with what `run` returns: nothing of the frames that it was forked in may go on in it."""
    code = 1
    try:
        code = run()
    except BaseException:  # noqa: BLE001 - it must not get into the frames below
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
