"""`/v1/users/{user_id}/...`: what is kept of a user, and what is made of it."""

from datetime import datetime
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from api_schemas.aliases import DEFAULT_SCENARIO, Scenario
from api_schemas.base import Request
from api_schemas.fields import MAX_TIMEOUT_MS, Body, ExternalId
from api_schemas.manifest import ExplanationMethod
from api_schemas.recommend import Answer, ModalityShare, ModelVersion

MAX_PAGE = 500
MAX_WINDOWS = 100


class EventsQuery(Request):
    """Which page of a user's events."""

    cursor: str | None = Field(
        default=None, min_length=1, max_length=64, description="`next_cursor` of the page before; by default the first."
    )
    limit: int = Field(default=50, ge=1, le=MAX_PAGE, description="How many events at most.")


class KeptEvent(TypedDict):
    """An event as it is kept."""

    event_id: str
    item_id: str
    type: str
    value: float | None
    occurred_at: datetime
    recommendation_id: str | None


class EventsPage(TypedDict):
    """The answer of `GET /v1/users/{user_id}/events`."""

    events: Annotated[list[KeptEvent], Field(description="Newest first.")]
    next_cursor: Annotated[
        str | None,
        Field(description="For the page after this one; null: this is the last. It stays good while events arrive."),
    ]


class MergeRequest(Body):
    """The body of `POST /v1/users/{user_id}/merge`."""

    session_id: ExternalId = Field(description="What was done in this session becomes the user's.")


class MergeAnswer(TypedDict):
    """The answer of `POST /v1/users/{user_id}/merge`: zeros when nothing was kept of the session (any more)."""

    events: Annotated[int, Field(description="Events that have become the user's; the oldest over the bound are gone.")]
    blocks: Annotated[int, Field(description="Blocks that have become the user's and that the user did not have.")]


class BlockedItem(TypedDict):
    """An item that is never shown to a user."""

    item_id: str
    blocked_at: datetime


class BlocksAnswer(TypedDict):
    """The answer of `GET /v1/users/{user_id}/blocks`."""

    blocks: Annotated[list[BlockedItem], Field(description="All of them, the latest first.")]


class InterestsQuery(Request):
    """How to cut a history into windows, and how to explain it."""

    window: str = Field(
        default="7d",
        max_length=4,
        pattern=r"^[1-9][0-9]{0,2}[hdw]$",
        description="How long a window is, in hours, days or weeks: `6h`, `7d`, `4w`. Windows begin at multiples of "
        "it, counted from Monday, 5 January 1970, 0:00 UTC.",
    )
    limit: int = Field(default=12, ge=1, le=MAX_WINDOWS, description="So many of the latest windows.")
    method: ExplanationMethod | None = Field(default=None, description="By default the model's own.")
    scenario: Scenario = Field(
        default=DEFAULT_SCENARIO,
        description="The alias whose version answers, as it does for the user's recommendations; see `/v1/aliases`.",
    )
    timeout_ms: int | None = Field(
        default=None, ge=1, le=MAX_TIMEOUT_MS, description="Answer in this time or with 504; the service may ask less."
    )


class InterestWindow(TypedDict):
    """What a user was interested in at the end of a window."""

    starts_at: datetime
    ends_at: Annotated[datetime, Field(description="The first moment after the window.")]
    num_events: Annotated[int, Field(description="Of this window. Without any, nothing else is said of it.")]
    events_used: Annotated[int, Field(description="Past items up to the window's end that were encoded.")]
    modality_interest: Annotated[
        list[ModalityShare],
        Field(
            description="As of a recommendation at the window's end; empty for a window without events, or when there "
            "was nothing that the model could read."
        ),
    ]
    method: Annotated[ExplanationMethod | None, Field(description="By which the shares were found; null without any.")]


class InterestsAnswer(Answer):
    """The answer of `GET /v1/users/{user_id}/interests`."""

    ranker: Annotated[
        ModelVersion | None,
        Field(description="The model that ordered the recommendations of some window, whose shares are then its own."),
    ]
    windows: Annotated[list[InterestWindow], Field(description="Oldest first; empty for a user without events.")]
    faithfulness: Annotated[
        dict[str, float], Field(description="Of the latest window's model and method, measured at release.")
    ]
    caveats: list[str]
