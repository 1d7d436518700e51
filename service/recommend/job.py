"""What goes through the stages: a job in, an answer out, and the history in between.

Legend: `L` history, `H` history row, `Q` queries of a user, `D` vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.recommend.deadline import Deadline
from service.recommend.filters import Picks
from service.recommend.ports import StoredHistory
from service.recommend.servable import Ages, EncodedItems, Mask, Ranker, Servable
from service.recommend.types import ItemId, Query, ScoredItem, UserState, Vectors

NO_HISTORY = StoredHistory()


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One query with all that was awaited for it: from here on nothing is awaited, only computed."""

    servable: Servable
    query: Query
    deadline: Deadline
    stored: StoredHistory = NO_HISTORY
    shown_before: tuple[ItemId, ...] = ()
    """Items of the recommendations that this one continues."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """All usable past items of a user, whatever a model makes of them: oldest first, each once, at its latest place."""

    item_ids: tuple[ItemId, ...] = ()
    rows: tuple[int, ...] = ()
    """Row of each item; an item unknown to the catalogue has -2 - i, where i is its place in `brought`."""
    brought: tuple[Mapping[str, Vectors], ...] = ()
    """Raw vectors by modality, of the items that came with their own."""
    occurred_at: tuple[float, ...] = ()
    """Seconds, of each item; empty where no model of the version reads ages."""


@dataclass(frozen=True, slots=True, eq=False)
class Remains:
    """What is left of a history, place by place, when something of it is switched off."""

    rows_LH: Vectors
    mask_L: Mask


@dataclass(frozen=True, slots=True, eq=False)
class UsedHistory:
    """The past items that a model encodes, oldest first, at most its L, each once."""

    item_ids: tuple[ItemId, ...] = ()
    rows: tuple[int, ...] = ()
    """As in `Past`."""
    brought: EncodedItems | None = None
    """What the model makes of the items that came with their own modality vectors."""
    remains: Remains | None = None
    """None: all of it counts."""
    ages_L: Ages | None = None
    """Seconds from each behaviour to the latest of them; None: the model reads none."""

    @property
    def num_used(self) -> int:
        """How many of the items reach the model."""
        return len(self.rows) if self.remains is None else int(self.remains.mask_L.sum())

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """What one model has to go by for a user."""

    history: UsedHistory
    own_QD: Vectors | None = None
    """The queries that it has learned for this user; looked up only where there is no usable history."""

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.history.rows) or self.own_QD is not None


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What the servable's ranker may order: rows that may be shown, in the retriever's order and with its scores."""

    picks: Picks
    k: int
    """So many are shown at most."""
    min_score: float | None
    """What an item has to score to be shown."""
    past: Past
    diversity: float = 0.0
    """How much what is like the items chosen already counts for less."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the compute stages made of a job."""

    items: tuple[ScoredItem, ...]
    rows: tuple[int, ...]
    """Row of each item."""
    basis: Basis
    """Of the model whose scores the items have."""
    user_state: UserState
    unknown_item_ids: tuple[ItemId, ...]
    candidates: Candidates | None = None
    """None: there is no ranker, or nothing for it to order."""
    ranker: Ranker | None = None
    """The one that has ordered the items; None: none has."""
    degraded: tuple[str, ...] = ()
    failure: Exception | None = None
    """What the model raised, when it failed."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
