"""A lean load client for one HTTP/1.1 server on this machine: raw sockets and `select`, nothing else.

Open loop (`--rate`): requests are due at fixed times whatever the server does, and a latency counts from the time that
its request was due. A server that stalls therefore pays for every request that waited (no coordinated omission).
Closed loop (`--concurrency`): each connection sends its next request when its last answer has come.

`select.select` and not asyncio, because its timeout is in microseconds where epoll's is in milliseconds. A request
costs some 0.05 ms (closed) to 0.1 ms (open) of processor time, which each summary states: on a small machine the client
takes that from the server. The address is always 127.0.0.1, and a run always ends by itself.
"""

import argparse
import itertools
import json
import math
import random
import resource
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRACE_S = 5.0  # how long answers may come after the last request was due
CONTENT_LENGTH = b"content-length:"
LONGEST_S = 14_400.0
PARTS = 10
"""A run is cut into so many parts, each with its percentiles: what grows with the number of requests shows there."""


class Connection:
    """One keep-alive connection with at most one request on its way."""

    __slots__ = ("due", "fd", "port", "received", "sock")

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock = self._connect()
        self.fd = self.sock.fileno()
        self.received = b""
        self.due = 0.0

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def reconnect(self) -> None:
        """Replace a broken connection by a fresh one."""
        self.sock.close()
        self.sock = self._connect()
        self.fd = self.sock.fileno()
        self.received = b""

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at `due`."""
        self.due = due
        self.sock.sendall(request)

    def receive(self) -> str | None:
        """Read what is there; return the status, such as `200`, when an answer is complete.

        Raises:
            ConnectionError: The server closed the connection, or answered without a length.
        """
        chunk = self.sock.recv(262_144)
        if not chunk:
            raise ConnectionError("closed by the server")
        self.received += chunk
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = self.received[:head_end].lower()
        start = head.find(CONTENT_LENGTH)
        if start < 0:
            raise ConnectionError("an answer without content-length")
        length = int(head[start + len(CONTENT_LENGTH) :].split(b"\r\n", 1)[0])
        if len(self.received) < head_end + 4 + length:
            return None
        status = self.received[9:12].decode()
        self.received = b""
        return status


@dataclass
class Outcome:
    """What a run saw. Latencies in seconds, in the order in which the answers came."""

    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    answers: "array[int]" = field(default_factory=lambda: array("H"))
    """For each latency the place of its status in `names`."""
    names: list[str] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0

    def record(self, status: str, latency: float, now: float) -> None:
        """Count an answer."""
        if status not in self.names:
            self.names.append(status)
        self.answers.append(self.names.index(status))
        self.latencies.append(latency)
        self.last = now

    def summary(self) -> dict[str, object]:
        """Return counts, requests a second, and percentiles in milliseconds: of all, by status, by part of the run."""
        statuses = Counter(self.names[answer] for answer in self.answers)
        total, done = len(self.latencies), statuses["200"]
        by_status = {
            name: percentiles([took for took, answer in zip(self.latencies, self.answers, strict=True) if answer == at])
            for at, name in enumerate(self.names)
        }
        cuts = [part * total // PARTS for part in range(PARTS + 1)]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "requests": total,
            "errors": total - done,
            "statuses": dict(sorted(statuses.items())),
            "per_second": round(done / max(self.last - self.first, 1e-9), 1),
            **percentiles(self.latencies),
            "by_status": by_status,
            "parts": [percentiles(self.latencies[start:end]) for start, end in itertools.pairwise(cuts)],
            "client_cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        }


def percentiles(latencies: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p90, p99 and the largest in milliseconds; None where there is no latency."""
    ordered = sorted(latencies)

    def percentile(q: float) -> float | None:
        return round(1e3 * ordered[min(int(q * len(ordered)), len(ordered) - 1)], 3) if ordered else None

    return {"p50_ms": percentile(0.5), "p90_ms": percentile(0.9), "p99_ms": percentile(0.99), "max_ms": percentile(1.0)}


def open_loop(
    connections: list[Connection], requests: list[bytes], *, rate: float, warmup_s: float, seconds: float
) -> Outcome:
    """Send `rate` requests a second for `seconds`, after `warmup_s` that are sent but not counted."""
    outcome = Outcome()
    free = deque(connections)  # first in, first out: the load goes round all connections, and so over all workers
    busy: dict[int, Connection] = {}
    waiting: deque[float] = deque()
    start = time.perf_counter()
    counted_from = start + warmup_s
    outcome.first = counted_from
    total = int(rate * (warmup_s + seconds))
    sent = 0
    end = start + warmup_s + seconds + GRACE_S
    while sent < total or busy or waiting:
        now = time.perf_counter()
        if now > end:
            break
        while sent < total and start + sent / rate <= now:
            waiting.append(start + sent / rate)
            sent += 1
        while waiting and free:
            connection = free.popleft()
            connection.send(random.choice(requests), waiting.popleft())
            busy[connection.fd] = connection
        next_due = start + sent / rate if sent < total else end
        readable, _, _ = select.select(list(busy), [], [], max(next_due - time.perf_counter(), 0.0))
        now = time.perf_counter()
        for fd in readable:
            connection = busy[fd]
            status = _receive(connection)
            if status is None:
                continue
            del busy[fd]
            free.append(connection)
            if connection.due >= counted_from:
                outcome.record(status, now - connection.due, now)
    for due in [*waiting, *(connection.due for connection in busy.values())]:
        if due >= counted_from:
            outcome.record("no answer", end - due, end)
    return outcome


def closed_loop(
    connections: list[Connection], requests: list[bytes], *, warmup_s: float, seconds: float, most: float = math.inf
) -> Outcome:
    """Keep every connection busy for `seconds`, after `warmup_s` that are not counted, or until `most` are answered."""
    outcome = Outcome()
    by_fd = {connection.fd: connection for connection in connections}
    start = time.perf_counter()
    outcome.first = start + warmup_s
    end = start + warmup_s + seconds
    for connection in connections:
        connection.send(random.choice(requests), time.perf_counter())
    while time.perf_counter() < end and len(outcome.latencies) < most:
        for fd in select.select(list(by_fd), [], [], 0.1)[0]:
            connection = by_fd[fd]
            status = _receive(connection)
            if status is None:
                continue
            now = time.perf_counter()
            if now >= outcome.first:
                outcome.record(status, now - connection.due, now)
            if connection.fd != fd:
                by_fd[connection.fd] = by_fd.pop(fd)
            connection.send(random.choice(requests), now)
    return outcome


def _receive(connection: Connection) -> str | None:
    try:
        return connection.receive()
    except (ConnectionError, OSError):
        connection.reconnect()
        return "connection lost"


def encode(method: str, path: str, body: str, *, api_key: str | None) -> bytes:
    """Return a whole request as bytes."""
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    if api_key:
        head += f"x-api-key: {api_key}\r\n"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body.encode())}\r\n"
    return (head + "\r\n" + body).encode()


def main() -> None:
    """Run once and print the summary as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/recommendations")
    parser.add_argument("--bodies", type=Path, required=True, help="one JSON body a line, taken at random")
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--concurrency", type=int, default=64, help="connections")
    parser.add_argument("--warmup-s", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--requests", type=int, help="closed loop: so many answers, however long that takes")
    parser.add_argument("--api-key")
    arguments = parser.parse_args()
    random.seed(0)
    bodies = arguments.bodies.read_text().splitlines()
    requests = [encode("POST", arguments.path, body, api_key=arguments.api_key) for body in bodies]
    connections = [Connection(arguments.port) for _ in range(arguments.concurrency)]
    seconds = min(arguments.seconds, LONGEST_S)
    if arguments.rate:
        outcome = open_loop(connections, requests, rate=arguments.rate, warmup_s=arguments.warmup_s, seconds=seconds)
    else:
        most = arguments.requests or math.inf
        seconds = LONGEST_S if arguments.requests else seconds
        outcome = closed_loop(connections, requests, warmup_s=arguments.warmup_s, seconds=seconds, most=most)
    sys.stdout.write(json.dumps(outcome.summary()) + "\n")


if __name__ == "__main__":
    main()
