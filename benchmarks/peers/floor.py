"""The smallest honest server: uvicorn reads the body, one matrix product finds the items, and their ids go out.

No schema, no store, no encoder: the vectors of the users are made when it starts, and what they have seen is known. It
searches as the service does, so what the service takes beyond this is what all the rest costs.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import server
from benchmarks.peers.environments import process
from benchmarks.peers.task import LENGTH, NUM_USERS, K, Peer, Running, Task, queries_of

STORE, ITEMS = "FLOOR_STORE", "FLOOR_ITEMS"


class App:
    """An ASGI application."""

    def __init__(self, task: Task) -> None:
        """Load the catalogue and encode the users."""
        self._loaded = task.servable()
        self._servable = self._loaded.__enter__()
        self._queries_BQD = queries_of(self._servable, task.histories)
        self._seen = [set(rows) for rows in task.histories.tolist()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has them
        """Answer one request."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self._loaded.__exit__(None, None, None)
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        user = json.loads(body)["user"] if body else 0
        _, (rows,) = self._servable.search(self._queries_BQD[user : user + 1], k=K + LENGTH)
        seen = self._seen[user]
        best = [row for row in rows.tolist() if row not in seen][:K]
        content = json.dumps(self._servable.item_ids(best)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def app() -> App:
    """Make the application of one worker."""
    return App(Task(Path(os.environ[STORE]), Path(), num_items=int(os.environ[ITEMS]), workers=1))


@contextmanager
def start(task: Task) -> Iterator[Running]:
    """Run uvicorn with as many workers as the service has."""
    port = server.free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.peers.floor:app", "--port", port]
    command += ["--workers", task.workers, "--http", "httptools", "--loop", "uvloop", "--no-access-log"]
    variables = {STORE: str(task.store), ITEMS: str(task.num_items)}
    with process(command, port=port, ready="/", log=task.folder / "floor.log", variables=variables):
        yield Running(port, "/", [{"user": user} for user in range(NUM_USERS)], list)


PEER = Peer("floor", "uvicorn and the same search, nothing else", start)
