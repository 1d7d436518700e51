"""The values that the core works with: frozen, typed, no behaviour beyond small derivations.

Legend of shapes: `B` batch, `L` history length, `M` modalities, `S` state width, `D` vector width, `K` candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, NewType, TypedDict

import numpy as np
from numpy.typing import NDArray

ItemId = NewType("ItemId", str)
"""An item's external id, as the caller knows it."""

Row = NewType("Row", int)
"""An item's row in the tables of one snapshot; never leaves the servable that it belongs to."""

Subject = NewType("Subject", str)
"""Whose history it is: `u:<user_id>` or `s:<session_id>`."""

Vectors = NDArray[np.float32]

DEFAULT_SCENARIO = "default"
"""The scenario that the current version answers."""

ExplainLevel = Literal["none", "summary", "full"]
Method = Literal["interest_gradient", "grad_x_input", "decomposition", "occlusion", "shapley"]
UserState = Literal["known", "cold", "anonymous"]
Source = Literal["model", "popular", "similar"]


def user_subject(user_id: str) -> Subject:
    """Return the subject of a signed-in user."""
    return Subject(f"u:{user_id}")


def user_id_of(subject: Subject | None) -> str | None:
    """Return the id of a signed-in user; None for a session, or for nobody."""
    return subject[2:] if subject is not None and subject.startswith("u:") else None


def session_subject(session_id: str) -> Subject:
    """Return the subject of an anonymous session."""
    return Subject(f"s:{session_id}")


@dataclass(frozen=True, slots=True)
class Event:
    """One behaviour of one user or session."""

    event_id: str
    subject: Subject
    item_id: ItemId
    type: str
    occurred_at: float
    """Seconds since the epoch, UTC."""
    value: float | None = None
    recommendation_id: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One past behaviour as the encoder sees it; `modalities` only for items that the catalogue may not know."""

    item_id: ItemId
    occurred_at: float | None = None
    modalities: Mapping[str, Vectors] | None = None
    """Raw vectors `[D_m]` by modality."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items may be recommended. Empty parts do not restrict."""

    categories_any: tuple[str, ...] = ()
    categories_all: tuple[str, ...] = ()
    categories_none: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str | int | float | bool, ...]] = field(default_factory=dict)
    """Attribute name to the values of which the item must have one."""

    def __bool__(self) -> bool:
        """Tell whether anything is restricted."""
        return bool(self.categories_any or self.categories_all or self.categories_none or self.attributes)


@dataclass(frozen=True, slots=True)
class Without:
    """What of a history is switched off."""

    modalities: tuple[str, ...] = ()
    """Parts that no past item has."""
    item_ids: frozenset[ItemId] = frozenset()
    """Past items whose places are empty."""


@dataclass(frozen=True, slots=True)
class Query:
    """One recommendation request. No subject and no history means: anonymous."""

    subject: Subject | None = None
    history: tuple[HistoryItem, ...] | None = None
    """Inline history, oldest first. With a subject too, it follows the stored one."""
    k: int = 20
    filter: Filter = field(default_factory=Filter)
    exclude_item_ids: frozenset[ItemId] = frozenset()
    candidate_item_ids: tuple[ItemId, ...] | None = None
    include_seen: bool = False
    min_score: float | None = None
    diversity: float = 0.0
    """0 leaves the order to the scores, 1 to variety alone."""
    explain: ExplainLevel = "none"
    method: Method | None = None
    """None: the bundle's default method."""
    scenario: str = DEFAULT_SCENARIO
    model: str | None = None
    """The family or version of a loaded model that shall answer, whatever the scenario says."""
    unit: str = ""
    """What draws an arm of an experiment where there is no subject: the same text, the same arm."""
    store: bool = False
    """Keep for a while what is shown."""
    after: str | None = None
    """A recommendation that this one continues: what was shown in it, or before it, is not shown again."""
    without: Without | None = None
    """What the models shall not see of the history; what was seen stays seen."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of an experiment that a subject is in."""

    experiment: str
    arm: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which loaded version shall answer a query, and why."""

    index_version: str | None = None
    """None: the current one."""
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class ModalityShare:
    """The share that a modality, or another part, has of the interest; the shares of one answer sum to 1."""

    modality: str
    share: float


class HistoryInterest(TypedDict):
    """How much one past item weighs, in all and by modality.

    A dictionary, as it stands on the wire: one full explanation makes a thousand of them, and makes them once.
    """

    item_id: str
    interest: float
    by_modality: dict[str, float]


@dataclass(frozen=True, slots=True)
class Reason:
    """One sentence for people, with the items it rests on. Associative words, unless the method is counterfactual."""

    code: str
    text: str
    evidence_item_ids: tuple[ItemId, ...]


@dataclass(frozen=True, slots=True)
class ItemExplanation:
    """Why one candidate has its score."""

    item_id: ItemId
    score: float
    contributions: Mapping[str, float]
    """By part of the candidate; with `residual` they sum to the score when `additive`."""
    residual: float
    additive: bool
    history: tuple[HistoryInterest, ...]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a whole answer."""

    method: Method
    modality_interest: tuple[ModalityShare, ...]
    history: tuple[HistoryInterest, ...]
    items: tuple[ItemExplanation, ...]
    faithfulness: Mapping[str, float]
    """Measured for this model and method when the bundle was made; empty when it was not measured."""
    caveats: tuple[str, ...]


class ScoredItem(NamedTuple):
    """One line of a slate. A tuple, because tuples are made three times as fast and every answer makes k of them."""

    item_id: ItemId
    rank: int
    """From 1."""
    score: float
    source: Source
    metadata: Mapping[str, object] | None = None
    """Title, description, image_url, categories and further attributes of the catalogue."""
    explanation: ItemExplanation | None = None


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """Which model and index answered."""

    model_name: str
    model_version: str
    index_version: str
    index_built_at: datetime


@dataclass(frozen=True, slots=True)
class Slate:
    """The answer to a query: at most k items, no duplicates, none that a filter removes."""

    items: tuple[ScoredItem, ...]
    user_state: UserState
    events_used: int
    unknown_item_ids: tuple[ItemId, ...]
    version: ServedVersion
    ranker: ServedVersion | None = None
    """The model that ordered the items, whose scores these are; None: the order is the retriever's."""
    degraded: tuple[str, ...] = ()
    """What is missing from the answer and why, such as `store_unavailable`; empty when all is well."""
    explanation: Explanation | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """By stage: store, encode, search, rerank, explain."""
    assignment: Assignment | None = None
    """The arm that answered, where the scenario is an experiment."""
    recommendation_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """Items that were asked for without a user: similar or popular ones."""

    items: tuple[ScoredItem, ...]
    version: ServedVersion
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    assignment: Assignment | None = None
    """Both as of a slate."""


Figures = Mapping[str, float | int | str | None]
"""What was measured when a model was released, by name."""


@dataclass(frozen=True, slots=True)
class ModalityCard:
    """A modality as a model reads it."""

    name: str
    dim: int
    """Width of its raw vector."""
    mask: Figures | None = None
    """Figures of how much of it a learned mask lets through; None: the model has no mask."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a loaded model says of itself, whoever asks."""

    version: ServedVersion
    parts: tuple[str, ...]
    """What an item is made of: the modalities, then what the model adds to them."""
    modalities: tuple[ModalityCard, ...]
    methods: tuple[Method, ...]
    """Explanation methods, the default first."""
    num_known_items: int = 0
    """Items of which it has learned more than their content says."""
    num_known_users: int = 0
    """Users of whom it has learned a vector."""
    fold_in: Figures | None = None
    """How well a user is read from the history beside the learned vector, as measured at release."""
    cold_items: Figures | None = None
    """What it does with new items, as measured at release."""
