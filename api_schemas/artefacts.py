"""`GET /v1/models` and `GET /v1/indexes`: what the artefact store holds."""

from datetime import datetime

from pydantic import Field

from api_schemas.base import Request, Response


class NewestQuery(Request):
    """How many entries of a list, newest first."""

    limit: int = Field(default=100, ge=1, le=1_000, description="How many to list at most.")


class _Stored(Response):
    version: str
    size_bytes: int
    problem: str | None = Field(default=None, description="Why its manifest can not be read; null: it can.")


class StoredModel(_Stored):
    """A bundle in the store."""

    name: str | None = Field(description="The model's family.")
    created_at: datetime | None
    indexes: list[str] = Field(description="Snapshots in the store that were made with it.")


class StoredModels(Response):
    """The answer of `GET /v1/models`, newest first."""

    models: list[StoredModel]


class StoredIndex(_Stored):
    """A snapshot in the store."""

    built_at: datetime | None
    model: str | None = Field(description="Version of the bundle that retrieves.")
    ranker: str | None = Field(description="Version of the bundle that orders; null: it has no ranker.")
    num_items: int | None
    current: bool = Field(description="`CURRENT` names it: it is what the scenario `default` asks for.")
    previous: bool = Field(description="A rollback of `default` would go back to it.")
    aliases: list[str] = Field(description="Scenarios whose alias names it.")


class StoredIndexes(Response):
    """The answer of `GET /v1/indexes`, newest first."""

    indexes: list[StoredIndex]
