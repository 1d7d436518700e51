"""One of several processes that answer: it gets its connections from the supervisor, not from a port.

Forked by `service.fork_server` for the supervisor, with one end of a channel to it. When the supervisor is gone, the
channel says so, and the worker drains and ends too: nobody would send it connections any more.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import control
from service.main import Drain, create_app
from service.observability.metrics import share_metrics
from service.server import GracefulServer, run
from service.settings import ServiceSettings

RETRY_REPORT_S = 0.05
FOR_EVER_S = 1e9


class WorkerServer(GracefulServer):
    """A server without a port of its own; when it ends is the supervisor's to say."""

    def __init__(self, settings: ServiceSettings, *, channel: socket.socket) -> None:
        drain = Drain()
        super().__init__(
            create_app(settings, drain=drain, on_failure=self.fail),
            http=settings.http,
            drain=drain,
            protocol=_reporting(self._connection_ended),
        )
        self._channel = channel
        self._adopted = self._ended = 0
        """Connections that the supervisor has not yet been told of."""
        self._adopting: set[asyncio.Task[object]] = set()
        self._listening = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then ask for connections."""
        await super().startup(sockets=sockets)
        asyncio.get_running_loop().add_reader(self._channel, self._listen)
        self._channel.send(control.READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what has been handed over, then finish it all."""
        self._listen()
        self._hang_up()
        if self._adopting:
            await asyncio.wait(self._adopting)
        await super().shutdown(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ignore signals: a terminal sends them to the whole group, and the supervisor speaks for all."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        yield

    def _listen(self) -> None:
        """Do what the supervisor says, all that is there."""
        while self._listening:
            try:
                received = control.receive(self._channel)
            except BlockingIOError:
                return
            if received is None:
                self._hang_up()
                self.begin_drain(window_s=0.0)
                return
            message, descriptors = received
            if message == control.CONNECTION:
                self._adopt(socket.socket(fileno=descriptors[0]))
            elif message == control.DRAIN:
                self.begin_drain(window_s=FOR_EVER_S)
            elif message == control.STOP:
                self.should_exit = True

    def _hang_up(self) -> None:
        """Hear no more: the supervisor is gone, or all has been said."""
        if self._listening:
            self._listening = False
            asyncio.get_running_loop().remove_reader(self._channel)

    def _adopt(self, connection: socket.socket) -> None:
        self._adopted += 1
        self._report()  # before a byte is read: until it hears this, the supervisor can give it to another
        connection.setblocking(False)
        task = asyncio.create_task(self._serve_connection(connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _serve_connection(self, connection: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself does it
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except OSError:
            connection.close()  # it was gone before it could be served
            self._connection_ended()

    def _connection_ended(self) -> None:
        self._ended += 1
        self._report()

    def _report(self) -> None:
        try:
            if self._adopted > 0:
                self._channel.send(control.ADOPTED + str(self._adopted).encode())
                self._adopted = 0
            if self._ended > 0:
                self._channel.send(control.DONE + str(self._ended).encode())
                self._ended = 0
        except BlockingIOError:
            asyncio.get_running_loop().call_later(RETRY_REPORT_S, self._report)
        except OSError:
            self._adopted = self._ended = 0  # the supervisor is gone and counts no more


def _reporting(ended: Callable[[], None]) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol, which also says when a connection has ended."""

    class Reporting(HttpToolsProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended()

    return Reporting


def work(settings: ServiceSettings, channel: socket.socket, metrics_folder: str) -> int:
    """Serve until the supervisor says stop; return the exit code.

    Args:
        settings: All of them.
        channel: To the supervisor.
        metrics_folder: Where all workers keep their metrics.
    """
    share_metrics(Path(metrics_folder))
    return run(WorkerServer(settings, channel=channel), sockets=[])
