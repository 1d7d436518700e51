"""The supervisor with workers of a few lines: starts, shares, restarts, gives up, stops."""

import asyncio
import os
import signal
import socket
import sys
import textwrap
from contextlib import asynccontextmanager

import pytest

from service import supervisor as module
from service.server import listen
from service.settings import load_settings
from service.supervisor import Supervisor
from tests.processes import until

# Says its name to every connection and closes it when the peer does; ends on STOP or when the supervisor is gone.
WORKER = textwrap.dedent(
    """
    import os, select, socket, sys
    sys.stdin.buffer.read()
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.setblocking(True)
    channel.send(b"r")
    open_ = []
    while True:
        for ready in select.select([channel, *open_], [], [])[0]:
            if ready is not channel:
                if not ready.recv(100):
                    open_.remove(ready)
                    ready.close()
                    channel.send(b"n1")
                continue
            message, fds, _, _ = socket.recv_fds(channel, 64, 1)
            if message in (b"s", b""):
                sys.exit(0)
            if message == b"c":
                channel.send(b"a1")
                connection = socket.socket(fileno=fds[0])
                connection.sendall(f"{os.getpid()}\\n".encode())
                open_.append(connection)
    """
)
BROKEN = "raise SystemExit(3)"


class Port:
    """A running supervisor."""

    def __init__(self, program, workers, tmp_path):
        settings = load_settings(store=tmp_path, workers=workers, http={"drain_s": 0, "finish_s": 1})
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.greetings = 0
        self.supervisor = Supervisor(
            settings, listener=self.listener, on_ready=self._greet, command=(sys.executable, "-c", program)
        )
        self.running = asyncio.create_task(self.supervisor.run())

    def _greet(self):
        self.greetings += 1

    async def connect(self):
        """Return who answers, and the connection."""
        reader, writer = await asyncio.open_connection(*self.address)
        return int(await asyncio.wait_for(reader.readline(), 10)), writer

    async def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(self.running, 20)


@asynccontextmanager
async def running(program, workers, tmp_path):
    port = Port(program, workers, tmp_path)
    await until(lambda: port.greetings, what="ready")
    writers = []
    try:
        yield port, writers
    finally:
        for writer in writers:
            writer.close()
        if not port.running.done():
            assert await port.stop() == 0


async def test_each_new_connection_goes_to_the_worker_with_the_fewest(tmp_path):
    async with running(WORKER, 3, tmp_path) as (port, writers):
        served = {}
        for _ in range(9):
            pid, writer = await port.connect()
            writers.append(writer)
            served.setdefault(pid, []).append(writer)
        assert sorted(map(len, served.values())) == [3, 3, 3]
        emptied = next(iter(served))
        for writer in served[emptied]:
            writer.close()
        await until(
            lambda: sorted(w.connections for w in port.supervisor._workers) == [0, 3, 3], what="the ends are counted"
        )
        for _ in range(3):
            pid, writer = await port.connect()
            writers.append(writer)
            assert pid == emptied
        assert port.greetings == 1


async def test_connections_that_come_before_all_workers_are_ready_are_shared_by_all(tmp_path):
    first, go = tmp_path / "first", tmp_path / "go"
    os.mkfifo(go)
    # The second worker is not ready before somebody opens the pipe.
    program = f"import os\ntry: os.mkdir({str(first)!r})\nexcept FileExistsError: open({str(go)!r}).close()\n{WORKER}"
    port = Port(program, 2, tmp_path)
    await until(lambda: sum(w.ready for w in port.supervisor._workers) == 1, what="the first is ready")
    early = [asyncio.create_task(port.connect()) for _ in range(4)]
    await asyncio.to_thread(lambda: go.open("w").close())
    served = await asyncio.gather(*early)
    for _, writer in served:
        writer.close()
    pids = [pid for pid, _ in served]
    assert sorted(pids.count(pid) for pid in set(pids)) == [2, 2]
    assert await port.stop() == 0


async def test_a_worker_that_dies_is_replaced_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.01)
    async with running(WORKER, 2, tmp_path) as (port, writers):
        port.supervisor._backoff_s = 0.01
        pid, writer = await port.connect()
        writers.append(writer)
        os.kill(pid, signal.SIGKILL)
        for _ in range(4):
            other, writer = await port.connect()
            writers.append(writer)
            assert other != pid
        await until(lambda: sum(w.ready for w in port.supervisor._workers) == 2, what="a new one")
        assert pid not in {w.process.pid for w in port.supervisor._workers}


async def test_while_nobody_can_serve_connections_wait(tmp_path):
    async with running(WORKER, 1, tmp_path) as (port, writers):
        port.supervisor._backoff_s = 0.05
        pid, writer = await port.connect()
        writers.append(writer)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not port.supervisor._workers, what="it is gone")
        other, writer = await port.connect()
        writers.append(writer)
        assert other != pid


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_connection_that_a_worker_did_not_take_before_it_died_goes_to_another(workers, tmp_path):
    async with running(WORKER, workers, tmp_path) as (port, writers):
        port.supervisor._backoff_s = 0.05
        for _ in range(workers):
            pid, writer = await port.connect()
            writers.append(writer)
        first = port.supervisor._workers[0]
        os.kill(first.process.pid, signal.SIGSTOP)  # it lives, and takes nothing
        asked = [asyncio.create_task(port.connect()) for _ in range(2 * workers)]
        await until(lambda: first.untaken, what="one is handed over")
        os.kill(first.process.pid, signal.SIGKILL)
        for answer in asked:
            pid, writer = await answer
            writers.append(writer)
            assert pid != first.process.pid
        await until(lambda: not any(w.untaken for w in port.supervisor._workers), what="no copy is kept")


async def test_when_no_worker_can_start_the_service_ends_with_1(tmp_path):
    port = Port(BROKEN, 2, tmp_path)
    assert await asyncio.wait_for(port.running, 20) == 1
    assert port.greetings == 0


async def test_when_one_of_two_can_start_the_service_answers_and_goes_on_trying(tmp_path):
    flag = tmp_path / "first"
    program = (
        f"import os\ntry: os.mkdir({str(flag)!r})\nexcept FileExistsError: pass\nelse: raise SystemExit(3)\n{WORKER}"
    )
    async with running(program, 2, tmp_path) as (port, _):
        assert sum(w.ready for w in port.supervisor._workers) == 1
        await until(lambda: sum(w.ready for w in port.supervisor._workers) == 2, what="the second try")


async def test_a_signal_during_the_start_ends_it(tmp_path):
    port = Port("import sys, time\nsys.stdin.buffer.read()\ntime.sleep(60)", 2, tmp_path)
    await until(lambda: len(port.supervisor._workers) == 2, what="they are started")
    started = asyncio.get_running_loop().time()
    for worker in port.supervisor._workers:
        worker.process.kill()  # it does not listen, as a worker does that is still loading
    assert await port.stop() in (0, 1)
    assert asyncio.get_running_loop().time() - started < 10


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_address_is_said_as_it_can_be_asked(host):
    from service.server import address_of

    with listen(host, 0) as sock:
        address = address_of(sock)
    assert address.startswith(("http://127.0.0.1:", "http://[::1]:"))


def test_a_port_that_is_taken_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            listen(*taken.getsockname())
