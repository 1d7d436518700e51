"""Query parameters of the endpoints about items."""

from pydantic import ConfigDict, Field

from api_schemas.aliases import DEFAULT_SCENARIO, Scenario
from api_schemas.base import Request
from api_schemas.fields import MAX_K
from api_schemas.manifest import ModalityName


class ListQuery(Request):
    """How much to list. Query parameters are texts, so numbers are read from them; unknown ones are refused."""

    k: int = Field(default=20, ge=1, le=MAX_K, description="How many items at most.")
    scenario: Scenario = Field(
        default=DEFAULT_SCENARIO, description="The alias whose version answers; see `/v1/aliases`."
    )


class SimilarQuery(ListQuery):
    """What `similar` means."""

    model_config = ConfigDict(extra="forbid")

    modality: ModalityName | None = Field(
        default=None,
        description="Compare by this modality alone, or by another part of the items such as `id`; by default by the "
        "fused vector.",
    )
