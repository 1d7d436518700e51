"""What the core needs from the outside: each port has one contract suite that all its adapters pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from service.recommend.types import Event, Filter, ItemId, ServedVersion, Source, Subject, Vectors


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """What a recommendation needs to know of a subject, of one moment: its events and its blocks.

    Events are oldest first, one entry an event; both tuples of them have the same length.
    """

    item_ids: tuple[ItemId, ...] = ()
    occurred_at: tuple[float, ...] = ()
    """Seconds since the epoch, UTC."""
    blocked_item_ids: tuple[ItemId, ...] = ()
    """Never to be shown to this subject; in no order."""
    changes_seq: int = 0
    """Of the latest change of the catalogue that had been acknowledged when this was read; 0: there was none."""


class EventPlace(NamedTuple):
    """Where an event stands among its subject's: by time, then by arrival. It never changes."""

    occurred_us: int
    """Microseconds since the epoch, UTC."""
    seq: int
    """Grows with every event that arrives."""


NEWEST = EventPlace(2**62, 2**62)
"""After every event."""


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event and where it stands."""

    event: Event
    place: EventPlace


@dataclass(frozen=True, slots=True)
class Block:
    """An item that a subject must not be shown."""

    item_id: ItemId
    blocked_at: float
    """Seconds since the epoch, UTC."""


@dataclass(frozen=True, slots=True)
class Merged:
    """How much has changed its subject."""

    num_events: int = 0
    num_blocks: int = 0


class ShownItem(NamedTuple):
    """One line of a slate that was shown; its place is its rank."""

    item_id: ItemId
    score: float
    source: Source


@dataclass(frozen=True, slots=True)
class ShownSlate:
    """What was shown, and all that it was made from."""

    recommendation_id: str
    subject: Subject | None
    served_at: float
    """Seconds since the epoch, UTC."""
    history: tuple[ItemId, ...]
    """What the model read, oldest first."""
    items: tuple[ShownItem, ...]
    version: ServedVersion
    ranker: ServedVersion | None
    k: int
    filter: Filter
    brought: Mapping[ItemId, Mapping[str, Vectors]] = field(default_factory=dict)
    """The vectors that were sent of past items that the catalogue did not know."""
    ages: tuple[float, ...] = ()
    """Seconds from each behaviour of the history to its latest one; empty: the model reads none."""
    shown_before: tuple[ItemId, ...] = ()
    """Items of the slates that this one continues."""

    @property
    def chain(self) -> tuple[ItemId, ...]:
        """All items shown up to here."""
        return (*self.shown_before, *[item.item_id for item in self.items])


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLimits:
    """How much is kept of users and sessions, and how long a call may take."""

    max_events_per_subject: int = 500
    max_blocks_per_subject: int = 1_000
    keep_idle_days: int = 365
    """A subject without a new event for so many days is forgotten."""
    dedupe_days: int = 7
    """Where event ids do not stay as long as their events: one is known for so long, or until its event is trimmed."""
    read_timeout_s: float = 0.25
    write_timeout_s: float = 5.0
    max_waiting: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SlateLimits:
    """How much of what was shown is kept, and how long a call may take."""

    ttl_s: float = 3_600.0
    max_slates: int = 100_000
    """The oldest go first."""
    read_timeout_s: float = 0.25
    write_timeout_s: float = 2.0
    max_waiting: int = 1_000


class SlateStore(Protocol):
    """Keeps for a while what was shown. Nothing here is durable: a crash may lose the last moments.

    Every method raises `StoreUnavailable` when the store does not answer in its time limit, or answers with an error.
    """

    async def keep(self, slates: Sequence[ShownSlate]) -> int:
        """Keep slates until their time is up, and return how many; one that is too large is left out."""
        ...

    async def find(self, recommendation_id: str) -> ShownSlate | None:
        """Return a slate; None when there is none, or its time is up."""
        ...

    async def forget(self, subject: Subject) -> None:
        """Forget all slates of a subject."""
        ...

    async def count(self) -> int:
        """Return how many are kept."""
        ...

    async def close(self) -> None:
        """Let go of connections and files; idempotent."""
        ...


class HistoryStore(Protocol):
    """Reads what subjects did."""

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:
        """Return the subject's last `limit` events by `occurred_at`, and its blocks; empty for an unknown subject.

        What was acknowledged before this call, to whatever process, is in it (read your writes).

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


class UserStore(Protocol):
    """What a user may do with what is kept of them. What changes is durable, all or nothing, when a call returns.

    Every method raises `StoreUnavailable` when the store does not answer in its time limit, or answers with an error;
    the same call may then be repeated safely.
    """

    async def events(self, subject: Subject, *, before: EventPlace = NEWEST, limit: int) -> tuple[KeptEvent, ...]:
        """Return the latest `limit` events before a place, newest first."""
        ...

    async def erase(self, subject: Subject) -> None:
        """Forget all that is kept of a subject, its event ids too; forgetting an unknown one is no error.

        An event that is acknowledged afterwards is the first of a new history, also under an id that was known.
        """
        ...

    async def merge(self, source: Subject, *, into: Subject) -> Merged:
        """Make the events and blocks of one subject another's, and forget the first; nothing when there is none.

        Events keep their time and their id, and what is over the bound is dropped, the oldest first.

        Raises:
            BlocksFull: There would be more blocks than are kept; nothing was changed.
        """
        ...

    async def block(self, subject: Subject, item_id: ItemId, *, at: float) -> None:
        """Never show an item to a subject again; nothing changes when it is blocked already.

        Raises:
            BlocksFull: There are as many as are kept.
        """
        ...

    async def unblock(self, subject: Subject, item_id: ItemId) -> None:
        """Take a block back; nothing changes when there is none."""
        ...

    async def blocks(self, subject: Subject) -> tuple[Block, ...]:
        """Return all of a subject's blocks, the latest first."""
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
