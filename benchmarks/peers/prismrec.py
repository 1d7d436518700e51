"""This service, with the histories in its embedded store."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import prepare, server
from benchmarks.peers.task import NUM_USERS, K, Peer, Running, Task

EVENTS_PER_REQUEST = 500


@contextmanager
def start(task: Task) -> Iterator[Running]:
    """Run it and send it the histories."""
    database = task.folder / "events.db"
    for file in task.folder.glob("events.db*"):
        file.unlink()
    with server.service(
        task.store, history=f"sqlite:{database}", workers=task.workers, log=task.folder / "prismrec.log"
    ) as service:
        events = [
            {
                "event_id": f"{user}-{place}",
                "user_id": f"user-{user}",
                "item_id": prepare.item_id(row),
                "type": "click",
                "occurred_at": f"2026-01-01T00:00:{place:02d}Z",
            }
            for user, rows in enumerate(task.histories.tolist())
            for place, row in enumerate(rows)
        ]
        for first in range(0, len(events), EVENTS_PER_REQUEST):
            service.post("/v1/events", {"events": events[first : first + EVENTS_PER_REQUEST]})
        yield Running(
            service.port,
            "/v1/recommendations",
            [{"user_id": f"user-{user}", "k": K} for user in range(NUM_USERS)],
            lambda answer: [item["item_id"] for item in answer["items"]],
        )


PEER = Peer("prismrec", "this service, histories in SQLite", start)
