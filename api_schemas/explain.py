"""`POST /v1/explanations`: which modality of which past item drove which score."""

from typing import Annotated, Literal

from pydantic import Field

from api_schemas.fields import MAX_EXPLAINED, ExternalId
from api_schemas.manifest import ExplanationMethod
from api_schemas.recommend import HistoryInterest, ItemExplanation, ModalityShare, SlateRequest, UserAnswer


class ExplanationRequest(SlateRequest):
    """The body of `POST /v1/explanations`: that of a recommendation, and what to explain."""

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
