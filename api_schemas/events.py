"""`POST /v1/events`: what users and sessions did."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from api_schemas.fields import MAX_EVENTS, Body, EventType, ExternalId, Instant
from api_schemas.problem import Problem


class Event(Body):
    """One behaviour of one user or one session."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["user_id"]}, {"required": ["session_id"]}]},
    )

    event_id: ExternalId = Field(
        description="Yours, unique among all your events, such as a UUID: a second event with it is a duplicate."
    )
    user_id: ExternalId | None = None
    session_id: ExternalId | None = None
    item_id: ExternalId = Field(description="Need not be in the catalogue yet.")
    type: EventType = Field(description="What happened, such as `click`.")
    value: float | None = Field(default=None, description="How much of it: seconds, a price, a rating.")
    occurred_at: Instant
    recommendation_id: ExternalId | None = Field(default=None, description="Of the answer that led to this.")

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.user_id is None) == (self.session_id is None):
            raise PydanticCustomError("one_subject", "Give user_id or session_id, one of them")
        return self


class EventsRequest(Body):
    """The body of `POST /v1/events`."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS)]


class RejectedEvent(TypedDict):
    """An event that was not kept, by its place in the request."""

    index: int
    problem: Problem


class EventsAnswer(TypedDict):
    """The answer of `POST /v1/events`. Accepted events are durable."""

    accepted: int
    duplicates: Annotated[int, Field(description="Events whose event_id was known already; they change nothing.")]
    rejected: list[RejectedEvent]
