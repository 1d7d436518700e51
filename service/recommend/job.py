"""What goes through the stages: a job in, an answer out, and the history in between."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.recommend.deadline import Deadline
from service.recommend.ports import StoredHistory
from service.recommend.servable import EncodedItems, Servable
from service.recommend.types import ItemId, Query, ScoredItem, UserState, Vectors

NO_HISTORY = StoredHistory()


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One query with all that was awaited for it: from here on nothing is awaited, only computed."""

    servable: Servable
    query: Query
    deadline: Deadline
    stored: StoredHistory = NO_HISTORY


@dataclass(frozen=True, slots=True, eq=False)
class UsedHistory:
    """The past items that are encoded, oldest first, at most L, each once."""

    item_ids: tuple[ItemId, ...] = ()
    rows: tuple[int, ...] = ()
    """Row of each item; an item unknown to the catalogue has -2 - i, where i is its place in `brought`."""
    brought: EncodedItems | None = None
    """Items that came with their own modality vectors."""

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the compute stages made of a job."""

    items: tuple[ScoredItem, ...]
    rows: tuple[int, ...]
    """Row of each item."""
    history: UsedHistory
    user_state: UserState
    unknown_item_ids: tuple[ItemId, ...]
    own_QD: Vectors | None = None
    """The user's learned queries, when the model answered from them and not from a history."""
    degraded: tuple[str, ...] = ()
    failure: Exception | None = None
    """What the model raised, when it failed."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
