"""`POST /v1/what-if`: a history with something of it switched off, both slates, and what moved between them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from api_schemas.fields import MAX_HISTORY, MAX_MODALITIES, Body, ExternalId
from api_schemas.manifest import ModalityName
from api_schemas.recommend import Answer, ListedItem, ModelVersion, SlateRequest


class Without(Body):
    """What is switched off."""

    modalities: list[ModalityName] = Field(
        default_factory=list,
        max_length=MAX_MODALITIES,
        description="Modalities, or other parts, to take from all past items.",
    )
    item_ids: list[ExternalId] = Field(
        default_factory=list,
        max_length=MAX_HISTORY,
        description="Past items that the model does not see; what is not in the history changes nothing.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.modalities and not self.item_ids:
            raise PydanticCustomError("nothing_off", "Give modalities or item_ids to switch off")
        return self


class WhatIfRequest(SlateRequest):
    """The body of `POST /v1/what-if`: that of a recommendation, and what to switch off in the history."""

    without: Without


class ComparedSlate(TypedDict):
    """One of the two slates."""

    items: list[ListedItem]
    events_used: Annotated[int, Field(description="Past items that reached the model.")]
    ranker: Annotated[ModelVersion | None, Field(description="The model that ordered the items, if one did.")]
    degraded: list[str]


class Change(TypedDict):
    """What became of one item of either slate."""

    item_id: str
    change: Literal["entered", "left", "up", "down", "same"]
    rank_before: int | None
    rank_after: int | None
    rank_change: Annotated[int | None, Field(description="By how many ranks it rose; null in one slate alone.")]
    score_change: Annotated[
        float | None,
        Field(description="By how much its score rose; null in one slate alone, or where the sources differ."),
    ]


class WhatIfAnswer(Answer):
    """The answer of `POST /v1/what-if`."""

    before: ComparedSlate
    after: ComparedSlate
    changes: Annotated[list[Change], Field(description="Those of the second slate in its order, then those that left.")]
    unknown_item_ids: Annotated[list[str], Field(description="Ids that the catalogue does not know and could not use.")]
    caveats: list[str]
