"""Several workers behind one port: accepts every connection and hands it to the worker that has the fewest.

Why not one `SO_REUSEPORT` socket for each worker: the kernel then chooses by a hash of the addresses, which is fair
over thousands of connections and not over the few dozen that a client's pool keeps open. Why not one shared listening
socket: whoever wakes first takes all that wait. A connection is handed over once, as a descriptor (SCM_RIGHTS); its
bytes never pass through here. It is kept open here until the worker says that it has it: a worker that dies before
has read nothing of it, and another one gets it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import structlog

from service import control
from service.fork_server import Forked, ForkServer
from service.observability.logging import DRAIN_BEGUN, FORK_SERVER_DIED, WORKER_DIED, WORKER_STARTED
from service.observability.metrics import forget_worker
from service.settings import ServiceSettings

ACCEPT_AT_ONCE = 64
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""After so long a run, a worker that dies counts as the first to die."""
KILL_AFTER_S = 5.0
"""Beyond the time that requests in flight get."""

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Worker:
    """One process and what is known of it."""

    number: int
    """Under which the fork server knows it."""
    channel: socket.socket
    started_at: float
    pid: int | None = None
    """None: it is not there yet."""
    ready: bool = False
    lost: bool = False
    """Its channel has been closed."""
    connections: int = 0
    """Handed over and not yet ended."""
    untaken: deque[socket.socket] = field(default_factory=deque)
    """Handed over and not yet known to be taken, in order."""


class Supervisor:
    """Owns the port and the workers."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        listener: socket.socket,
        fork_server: ForkServer,
        on_ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._fork_server = fork_server
        self._on_ready = on_ready
        self._numbers = count()
        self._workers: dict[int, _Worker] = {}
        """All that have not ended, by number."""
        self._waiting: deque[socket.socket] = deque()
        """Accepted, and with no worker to serve them: the one that they were given to has died."""
        self._metrics_folder = Path()
        self._num_missing = 0
        """Workers that died before the service was ready."""
        self._signalled = asyncio.Event()
        """It is time to end."""
        self._failed = False
        self._up = False
        self._ending = False
        self._accepting = False
        self._backoff_s = FIRST_BACKOFF_S
        self._changed = asyncio.Event()
        """Set whenever a worker becomes ready or has ended."""

    async def run(self) -> int:
        """Serve until a signal; return the exit code, 1 when no worker could be started or no more can be."""
        loop = asyncio.get_running_loop()
        hurried = asyncio.Event()

        def on_signal() -> None:
            (hurried if self._signalled.is_set() else self._signalled).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        loop.add_reader(self._fork_server.channel, self._hear_fork_server)
        try:
            with tempfile.TemporaryDirectory(prefix="prismrec-metrics-") as folder:
                self._metrics_folder = Path(folder)
                for _ in range(self._settings.workers):
                    self._start()
                started = await self._start_up()
                if started:
                    await self._signalled.wait()
                await self._wind_down(hurried)
        finally:
            loop.remove_reader(self._fork_server.channel)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return 0 if self._signalled.is_set() and not self._failed else 1

    async def _start_up(self) -> bool:
        """Wait until every worker is ready or dead; return whether one is ready."""
        waiting = asyncio.create_task(self._signalled.wait())
        while not self._signalled.is_set() and any(not worker.ready for worker in self._workers.values()):
            self._changed.clear()
            change = asyncio.create_task(self._changed.wait())
            await asyncio.wait({waiting, change}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        waiting.cancel()
        if self._signalled.is_set() or not self._workers:
            return False
        self._up = True
        # Not before: what connects while one worker is ready would all be its own for as long as it is kept open.
        self._start_accepting()
        for _ in range(self._num_missing):
            self._start_later()
        self._on_ready()
        return True

    async def _wind_down(self, hurried: asyncio.Event) -> None:
        """Drain, close the port, let the workers finish."""
        self._ending = True
        window_s = self._settings.http.drain_s if self._up else 0.0
        _log.info(DRAIN_BEGUN, window_s=window_s)
        self._tell(control.DRAIN)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurried.wait(), window_s)
        self._accept()  # what the kernel has taken for us is served too
        self._stop_accepting()
        self._listener.close()
        self._tell(control.STOP)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.http.finish_s + KILL_AFTER_S):
                while self._workers:
                    self._changed.clear()
                    await self._changed.wait()
        for worker in self._workers.values():
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        for connection in self._waiting:
            connection.close()

    # --- workers ---

    def _start(self) -> None:
        number = next(self._numbers)
        ours, theirs = control.pair()
        worker = self._workers[number] = _Worker(number, ours, time.monotonic())
        asyncio.get_running_loop().add_reader(ours, self._hear, worker)
        with theirs, contextlib.suppress(ConnectionError):  # the fork server is gone, and we hear of it next
            self._fork_server.fork(number, end=theirs, note=str(self._metrics_folder))

    def _start_later(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._backoff_s, lambda: None if self._ending else self._start())
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)

    def _tell(self, message: bytes) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(OSError):  # it is gone, or has not read for long and will be killed
                worker.channel.send(message)

    def _hear_fork_server(self) -> None:
        """Take in which workers have come and gone."""
        while True:
            try:
                happened = self._fork_server.hear()
            except BlockingIOError:
                return
            if happened is None:
                asyncio.get_running_loop().remove_reader(self._fork_server.channel)
                self._lose_fork_server()
                return
            worker = self._workers[happened.number]
            if isinstance(happened, Forked):
                worker.pid = happened.pid
                _log.info(WORKER_STARTED, pid=worker.pid)
            else:
                self._hear(worker)  # the last that it has said, connections taken among it
                self._bury(worker, happened.exit_code)

    def _lose_fork_server(self) -> None:
        """End: those who are there finish their work, but whoever dies from now on could not be replaced."""
        _log.critical(FORK_SERVER_DIED)
        self._failed = True
        self._signalled.set()
        for worker in list(self._workers.values()):
            self._hear(worker)
            if worker.lost and worker.number in self._workers:
                self._bury(worker, None)

    def _hear(self, worker: _Worker) -> None:
        """Take in all that a worker has said."""
        while not worker.lost:
            try:
                received = control.receive(worker.channel)
            except BlockingIOError:
                return
            if received is None:
                self._lose(worker)
                return
            message = received[0]
            if message == control.READY:
                worker.ready = True
                self._changed.set()
                self._hand_over_waiting()
                if self._up:
                    self._start_accepting()
            elif message.startswith(control.ADOPTED):
                for _ in range(int(message[1:])):
                    worker.untaken.popleft().close()
            elif message.startswith(control.DONE):
                worker.connections -= int(message[1:])

    def _lose(self, worker: _Worker) -> None:
        """A worker has closed its end: it has ended, or does so now."""
        asyncio.get_running_loop().remove_reader(worker.channel)
        worker.channel.close()
        worker.ready, worker.lost = False, True
        self._waiting += worker.untaken
        worker.untaken.clear()
        self._hand_over_waiting()
        if not any(other.ready for other in self._workers.values()):
            self._stop_accepting()  # the kernel keeps new connections until there is somebody to serve them
        if self._failed:
            self._bury(worker, None)  # there is nobody to say that it has ended

    def _bury(self, worker: _Worker, exit_code: int | None) -> None:
        del self._workers[worker.number]
        self._changed.set()
        if worker.pid is not None:
            forget_worker(worker.pid, self._metrics_folder)
        if self._ending:
            return
        _log.error(WORKER_DIED, pid=worker.pid, exit_code=exit_code, num_connections=worker.connections)
        if not self._up:
            self._num_missing += 1
            return
        if time.monotonic() - worker.started_at >= STEADY_S:
            self._backoff_s = FIRST_BACKOFF_S
        self._start_later()

    # --- connections ---

    def _start_accepting(self) -> None:
        if not self._accepting:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            if not any(worker.ready for worker in self._workers.values()):
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                return  # it was gone before it was accepted, or descriptors are short; the next turn tries again
            if not self._hand_over(connection):
                connection.close()

    def _hand_over_waiting(self) -> None:
        while self._waiting and self._hand_over(self._waiting[0]):
            self._waiting.popleft()

    def _hand_over(self, connection: socket.socket) -> bool:
        """Give a connection to the ready worker that has the fewest; return whether one takes it."""
        for worker in sorted((w for w in self._workers.values() if w.ready), key=lambda w: w.connections):
            try:
                control.pass_on(worker.channel, connection)
            except OSError:
                continue  # behind with its messages, or gone
            worker.connections += 1
            worker.untaken.append(connection)
            return True
        return False
