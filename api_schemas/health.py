"""What the plumbing endpoints answer."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from api_schemas.base import Response

CheckStatus = Literal["ok", "degraded", "failing"]


class Live(Response):
    """`GET /livez`: the event loop turns."""

    status: Literal["ok"] = "ok"


class Check(Response):
    """One part of readiness. `degraded` is listed and does not make the service unready; `failing` does."""

    status: CheckStatus
    detail: str = ""


class Ready(Response):
    """`GET /readyz`: 200 when every check is ok or degraded, else 503."""

    ready: bool
    checks: dict[str, Check] = Field(
        description="By part: model, ranker (if there is one), index, scenarios (if there are any), store, process."
    )
    refused_versions: dict[str, str] = Field(
        default_factory=dict,
        description="Snapshots that were refused and why, or `aliases/<scenario>` whose versions were; an older "
        "one goes on serving.",
    )


class ServedVersions(Response):
    """`GET /version`: the software and what it serves."""

    name: Literal["prismrec"] = "prismrec"
    version: str
    model: str | None = Field(default=None, description="Version of the bundle; none until one is loaded.")
    ranker: str | None = Field(default=None, description="Version of the ranker's bundle; none: it has no ranker.")
    index: str | None = Field(default=None, description="Version of the snapshot.")
    index_built_at: datetime | None = None
    scenarios: dict[str, list[str]] = Field(
        default_factory=dict, description="Versions of the snapshots that answer each scenario but `default`."
    )
