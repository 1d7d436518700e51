"""What the faults share: a small catalogue under several versions, requests, and events that are kept count of."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import prepare, server
from benchmarks.chaos.callers import Answer, Ask
from index.rebuild import rebuild
from index.store import ArtifactStore

NUM_ITEMS = 5_000
NUM_VERSIONS = 3
NUM_USERS = 500
K = 20
EVENTS_PER_REQUEST = 500


@dataclass(frozen=True, slots=True)
class Versions:
    """A store with snapshots of different models over one catalogue, the first of which is current."""

    store: ArtifactStore
    snapshots: tuple[str, ...]
    data: Path


def versions(folder: Path) -> Versions:
    """Return a copy of the store in `folder`, to be broken at will."""
    made = _made()
    shutil.copytree(made.root, folder / "store")
    store = ArtifactStore(folder / "store")
    snapshots = tuple(entry.version for entry in store.list() if entry.kind == "snapshot")
    store.set_current(snapshots[0])
    return Versions(store, snapshots, prepare.FOLDER / f"data-{NUM_ITEMS}")


def _made() -> ArtifactStore:
    root = prepare.FOLDER / "chaos"
    if prepare.is_usable(ArtifactStore(root)):
        return ArtifactStore(root)
    unfinished = root.with_suffix(".new")
    for leftover in (root, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    store = ArtifactStore(unfinished)
    data = prepare.dataset(NUM_ITEMS)
    for seed in range(NUM_VERSIONS):
        rebuild(store, bundle_version=prepare.publish(store, data, seed=seed), dataset=data)
    unfinished.rename(root)
    return ArtifactStore(root)


def user(number: int) -> str:
    """Return the user of a request."""
    return f"user-{number % NUM_USERS}"


def own_items(number: int, *, count: int = 10) -> list[str]:
    """Return items that a user has and no other, so that an answer with them tells whose it is."""
    first = number % NUM_USERS * count
    return [prepare.item_id(row) for row in range(first, first + count)]


def recommend(number: int) -> tuple[str, object]:
    """Ask for what a user is recommended, by the history that is stored."""
    return "/v1/recommendations", {"user_id": user(number), "k": K}


def event(number: int) -> dict[str, str]:
    """Return an event that no other number has."""
    return {
        "event_id": f"event-{number}",
        "user_id": user(number),
        "item_id": prepare.item_id(number % NUM_ITEMS),
        "type": "click",
        "occurred_at": "2026-01-01T00:00:00Z",
    }


def one_event(number: int) -> tuple[str, object]:
    """Send one event."""
    return "/v1/events", {"events": [event(number)]}


def mixed(share_of_events: int) -> Ask:
    """Return requests of which one in so many brings an event."""
    return lambda number: one_event(number) if number % share_of_events == 0 else recommend(number)


def fill(service: server.Service, *, events_per_user: int = 20) -> None:
    """Store a history for every user.

    Raises:
        RuntimeError: The service did not take all events.
    """
    numbers = range(-NUM_USERS * events_per_user, 0)
    send(service, [event(number) for number in numbers])


def send(service: server.Service, events: list[dict[str, str]]) -> int:
    """Send events, and return how many of them the service had not yet.

    Raises:
        RuntimeError: The service did not take all of them.
    """
    fresh = 0
    for start in range(0, len(events), EVENTS_PER_REQUEST):
        batch = events[start : start + EVENTS_PER_REQUEST]
        answer, _ = service.post("/v1/events", {"events": batch})
        if answer["rejected"]:
            raise RuntimeError(f"events were rejected: {answer}")
        fresh += int(answer["accepted"])
    return fresh


def lost_events(service: server.Service, answers: list[Answer]) -> tuple[int, int]:
    """Return how many events were acknowledged, and how many of these the service does not know any more."""
    acknowledged = [event(one.number) for one in answers if one.status == "200"]
    return len(acknowledged), send(service, acknowledged)


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = 60.0) -> float:
    """Wait for another process; return how long that took.

    Raises:
        RuntimeError: It did not come in time.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise RuntimeError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(0.02)
    return time.monotonic() - started
