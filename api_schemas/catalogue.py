"""Single items of the catalogue: what they are, and how they change between two rebuilds."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from api_schemas.fields import MAX_MODALITIES, Body, ExternalId
from api_schemas.manifest import ModalityName
from api_schemas.problem import Problem
from api_schemas.recommend import AttributeName, AttributeValue, Labels, Vector

MAX_ATTRIBUTES = 64
MAX_LINES = 10_000
MAX_LINE_BYTES = 1_000_000

Title = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
Description = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2_048)]
Attributes = Annotated[dict[AttributeName, AttributeValue], Field(max_length=MAX_ATTRIBUTES)]
RawVectors = Annotated[dict[ModalityName, Vector], Field(max_length=MAX_MODALITIES)]


class ItemPut(Body):
    """The body of `PUT /v1/items/{item_id}`: all of an item. What is left out, the item has not."""

    modalities: RawVectors = Field(
        default_factory=dict,
        description="Raw vectors by modality, of the widths that the model reads. A missing one is one that the item "
        "has not.",
    )
    title: Title | None = None
    description: Description | None = None
    image_url: Url | None = None
    categories: Labels = Field(default_factory=list)
    attributes: Attributes = Field(default_factory=dict)
    available: bool = Field(default=True, description="False: the item is hidden, in no answer.")


class ItemPatch(Body):
    """The body of `PATCH /v1/items/{item_id}`: what is new of an item; null takes a field away."""

    title: Title | None = None
    description: Description | None = None
    image_url: Url | None = None
    categories: Labels | None = Field(default=None, description="All of them.")
    attributes: Attributes | None = Field(default=None, description="All of them.")
    available: bool = Field(default=True, description="False hides the item, true shows it again.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing", "Give a field to change")
        return self


class PutLine(ItemPut):
    """A line of `POST /v1/items/bulk` that adds or replaces an item."""

    op: Literal["put"]
    item_id: ExternalId


class PatchLine(ItemPatch):
    """A line of `POST /v1/items/bulk` that changes an item."""

    op: Literal["patch"]
    item_id: ExternalId

    @model_validator(mode="after")
    def _something_else(self) -> Self:
        if self.model_fields_set <= {"op", "item_id"}:
            raise PydanticCustomError("nothing", "Give a field to change")
        return self


class DeleteLine(Body):
    """A line of `POST /v1/items/bulk` that deletes an item."""

    op: Literal["delete"]
    item_id: ExternalId


class ItemChanged(TypedDict):
    """A change that is kept: durable, and in the next answer."""

    item_id: str
    seq: Annotated[int, Field(description="Number of the change. An index that has folded it in says so by a number.")]


class RejectedLine(TypedDict):
    """A line that changed nothing, by its number from 1."""

    line: int
    problem: Problem


class BulkAnswer(TypedDict):
    """The answer of `POST /v1/items/bulk`. What was accepted is durable."""

    accepted: int
    rejected: list[RejectedLine]
    unread_from: Annotated[
        int | None,
        Field(description="The lines from this one on were not taken: the store went away, or they are too many."),
    ]


class ItemAnswer(TypedDict):
    """What is known of an item."""

    item_id: str
    available: Annotated[bool, Field(description="False: it is hidden, in no answer.")]
    modalities: Annotated[list[str], Field(description="Those of the model's modalities that the item has.")]
    metadata: Annotated[
        Mapping[str, object], Field(description="Title, description, image_url, categories, attributes.")
    ]
