"""Manifests: what a dataset folder, a bundle and a snapshot say about themselves on disk."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from api_schemas.base import OnDisk

SCHEMA_VERSION = 1

ModalityName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""Lower case letters, digits and underscores: it becomes a file name and a tensor name."""

RelativePath = Annotated[
    str, StringConstraints(max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")
]
"""A path below the folder of its manifest: no segment starts with a dot, so it can not leave it."""

Version = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

GraphName = Literal["item_encoder", "state_encoder", "user_encoder", "explainer"]
ExplanationMethod = Literal["interest_gradient", "grad_x_input", "decomposition", "occlusion", "shapley"]


class DatasetModality(OnDisk):
    """One modality of a dataset folder: a `[N, dim]` feature file and a `[N]` bool file of presence."""

    name: ModalityName
    dim: int = Field(ge=1, le=65_536)
    file: RelativePath
    present_file: RelativePath
    source: str = ""


class DatasetManifest(OnDisk):
    """`dataset.json`: counts and modalities of a dataset folder."""

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    description: str = ""
    licence: str = ""
    num_users: int = Field(ge=0)
    num_items: int = Field(ge=1)
    num_interactions: int = Field(ge=0)
    modalities: list[DatasetModality] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [modality.name for modality in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError(f"modalities: the names repeat: {names}")
        return self


class Modality(OnDisk):
    """A modality as a model sees it: its name and the width of its raw vector."""

    name: ModalityName
    dim: int = Field(ge=1, le=65_536)


class FileEntry(OnDisk):
    """One file of an artefact, relative to the artefact's folder."""

    path: RelativePath
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class TensorSpec(OnDisk):
    """Name, dtype (NumPy's name) and shape of a graph's tensor; a free dimension is a name such as `batch`."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(OnDisk):
    """One exported ONNX graph and its signature."""

    file: RelativePath
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class Faithfulness(OnDisk):
    """How well one explanation method was found to describe one model, measured when the bundle was made.

    Deletion and insertion are areas under the normalised score curve, read against the same areas for items removed
    in random order: a faithful method has deletion below and insertion above random.
    """

    deletion_auc: float
    insertion_auc: float
    random_deletion_auc: float
    random_insertion_auc: float
    driver_accuracy: float | None = Field(default=None, description="On generated data: top modality = planted driver.")
    driver_chance: float | None = None
    num_users: int = Field(ge=0)


class BundleManifest(OnDisk):
    """`manifest.json` of a bundle: the immutable product of one training run."""

    schema_version: Literal[1] = 1
    kind: Literal["bundle"] = "bundle"
    version: Version
    created_at: datetime
    family: str
    modalities: list[Modality] = Field(min_length=1)
    dim: int = Field(ge=1, description="Width d of candidate and query vectors.")
    history_dim: int = Field(ge=1, description="Width h of a history row.")
    state_dim: int = Field(ge=1, description="Width s of a modality state.")
    history_length: int = Field(ge=1, description="L: histories are cut to the last L items and padded to L.")
    num_queries: int = Field(ge=1)
    metric: Literal["inner_product"] = "inner_product"
    history_is_candidate: bool = Field(description="History row and candidate vector are one: stored once.")
    graphs: dict[GraphName, GraphSpec]
    golden: RelativePath = "golden.npz"
    golden_atol: float = Field(
        gt=0,
        description="Largest difference allowed when golden.npz is replayed at load, times the largest value of the "
        "tensor where that is above 1.",
    )
    explanation_methods: list[ExplanationMethod]
    faithfulness: dict[ExplanationMethod, Faithfulness] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict, description="Held-out figures by name, such as recall@20.")
    dataset_name: str
    data_fingerprint: str
    code_revision: str
    files: list[FileEntry]


class SearchSettings(OnDisk):
    """How an approximate index is searched; an exact one ignores all of it."""

    nprobe: int = Field(default=32, ge=1, description="Lists that an inverted file looks into.")
    ef_search: int = Field(default=128, ge=1, description="Nodes that a graph index keeps in view.")
    refine: int = Field(default=4, ge=1, description="k times so many candidates are scored exactly, for the best k.")


class SnapshotManifest(OnDisk):
    """`manifest.json` of an index snapshot: the immutable product of one rebuild."""

    schema_version: Literal[1] = 1
    kind: Literal["snapshot"] = "snapshot"
    version: Version
    created_at: datetime
    bundle_version: Version
    bundle_sha256: Sha256 = Field(description="SHA-256 of the bundle's manifest.json: ties index and encoder.")
    dataset_name: str
    data_fingerprint: str
    num_items: int = Field(ge=1)
    dim: int = Field(ge=1, description="Width d of a candidate vector.")
    history_dim: int = Field(ge=1, description="Width h of a history row.")
    state_dim: int = Field(ge=1, description="Width s of a modality state.")
    history_is_candidate: bool = Field(description="The candidate table is the history table, too: stored once.")
    modalities: list[Modality]
    factory: str = Field(description="FAISS factory string; Flat is exact.")
    exact: bool
    search: SearchSettings
    recall_at_100: float = Field(ge=0, le=1, description="Of the index against exact search, measured at rebuild.")
    num_encoded: int = Field(ge=0, description="Items that this rebuild encoded; the rest was taken over unchanged.")
    files: list[FileEntry]
