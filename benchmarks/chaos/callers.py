"""Callers of the service that look at every answer: keep-alive connections on a thread of their own.

`benchmarks/client.py` measures speed and looks at nothing but the status; these are slower and see everything.
"""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

LOST = "lost"
"""The status of a request whose connection ended before its answer was whole."""
AFTER_LOSS_S = 0.02
TIMEOUT_S = 30.0

Ask = Callable[[int], tuple[str, object]]
"""From the number of a request to its path and body."""
Body = dict[str, Any]
"""A JSON object."""
Judge = Callable[[int, Body], str | None]
"""From the number of a request and the body of its 200 to what is wrong with it."""


class Answer(NamedTuple):
    """One request and what became of it. Times are of `time.perf_counter`."""

    number: int
    sent_at: float
    took_s: float
    status: str
    degraded: bool
    retry_after: bool


class Callers:
    """So many connections, each of which asks again when it has been answered, as long as the block runs."""

    def __init__(
        self, port: int, ask: Ask, *, connections: int, judge: Judge | None = None, pause_s: float = 0.0, first: int = 0
    ) -> None:
        """Prepare them.

        Args:
            port: On this machine.
            ask: What is asked.
            connections: How many ask at the same time.
            judge: Looks at every answer that is a 200.
            pause_s: Between an answer and the next request of the same connection.
            first: Number of the first request.
        """
        self.answers: list[Answer] = []
        self.complaints: list[str] = []
        self._port = port
        self._ask = ask
        self._judge = judge
        self._connections = connections
        self._pause_s = pause_s
        self._numbers = itertools.count(first)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        """Begin to ask."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Await the last answers."""
        self.stop()

    def stop(self) -> None:
        """Ask no more, and await what has been asked; idempotent."""
        self._stopped.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*[self._call() for _ in range(self._connections)])

    async def _call(self) -> None:
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stopped.is_set():
            number = next(self._numbers)
            path, body = self._ask(number)
            request = encode_request(path, body)
            sent_at = time.perf_counter()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    link = link or await asyncio.open_connection("127.0.0.1", self._port)
                    link[1].write(request)
                    head, content = await read_answer(link[0])
            except (OSError, EOFError, TimeoutError):
                self._note(number, sent_at, LOST)
                _close(link)
                link = None
                await asyncio.sleep(AFTER_LOSS_S)
                continue
            self._note(number, sent_at, head[9:12].decode(), head=head, content=content)
            if b"\r\nconnection: close" in head:
                _close(link)
                link = None
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
        _close(link)

    def _note(self, number: int, sent_at: float, status: str, *, head: bytes = b"", content: bytes = b"") -> None:
        took_s = time.perf_counter() - sent_at
        body = json.loads(content) if status == "200" else {}
        self.answers.append(
            Answer(number, sent_at, took_s, status, bool(body.get("degraded")), b"\r\nretry-after:" in head)
        )
        if self._judge is not None and status == "200":
            complaint = self._judge(number, body)
            if complaint is not None:
                self.complaints.append(complaint)


def encode_request(path: str, body: object) -> bytes:
    """Return a POST as bytes."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the head, in small letters, and the body of one answer.

    Raises:
        EOFError: The connection ended before.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    return head, await reader.readexactly(length)


def _close(link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
    if link is not None:
        link[1].close()


def between(answers: Sequence[Answer], start: float, end: float) -> list[Answer]:
    """Return those that were asked for in a span of time."""
    return [one for one in answers if start <= one.sent_at < end]


def failed(answers: Sequence[Answer]) -> list[Answer]:
    """Return those that are no 200."""
    return [one for one in answers if one.status != "200"]


def quantile_ms(answers: Sequence[Answer], q: float) -> float:
    """Return a quantile of the latency in milliseconds; 0 without answers."""
    ordered = sorted(one.took_s for one in answers)
    return 1e3 * ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def statuses(answers: Sequence[Answer]) -> str:
    """Return how many there are of each status, as text."""
    names = sorted({one.status for one in answers})
    return ", ".join(f"{sum(one.status == name for one in answers):,} x {name}" for name in names) or "none"
