"""Real processes for tests: redis-server and prismrec-serve, started on free ports, killed at will."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

START_S = 60.0
PATIENT = {"PRISMREC_EVENTS__READ_TIMEOUT_S": "2"}
"""A machine that tests share with others is late at times, and only tests of lateness are about that."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = START_S) -> None:
    """Poll another process; the only place where tests wait."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.01)


class RedisServer:
    """A real redis-server that writes every command to disk before it answers."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen | None = None

    def start(self) -> "RedisServer":
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", "", *self.arguments),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self.command("PING") == "+PONG", what="redis-server answers")
        return self

    def command(self, *words: str) -> str:
        """Send one command, return the first line of the answer ("" when there is none)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock, sock.makefile("rwb") as file:
                file.write(b"*%d\r\n" % len(words))
                for word in words:
                    file.write(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
                file.flush()
                return file.readline().decode().strip()
        except OSError:
            return ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None:
            self.resume()
            self.kill()


class Service:
    """A real prismrec-serve."""

    def __init__(self, store: Path, *arguments: str, log: Path, **environment: str) -> None:
        self.log = log
        self.store = store
        self.arguments = arguments
        self.environment = environment
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, *, wait: bool = True) -> "Service":
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PRISMREC_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "service", "--store", str(self.store), "--port", str(self.port)),
                    *self.arguments,
                ],
                stdout=log,
                stderr=log,
                env={**variables, "OMP_NUM_THREADS": "1", **PATIENT, **self.environment},
            )
        if wait:
            wait_until(self._has_started, what=f"prismrec-serve: {self.log}")
        return self

    def _has_started(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx2.get(f"{self.url}/livez", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def wait(self, timeout_s: float = 30) -> int:
        assert self.process is not None
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def stop(self) -> None:
        if self.process is not None:
            self.kill()

    def lines(self) -> list[dict[str, object]]:
        """Return the JSON lines of the log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def fork_server(self) -> int:
        """Return the process from which all workers are forked."""
        assert self.process is not None
        (pid,) = _children_of(self.process.pid)
        return pid

    def children(self) -> list[int]:
        """Return the worker processes."""
        return _children_of(self.fork_server())


def _children_of(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], check=False, capture_output=True, text=True)
    return [int(pid) for pid in re.findall(r"\d+", listing.stdout)]


def is_running(pid: int) -> bool:
    """Tell whether a process, which may be none of ours, has not ended yet."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


async def until(condition: Callable[[], bool], *, what: str, timeout_s: float = 30.0) -> None:
    """Let the loop turn until something has happened in it."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain: {what}"
        await asyncio.sleep(0.002)
