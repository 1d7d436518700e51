"""Starts and stops the servers that are measured, and reads what they cost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
EXECUTABLE = Path(sys.executable).parent / "prismrec-serve"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s_of(process_id: int) -> float:
    """Return the processor time that one process has used so far."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def free_port() -> int:
    """Return a port on loopback that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Service:
    """A running `prismrec-serve` and its worker processes."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def wait_until_ready(self) -> float:
        """Return how many seconds pass until it answers.

        Raises:
            RuntimeError: It has ended, or is not ready in time.
        """
        started = time.monotonic()
        while time.monotonic() - started < START_TIMEOUT_S and self.process.poll() is None:
            try:
                self.get("/readyz")
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
            else:
                return time.monotonic() - started
        raise RuntimeError(f"the service is not ready: {self.log.read_text()[-2000:]}")

    def stop(self) -> int:
        """Ask it to end, wait for it, and return its exit code; by force when it does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def kill(self) -> None:
        """Kill all its processes at once, as the kernel does when memory is short."""
        for process_id in self.process_ids() if self.process.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        self.process.wait()

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON answer of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def post(self, path: str, body: object) -> tuple[dict[str, Any], str]:
        """Return the JSON answer of a POST and its Server-Timing header."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response), response.headers.get("server-timing", "")

    def process_ids(self) -> list[int]:
        """Return the ids of the service's processes, its parent first."""
        found = [self.process.pid]
        for parent in found:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def worker_ids(self) -> list[int]:
        """Return the ids of the processes that answer."""
        return self.process_ids()[2:] or [self.process.pid]  # with several, after a supervisor and a fork server

    def num_descriptors(self) -> int:
        """Return how many files and sockets its processes have open."""
        return sum(len(list(Path(f"/proc/{process_id}/fd").iterdir())) for process_id in self.process_ids())

    def cpu_s(self) -> float:
        """Return the processor time that all its processes have used so far."""
        return sum(map(cpu_s_of, self.process_ids()))

    def memory_mib(self) -> list[dict[str, float]]:
        """Return for each process its resident memory, and its share of it when shared pages are divided (PSS)."""
        rows = []
        for process_id in self.process_ids():
            values = {}
            for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()[1:]:
                name, value = line.split(":")
                values[name] = round(int(value.split()[0]) / 1024, 1)
            rows.append({"rss_mib": values["Rss"], "pss_mib": values["Pss"], "private_mib": values["Private_Dirty"]})
        return rows


def launch(
    store: Path,
    *,
    history: str,
    workers: int,
    log: Path,
    executable: Path = EXECUTABLE,
    port: int = 0,
    settings: Mapping[str, str] | None = None,
) -> Service:
    """Start the service and return at once.

    Args:
        store: Of bundles and snapshots.
        history: Where events are kept.
        workers: Processes that answer.
        log: What it says is added to this file.
        executable: `prismrec-serve`, of whichever installation.
        port: 0 takes a free one.
        settings: Variables of the environment beyond these.
    """
    port = port or free_port()
    command = [executable, "--store", store, "--host", "127.0.0.1", "--port", port]
    command += ["--workers", workers, "--history", history]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PRISMREC_HTTP__DRAIN_S": "0", **(settings or {})},
        )
    return Service(process, port, log)


@contextmanager
def service(
    store: Path,
    *,
    history: str,
    workers: int,
    log: Path,
    executable: Path = EXECUTABLE,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """Start the service, wait until it is ready, and stop it with SIGTERM; `launch` explains the arguments.

    Raises:
        RuntimeError: It did not become ready in time, or did not stop with 0.
    """
    log.unlink(missing_ok=True)
    running = launch(store, history=history, workers=workers, log=log, executable=executable, settings=settings)
    try:
        running.wait_until_ready()
        yield running
    finally:
        code = running.stop()
    if code != 0:
        raise RuntimeError(f"the service ended with {code}: {log.read_text()[-2000:]}")


class Redis:
    """A redis-server that writes every command to disk before it answers; it can be killed, hung and started again."""

    def __init__(self, folder: Path) -> None:
        """Prepare one whose data lie in `folder`.

        Raises:
            RuntimeError: redis-server is not installed.
        """
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError("redis-server is not installed (apt-get install redis-server)")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"redis://127.0.0.1:{self.port}/0"
        self._command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command += ["--appendonly", "yes", "--appendfsync", "always"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: It does not answer within ten seconds.
        """
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while self.say("PING") != "+PONG":
            if time.monotonic() > end:
                raise RuntimeError("redis-server does not answer")
            time.sleep(0.02)

    def say(self, *words: str) -> str:
        """Send one command and return the first line of the answer; nothing when there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock, sock.makefile("rwb") as file:
                file.write(b"*%d\r\n" % len(words))
                for word in words:
                    file.write(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
                file.flush()
                return file.readline().decode().strip()
        except OSError:
            return ""

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with a signal and wait until it is gone."""
        if self._process is not None:
            self.send_signal(signal.SIGCONT)
            self.send_signal(number)
            self._process.wait(timeout=STOP_TIMEOUT_S)
            self._process = None


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """Run a durable redis-server on a free port, with its data in `folder`."""
    server = Redis(folder)
    try:
        server.start()
        yield server
    finally:
        server.end()
