"""Base classes of all schemas: strict for what we are given, tolerant for what we read back."""

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """A body sent to us: unknown fields are refused, so that a typo is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Response(BaseModel):
    """A body sent by us. Evolution is additive: readers ignore fields that they do not know."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class OnDisk(BaseModel):
    """A document on disk: unknown fields are refused, `schema_version` says which reader it needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
