"""The file of changed items that a service exports and a dataset folds in: JSON lines, the last one the end."""

from typing import Literal

from pydantic import Field

from api_schemas.base import OnDisk
from api_schemas.catalogue import Attributes, Description, RawVectors, Title, Url
from api_schemas.fields import ExternalId
from api_schemas.recommend import Labels


class ItemRecordLine(OnDisk):
    """The latest state of one changed item. What is not set, is not said; null says that the item has none."""

    item_id: ExternalId
    seq: int = Field(ge=1)
    op: Literal["put", "patch", "delete"]
    modalities: RawVectors = Field(default_factory=dict)
    title: Title | None = None
    description: Description | None = None
    image_url: Url | None = None
    categories: Labels | None = None
    attributes: Attributes | None = None
    available: bool | None = None


class ItemRecordsEnd(OnDisk):
    """The last line: a file without it was cut."""

    schema_version: Literal[1] = 1
    end: Literal[True] = True
    changes_seq: int = Field(ge=0, description="All changes up to here are in the file.")
    trimmed_to: int = Field(ge=0, description="But those up to here may not be: they were folded in before.")
    num_items: int = Field(ge=0)
