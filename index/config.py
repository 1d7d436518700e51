"""RebuildConfig: what one rebuild is told. TOML files of it lie in `index/configs`."""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api_schemas.manifest import SearchSettings


class RebuildConfig(BaseModel):
    """How a catalogue is encoded, indexed and checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exact_max_items: int = Field(
        default=300_000, ge=0, description="Up to so many items are searched exactly; 0: always use `factory`."
    )
    factory: str = Field(
        default="IVF{nlist},PQ{dim}x4fs",
        min_length=1,
        description="FAISS factory string above that size. {nlist} is 4 sqrt(N) as a power of two, {dim} the width d.",
    )
    search: SearchSettings = Field(
        default=SearchSettings(), description="What a search starts with; a rebuild widens it to reach the recall."
    )
    train_rows: int = Field(default=100_000, ge=1, description="Items that an approximate index is trained on.")
    min_recall_at_100: float = Field(
        default=0.95, ge=0, le=1, description="An index that finds less of the exact top 100 is not published."
    )
    recall_queries: int = Field(default=200, ge=1, description="Queries that the recall is measured with.")
    batch_rows: int = Field(default=8_192, ge=1, description="Items encoded at once: bounds the memory.")
    num_threads: int = Field(default=0, ge=0, description="For encoding and building; 0: as many as there are cores.")
    seed: int = Field(default=0, ge=0, description="Of the samples for training and for the recall.")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ValueError: The file can not be read, is no TOML, or has an unknown or wrong field; names file and field.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: can not be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: is no TOML: {error}") from error
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path}: {field}: {first['msg']}") from None
