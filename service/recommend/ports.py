"""What the core needs from the outside: each port has one contract suite that all its adapters pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.recommend.types import Event, ItemId, Subject


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """A subject's events, oldest first, one entry an event; both tuples have the same length."""

    item_ids: tuple[ItemId, ...] = ()
    occurred_at: tuple[float, ...] = ()
    """Seconds since the epoch, UTC."""


class HistoryStore(Protocol):
    """Reads what subjects did."""

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        """Return the subject's last `limit` events by `occurred_at`, oldest first; empty for an unknown subject.

        Events that were acknowledged before this call are in it (read your writes).

        Raises:
            StoreUnavailable: The store does not answer in its time limit, or answers with an error.
        """
        ...


class EventSink(Protocol):
    """Keeps what subjects did."""

    async def append(self, events: Sequence[Event]) -> tuple[bool, ...]:
        """Keep the events, all or none, durably, and return for each whether it was new (False: a duplicate id).

        Of two events with one `event_id` in the same call, the first is new and the second a duplicate.

        Raises:
            StoreUnavailable: Nothing of this call can be taken as kept; the same call may be repeated safely.
        """
        ...


class Store(HistoryStore, EventSink, Protocol):
    """Both halves, with a life of their own."""

    async def ping(self) -> None:
        """Return when the store answers.

        Raises:
            StoreUnavailable: It does not.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files; idempotent."""
        ...
