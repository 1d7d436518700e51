"""`POST /v1/indexes` and `/v1/jobs`: builds of indexes that run beside the service. On the wire and on disk."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from api_schemas.base import OnDisk, Response
from api_schemas.fields import Body

MAX_ERROR = 1_000

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]

JobId = Annotated[str, StringConstraints(pattern=r"^job-[0-9]{8}t[0-9]{12}z-[0-9a-f]{6}$")]
"""Ordered as the jobs were made; a file is named after it."""

BundleVersion = Annotated[str, StringConstraints(pattern=r"^bundle-[a-z0-9_.-]{1,119}$")]

DataName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
"""One folder, never a path."""


class IndexRequest(Body):
    """Which catalogue is to be encoded with which models."""

    model: BundleVersion = Field(description="Version of the bundle that retrieves.")
    ranker: BundleVersion | None = Field(
        default=None, description="Version of a ranker, to order what the other one retrieves; null: none."
    )
    data: DataName = Field(description="Name of a dataset folder, of those below `PRISMREC_BUILDS__DATA`.")
    make_current: bool = Field(
        default=True,
        description="Point `CURRENT` at the index when it has passed its checks. false: it is published alone, for an "
        "alias to name.",
    )
    fold_changes: bool = Field(
        default=True,
        description="Fold the items in that were changed over HTTP since; false: build from the folder as it is, and "
        "leave them where they are.",
    )


class JobProgress(Response):
    """How far a running job is: which stage, and how much of this stage is done."""

    stage: str
    done: int = Field(ge=0)
    total: int = Field(ge=0)
    unit: str = Field(description="What is counted: items, interactions, steps.")


class Job(Response):
    """One build of an index."""

    id: JobId
    kind: Literal["index"] = "index"
    state: JobState = Field(description="failed also names what ended with its process, such as by a restart.")
    request: IndexRequest
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cancel_requested: bool = Field(default=False, description="It is running, and ends within a second.")
    progress: JobProgress | None = Field(default=None, description="null: it has not begun.")
    eta_s: float | None = Field(
        default=None, ge=0, description="Until the stage ends, at its pace so far; null: not known, or over."
    )
    folded_changes: int | None = Field(
        default=None, ge=0, description="Changed items that it has folded in; null: not asked for, or not that far."
    )
    folded_data: str | None = Field(
        default=None,
        description="Dataset folder, below the store of versions, that has all changes folded in and was built from; "
        "models can be trained on it. null: the named one.",
    )
    index: str | None = Field(default=None, description="Version of the index that was made.")
    error: str | None = Field(default=None, max_length=MAX_ERROR, description="Why it failed.")

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("queued", "running")


class Jobs(Response):
    """The answer of `GET /v1/jobs`, newest first."""

    jobs: list[Job]


class JobFile(OnDisk):
    """`STORE/jobs/<id>.json`."""

    schema_version: Literal[1] = 1
    job: Job
