"""`POST /v1/explanations`: which modality of which past item drove which score."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from api_schemas.fields import MAX_EXPLAINED, ExternalId
from api_schemas.manifest import ExplanationMethod
from api_schemas.recommend import HistoryInterest, ItemExplanation, ModalityShare, SlateRequest, UserAnswer

_OF_QUERY = tuple(name for name in SlateRequest.model_fields if name != "timeout_ms")


class ExplanationRequest(SlateRequest):
    """The body of `POST /v1/explanations`: that of a recommendation or the id of one, and what to explain."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "anyOf": [
                    {"required": ["user_id", "session_id"]},
                    {"required": ["recommendation_id"], "anyOf": [{"required": [name]} for name in _OF_QUERY]},
                ]
            }
        }
    )

    recommendation_id: ExternalId | None = Field(
        default=None,
        description="Explain what was shown under this id, from the history that it was made from; instead of a query.",
    )
    explain: Literal["summary", "full"] = Field(
        default="full", description="full adds the interest of each past item to each explained item."
    )
    item_ids: list[ExternalId] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_EXPLAINED,
        description="Explain these items; by default the items that would be recommended.",
    )
    method: ExplanationMethod | None = Field(default=None, description="By default the model's own.")

    @model_validator(mode="after")
    def _id_or_query(self) -> Self:
        if self.recommendation_id is not None and (others := sorted(self.model_fields_set & set(_OF_QUERY))):
            raise PydanticCustomError(
                "id_or_query", "Give recommendation_id or a query, not both: {fields}", {"fields": ", ".join(others)}
            )
        return self


class ExplainedItem(ItemExplanation):
    """One item and why it has its score."""

    item_id: str


class ExplanationAnswer(UserAnswer):
    """The answer of `POST /v1/explanations`."""

    modality_interest: list[ModalityShare]
    history: list[HistoryInterest]
    items: list[ExplainedItem]
    method: ExplanationMethod
    faithfulness: Annotated[
        dict[str, float], Field(description="Measured for this model and method at release; empty when it was not.")
    ]
    caveats: list[str]
