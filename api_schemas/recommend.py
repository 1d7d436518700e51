"""`POST /v1/recommendations`: the request, and the answer.

Answers are typed dictionaries, not models: they are made on the hot path, where a model a line costs more than the
search. mypy checks how they are made, pydantic documents them, and a test reads every answer back against them.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, NotRequired, Self

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from api_schemas.aliases import DEFAULT_SCENARIO, Scenario
from api_schemas.fields import (
    MAX_CANDIDATES,
    MAX_EXCLUDED,
    MAX_FILTER_VALUES,
    MAX_HISTORY,
    MAX_K,
    MAX_MODALITIES,
    MAX_REQUESTS,
    MAX_TIMEOUT_MS,
    MAX_VECTOR,
    Body,
    EventType,
    ExternalId,
    Instant,
    Label,
)
from api_schemas.manifest import ModalityName
from api_schemas.problem import Problem

# A list of up to a million numbers or ten thousand ids stops at its first mistake: collecting all of them is work that
# anybody could make us do.
Vector = Annotated[list[float], Field(fail_fast=True, min_length=1, max_length=MAX_VECTOR)]
Ids = Annotated[list[ExternalId], Field(fail_fast=True)]
Labels = Annotated[list[Label], Field(max_length=MAX_FILTER_VALUES)]
AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeValue = Label | StrictBool | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | StrictFloat
AttributeValues = Annotated[list[AttributeValue], Field(min_length=1, max_length=MAX_FILTER_VALUES)]


class HistoryItem(Body):
    """One past behaviour that comes with the request."""

    item_id: ExternalId
    type: EventType | None = Field(default=None, description="What happened, such as `click`.")
    occurred_at: Instant | None = Field(
        default=None,
        description="When; counts for models that read how old behaviour is. Without it, as old as the entry before.",
    )
    modalities: Annotated[dict[ModalityName, Vector], Field(max_length=MAX_MODALITIES)] | None = Field(
        default=None,
        description="Raw vectors by modality: an item that the catalogue does not know is used when it brings them.",
    )


class Filter(Body):
    """Which items may be recommended. A part that is left out does not restrict."""

    categories_any: Labels = Field(default_factory=list, description="The item has one of these at least.")
    categories_all: Labels = Field(default_factory=list, description="The item has all of these.")
    categories_none: Labels = Field(default_factory=list, description="The item has none of these.")
    attributes: dict[AttributeName, AttributeValue | AttributeValues] = Field(
        default_factory=dict,
        max_length=32,
        description="Attribute to the value, or the list of values of which the item has one.",
    )


class SlateRequest(Body):
    """Who asks, what they did, and what may be in the answer."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["user_id", "session_id"]}})

    user_id: ExternalId | None = Field(default=None, description="A signed-in user; an unknown one is never an error.")
    session_id: ExternalId | None = Field(default=None, description="An anonymous session; not together with user_id.")
    history: list[HistoryItem] | None = Field(
        default=None,
        max_length=MAX_HISTORY,
        description="Behaviour that is not stored, oldest first (sorted by occurred_at when every entry has one). "
        "It follows the stored events of the user or session.",
    )
    k: int = Field(default=20, ge=1, le=MAX_K, description="How many items to recommend at most.")
    filter: Filter | None = None
    exclude_item_ids: Ids = Field(default_factory=list, max_length=MAX_EXCLUDED)
    candidate_item_ids: Ids | None = Field(
        default=None, max_length=MAX_CANDIDATES, description="Rank these items only."
    )
    include_seen: bool = Field(default=False, description="Recommend items of the history again.")
    min_score: float | None = Field(default=None, description="Leave out items that the model scores lower.")
    scenario: Scenario = Field(
        default=DEFAULT_SCENARIO, description="The alias whose version answers; see `/v1/aliases`."
    )
    model: ExternalId | None = Field(
        default=None,
        description="Family or version of a loaded model that shall answer, whatever the scenario's alias says.",
    )
    diversity: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="How much an item counts for less that is like those ranked before it, by categories or else by "
        "content: 0 leaves the order to the scores, 1 to variety alone. Scores stay the model's.",
    )
    after: ExternalId | None = Field(
        default=None,
        description="A `recommendation_id` that this request continues: what was shown under it, or in what it "
        "continued itself, is not shown again. 404 when nothing is kept under it.",
    )
    timeout_ms: int | None = Field(
        default=None, ge=1, le=MAX_TIMEOUT_MS, description="Answer in this time or with 504; the service may ask less."
    )

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if self.user_id is not None and self.session_id is not None:
            raise PydanticCustomError("one_subject", "Give user_id or session_id, not both")
        return self


class RecommendationRequest(SlateRequest):
    """The body of `POST /v1/recommendations`."""

    store: bool = Field(
        default=True,
        description="Keep for an hour what is shown, to be explained and continued by its `recommendation_id`; false "
        "keeps nothing of this request.",
    )
    explain: Literal["none", "summary", "full"] = Field(
        default="none", description="Whether the answer says which modality of which past item drove it."
    )


class BatchRequest(Body):
    """The body of `POST /v1/recommendations/batch`."""

    requests: list[RecommendationRequest] = Field(
        min_length=1, max_length=MAX_REQUESTS, description="Each as for `/v1/recommendations`, and judged on its own."
    )
    timeout_ms: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="One deadline for all; the `timeout_ms` of a request can only make its own earlier.",
    )


class ModalityShare(TypedDict):
    """The share of the interest that a modality has, or another part of the model's items; an answer's sum to 1."""

    modality: str
    share: float


class Contribution(TypedDict):
    """What one modality of a candidate adds to its score, or a part that the model adds: `id`, `bias`."""

    modality: str
    value: float


class HistoryInterest(TypedDict):
    """How much one past item weighs, in all and by modality."""

    item_id: str
    interest: float
    by_modality: dict[str, float]


class Reason(TypedDict):
    """A sentence for people and the past items that it rests on."""

    code: str
    text: str
    evidence_item_ids: list[str]


class ItemExplanation(TypedDict):
    """Why one item has its score.

    With explain = full there are also the contributions, which sum to the score with `residual` when `additive`, and
    the interest of each past item for this one.
    """

    score: float
    additive: bool
    reasons: list[Reason]
    contributions: NotRequired[list[Contribution]]
    residual: NotRequired[float]
    history: NotRequired[list[HistoryInterest]]


class ListedItem(TypedDict):
    """One line of an answer."""

    item_id: str
    rank: Annotated[int, Field(description="From 1.")]
    score: float
    source: Annotated[
        Literal["model", "popular", "similar"], Field(description="What put the item here; popular is the fallback.")
    ]
    metadata: NotRequired[
        Annotated[Mapping[str, object], Field(description="Title, description, image_url, categories, attributes.")]
    ]


class RecommendedItem(ListedItem):
    """One recommended item."""

    explanation: NotRequired[ItemExplanation]


class ModelVersion(TypedDict):
    """A model that answered."""

    name: str
    version: str


class Experiment(TypedDict):
    """The arm of an experiment that a user or session is in."""

    name: str
    arm: str


class IndexVersion(TypedDict):
    """The catalogue snapshot that answered."""

    version: str
    built_at: datetime


class Answer(TypedDict):
    """What every answer about items says of itself."""

    model: ModelVersion
    index: IndexVersion
    degraded: Annotated[
        list[str],
        Field(description="What is missing and why, such as `rerank_late`; empty when all is well."),
    ]
    experiment: NotRequired[
        Annotated[Experiment, Field(description="Where the scenario is an experiment: which arm answered.")]
    ]
    took_ms: float


class ItemsAnswer(Answer):
    """The answer of `GET /v1/items/{item_id}/similar` and `GET /v1/popular`."""

    items: list[ListedItem]


class UserAnswer(Answer):
    """What an answer for a user or session says besides."""

    ranker: Annotated[
        ModelVersion | None,
        Field(
            description="The model that ordered what `model` retrieved: scores and explanations are its own. null: the "
            "order and the scores are those of `model`."
        ),
    ]
    user_state: Annotated[
        Literal["known", "cold", "anonymous"],
        Field(
            description="known: a usable history, or a user of whom the model has learned a vector; cold: an id "
            "without either; anonymous: no id."
        ),
    ]
    events_used: Annotated[int, Field(description="Past items that were encoded.")]
    unknown_item_ids: Annotated[list[str], Field(description="Ids that the catalogue does not know and could not use.")]


class RecommendationAnswer(UserAnswer):
    """The answer of `POST /v1/recommendations`."""

    recommendation_id: Annotated[
        str,
        Field(description="Explains or continues this answer; send it with events that follow."),
    ]
    items: list[RecommendedItem]
    modality_interest: NotRequired[Annotated[list[ModalityShare], Field(description="Unless explain = none.")]]


class BatchResult(TypedDict):
    """What became of one request of a batch: a body or a problem."""

    status: Annotated[int, Field(description="The HTTP status that the request would have had alone.")]
    body: NotRequired[RecommendationAnswer]
    problem: NotRequired[Problem]


class BatchAnswer(TypedDict):
    """The answer of `POST /v1/recommendations/batch`."""

    results: Annotated[list[BatchResult], Field(description="One for each request, in its order.")]
    took_ms: float
