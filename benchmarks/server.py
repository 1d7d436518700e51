"""Starts and stops the servers that are measured, and reads what they cost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 120.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


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

    def get(self, path: str) -> dict[str, object]:
        """Return the JSON answer of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            answer: dict[str, object] = json.load(response)
            return answer

    def post(self, path: str, body: object) -> tuple[dict[str, object], str]:
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

    def cpu_s(self) -> float:
        """Return the processor time that all its processes have used so far."""
        total = 0
        for process_id in self.process_ids():
            fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS_PER_S

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


@contextmanager
def service(executable: Path, store: Path, *, history: str, workers: int, log: Path) -> Iterator[Service]:
    """Start the service, wait until it is ready, and stop it with SIGTERM.

    Raises:
        RuntimeError: It did not become ready in time, or did not stop with 0.
    """
    port = free_port()
    command = [executable, "--store", store, "--host", "127.0.0.1", "--port", port]
    command += ["--workers", workers, "--history", history]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PRISMREC_HTTP__DRAIN_S": "0"},
        )
        running = Service(process, port)
        try:
            _wait_until_ready(running, log)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
    if code != 0:
        raise RuntimeError(f"the service ended with {code}: {log.read_text()[-2000:]}")


def _wait_until_ready(running: Service, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and running.process.poll() is None:
        try:
            running.get("/readyz")
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the service is not ready: {log.read_text()[-2000:]}")


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """Start a durable redis-server on a free port, with its data in `folder`, and give its address."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError("redis-server is not installed (apt-get install redis-server)")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(timeout=30)
