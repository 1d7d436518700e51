"""What the endpoints work with. Built by the composition root; nothing else is reached from an endpoint."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from api_schemas.health import Ready
from index.aliases import AliasStore
from index.store import ArtifactStore
from service.recommend.admission import Admission
from service.recommend.catalogue import CatalogueItems
from service.recommend.interests import InterestTimeline
from service.recommend.once import AnswerStore
from service.recommend.ports import EventSink, UserStore
from service.recommend.recommender import Recommender
from service.recommend.shown import ShownSlates
from service.runtime.builds import Builder


@dataclass(frozen=True, slots=True)
class Served:
    """What answers now."""

    model_version: str
    ranker_version: str | None
    index_version: str
    index_built_at: datetime
    scenarios: Mapping[str, tuple[str, ...]]
    """The index versions that answer each scenario but `default`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The running service, as far as HTTP is concerned."""

    recommender: Recommender
    admission: Admission
    """The recommender's."""
    interests: InterestTimeline
    events: EventSink
    users: UserStore
    shown: ShownSlates
    answers: AnswerStore
    artifacts: ArtifactStore
    aliases: AliasStore
    builds: Builder
    items: CatalogueItems
    served: Callable[[], Served | None]
    ready: Callable[[], Awaitable[Ready]]


PartsSource = Callable[[], Parts]
"""Gives the parts of the running service; they exist from start-up on."""
