"""Aliases: a scenario's index version, or several that share its traffic. On disk and under `/v1/aliases`."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from api_schemas.base import OnDisk, Response
from api_schemas.fields import Body

MAX_ARMS = 8
MAX_SCENARIOS = 64
MAX_EARLIER = 16
"""How often a scenario can be rolled back."""

DEFAULT_SCENARIO = "default"

Scenario = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""The name of an alias: a file is named after it."""

SnapshotVersion = Annotated[str, StringConstraints(pattern=r"^snapshot-[a-z0-9_.-]{1,119}$")]


class Arm(Body):
    """One of several versions that share a scenario's traffic."""

    name: Scenario
    index: SnapshotVersion
    weight: float = Field(gt=0, le=1e6, description="Its share is this by the sum of all weights.")


class AliasTarget(Body):
    """What a scenario is answered from: one version, or the arms of an experiment."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["index"]}, {"required": ["experiment", "arms"]}]}
    )

    index: SnapshotVersion | None = Field(default=None, description="The one version that answers.")
    experiment: Scenario | None = Field(
        default=None,
        description="Name of the experiment. It salts the hash that gives a user or session its arm: another name "
        "draws anew.",
    )
    arms: list[Arm] | None = Field(default=None, min_length=1, max_length=MAX_ARMS)

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that is named, once."""
        named = [self.index] if self.index is not None else [arm.index for arm in self.arms or ()]
        return tuple(dict.fromkeys(named))

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.index is None) == (self.arms is None) or (self.arms is None) != (self.experiment is None):
            raise PydanticCustomError("one_target", "Give either index, or experiment and arms")
        names = [arm.name for arm in self.arms or ()]
        if len(set(names)) < len(names):
            raise PydanticCustomError("arm_names", "Arms should have different names")
        return self


class AliasFile(OnDisk):
    """`STORE/aliases/<scenario>.json`."""

    schema_version: Literal[1] = 1
    changed_at: datetime
    target: AliasTarget
    earlier: list[AliasTarget] = Field(
        default_factory=list, max_length=MAX_EARLIER, description="What it named before, oldest first."
    )


class Alias(Response):
    """One alias. The header `ETag` names this state of it."""

    scenario: str
    target: AliasTarget
    rollback_to: AliasTarget | None = Field(description="What a rollback would make of it; null: nothing is earlier.")
    changed_at: datetime | None = Field(description="null: of `default`, whose `CURRENT` file does not say.")


class Aliases(Response):
    """The answer of `GET /v1/aliases`."""

    aliases: list[Alias]
