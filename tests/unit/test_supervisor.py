"""The supervisor with workers of a few lines: starts, shares, restarts, gives up, stops."""

import asyncio
import os
import select
import signal
import socket
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service import supervisor as module
from service.fork_server import ForkServer
from service.server import listen
from service.settings import load_settings
from service.supervisor import Supervisor
from tests.processes import is_running, until

# Later versions of Python warn of any fork beside threads; what is forked here uses none of theirs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def greet(channel, _note):
    """Say its name to every connection and close it when the peer does; end on STOP or when the supervisor is gone."""
    channel.setblocking(True)
    channel.send(b"r")
    connections = []
    while True:
        for ready in select.select([channel, *connections], [], [])[0]:
            if ready is not channel:
                if not ready.recv(100):
                    connections.remove(ready)
                    ready.close()
                    channel.send(b"n1")
                continue
            message, fds, _, _ = socket.recv_fds(channel, 64, 1)
            if message in (b"s", b""):
                return 0
            if message == b"c":
                channel.send(b"a1")
                connection = socket.socket(fileno=fds[0])
                connection.sendall(f"{os.getpid()}\n".encode())
                connections.append(connection)


def is_first(path):
    """Tell the first who asks, in whichever process, that it is."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def open_files(pid):
    return [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]


class Port:
    """A running supervisor."""

    def __init__(self, work, workers, tmp_path):
        settings = load_settings(store=tmp_path, workers=workers, http={"drain_s": 0, "finish_s": 1})
        self.fork_server = ForkServer(work)
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.greetings = 0
        self.supervisor = Supervisor(
            settings, listener=self.listener, fork_server=self.fork_server, on_ready=self._greet
        )
        self.running = asyncio.create_task(self._run())

    async def _run(self):
        with self.fork_server:
            return await self.supervisor.run()

    @property
    def workers(self):
        return list(self.supervisor._workers.values())

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
async def running(work, workers, tmp_path):
    port = Port(work, workers, tmp_path)
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
    async with running(greet, 3, tmp_path) as (port, writers):
        served = {}
        for _ in range(9):
            pid, writer = await port.connect()
            writers.append(writer)
            served.setdefault(pid, []).append(writer)
        assert sorted(map(len, served.values())) == [3, 3, 3]
        emptied = next(iter(served))
        for writer in served[emptied]:
            writer.close()
        await until(lambda: sorted(w.connections for w in port.workers) == [0, 3, 3], what="the ends are counted")
        for _ in range(3):
            pid, writer = await port.connect()
            writers.append(writer)
            assert pid == emptied
        assert port.greetings == 1


async def test_connections_that_come_before_all_workers_are_ready_are_shared_by_all(tmp_path):
    first, go = tmp_path / "first", tmp_path / "go"
    os.mkfifo(go)

    def work(channel, note):
        if not is_first(first):
            go.open().close()  # not ready before somebody opens the pipe
        return greet(channel, note)

    port = Port(work, 2, tmp_path)
    await until(lambda: sum(w.ready for w in port.workers) == 1, what="the first is ready")
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
    async with running(greet, 2, tmp_path) as (port, writers):
        port.supervisor._backoff_s = 0.01
        pid, writer = await port.connect()
        writers.append(writer)
        os.kill(pid, signal.SIGKILL)
        for _ in range(4):
            other, writer = await port.connect()
            writers.append(writer)
            assert other != pid
        await until(lambda: sum(w.ready for w in port.workers) == 2, what="a new one")
        assert pid not in {w.pid for w in port.workers}


async def test_while_nobody_can_serve_connections_wait(tmp_path):
    async with running(greet, 1, tmp_path) as (port, writers):
        port.supervisor._backoff_s = 0.05
        pid, writer = await port.connect()
        writers.append(writer)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not port.workers, what="it is gone")
        other, writer = await port.connect()
        writers.append(writer)
        assert other != pid


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_connection_that_a_worker_did_not_take_before_it_died_goes_to_another(workers, tmp_path):
    async with running(greet, workers, tmp_path) as (port, writers):
        port.supervisor._backoff_s = 0.05
        for _ in range(workers):
            pid, writer = await port.connect()
            writers.append(writer)
        first = port.workers[0]
        os.kill(first.pid, signal.SIGSTOP)  # it lives, and takes nothing
        asked = [asyncio.create_task(port.connect()) for _ in range(2 * workers)]
        await until(lambda: first.untaken, what="one is handed over")
        os.kill(first.pid, signal.SIGKILL)
        for answer in asked:
            pid, writer = await answer
            writers.append(writer)
            assert pid != first.pid
        await until(lambda: not any(w.untaken for w in port.workers), what="no copy is kept")


async def test_when_no_worker_can_start_the_service_ends_with_1(tmp_path):
    port = Port(lambda _channel, _note: 3, 2, tmp_path)
    assert await asyncio.wait_for(port.running, 20) == 1
    assert port.greetings == 0


async def test_when_one_of_two_can_start_the_service_answers_and_goes_on_trying(tmp_path):
    def work(channel, note):
        return 3 if is_first(tmp_path / "first") else greet(channel, note)

    async with running(work, 2, tmp_path) as (port, _):
        assert sum(w.ready for w in port.workers) == 1
        await until(lambda: sum(w.ready for w in port.workers) == 2, what="the second try")


async def test_a_signal_during_the_start_ends_it(tmp_path):
    port = Port(lambda _channel, _note: time.sleep(60), 2, tmp_path)
    await until(lambda: [w.pid is not None for w in port.workers] == [True, True], what="they are started")
    started = asyncio.get_running_loop().time()
    for worker in port.workers:
        os.kill(worker.pid, signal.SIGKILL)  # it does not listen, as a worker does that is still loading
    assert await port.stop() in (0, 1)
    assert asyncio.get_running_loop().time() - started < 10


async def test_workers_are_forked_and_begin_with_what_was_there(tmp_path, monkeypatch):
    was_there = tmp_path / "was-there"
    here = {"value": "set before the fork"}

    def work(channel, note):
        was_there.write_text(f"{here['value']}, {note}")
        return greet(channel, note)

    async with running(work, 1, tmp_path) as (port, _):
        here["value"] = "set after it"
        assert was_there.read_text() == f"set before the fork, {port.supervisor._metrics_folder}"


async def test_a_worker_has_nothing_of_the_supervisor(tmp_path):
    """Neither its port, which would stay open, nor other workers' channels, which would not end."""
    async with running(greet, 2, tmp_path) as (port, writers):
        for _ in range(2):
            writers.append((await port.connect())[1])
        for worker in port.workers:
            links = open_files(worker.pid)
            assert f"socket:[{os.fstat(port.listener.fileno()).st_ino}]" not in links
            peers = {f"socket:[{os.fstat(other.channel.fileno()).st_ino}]" for other in port.workers}
            assert not peers & set(links)


async def test_without_the_fork_server_the_service_ends_in_order_with_1(tmp_path):
    port = Port(greet, 2, tmp_path)
    await until(lambda: port.greetings, what="ready")
    pids = [worker.pid for worker in port.workers]
    _, writer = await port.connect()
    os.kill(port.fork_server._pid, signal.SIGKILL)
    assert await asyncio.wait_for(port.running, 20) == 1
    writer.close()
    await until(lambda: not any(is_running(pid) for pid in pids), what="both have ended")


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda *_: 3, 3),
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
        (lambda *_: {}["a failure"], 1),
        (lambda *_: os._exit(7), 7),
    ],
)
def test_how_a_worker_ended_is_told(work, code, capfd):
    with ForkServer(work) as fork_server:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fork_server.fork(41, end=theirs, note="")
        told = []
        while len(told) < 2:
            select.select([fork_server.channel], [], [], 10)
            told.append(fork_server.hear())
    assert told[0].number == told[1].number == 41
    assert told[1].exit_code == code
    assert ("KeyError: 'a failure'" in capfd.readouterr().err) == (code == 1)


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
