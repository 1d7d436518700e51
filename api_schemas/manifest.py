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

GraphName = Literal["item_encoder", "state_encoder", "user_encoder", "explainer", "ranker"]
ProductScorer = Literal["max", "logsumexp"]
"""What inner products alone make: what an index can search by."""

Scorer = Literal["max", "logsumexp", "ranker"]
ExplanationMethod = Literal["interest_gradient", "grad_x_input", "decomposition", "occlusion", "shapley"]

RANKER_METHODS: tuple[ExplanationMethod, ...] = ("shapley", "occlusion")
"""What can be said of a ranker's scores, which come without gradients; the default first."""


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
    changes_seq: int = Field(
        default=0, ge=0, description="Changes of a live catalogue up to this number are folded in."
    )

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


class WarmItems(OnDisk):
    """Learned parts of the items that a model was trained on; for these they replace what the item encoder gives."""

    ids: RelativePath = Field(description="Arrow IPC file with the column `item_id`, each id once.")
    states: RelativePath = Field(description="`.npy`, float32, C order, `[num_items, len(parts), state_dim]`.")
    parts: list[ModalityName] = Field(min_length=1, description="The parts that the table holds, in its order.")
    num_items: int = Field(ge=1)


class KnownUsers(OnDisk):
    """Learned queries of the users that a model was trained on, for when nothing else is known of them."""

    ids: RelativePath = Field(description="Arrow IPC file with the column `user_id`, each id once.")
    queries: RelativePath = Field(description="`.npy`, float32, C order, `[num_users, num_queries, dim]`.")
    num_users: int = Field(ge=1)


class FoldIn(OnDisk):
    """How well users read from their history do beside their own learned vectors, on users it was not fitted on."""

    kind: Literal["affine", "mean", "softmax", "exact", "attention"]
    r2: float | None = Field(default=None, le=1, description="Of the map from history to learned vector.")
    recall: float = Field(ge=0, le=1, description="Recall at `cutoff` from the history.")
    recall_of_known: float = Field(ge=0, le=1, description="Of the same users from their own learned vectors.")
    cutoff: int = Field(ge=1)
    num_users: int = Field(ge=1)
    tried: dict[str, float] = Field(
        default_factory=dict, description="Recall of the same users by each kind that was tried; empty: one only."
    )


MIN_EXPOSURE, MAX_EXPOSURE = 0.3, 3.0
"""Below, new items are hidden; above, they flood the lists. No bundle with a ratio outside can be written."""


class ColdItems(OnDisk):
    """What the model does with new items, measured on those without interactions and on some held out of its tables."""

    imputation: Literal["ridge", "knn", "mean", "network", "unknown"] = Field(
        description="Where the id part of a new item comes from; unknown: one that was learned for all of them."
    )
    exposure_ratio: float = Field(
        ge=MIN_EXPOSURE,
        le=MAX_EXPOSURE,
        description="Share of new items among users' top K, over their share of the catalogue.",
    )
    num_items: int = Field(ge=1, description="Items that it was measured on.")
    num_users: int = Field(ge=1)


_Share = Annotated[float, Field(ge=0, le=1)]
_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MaskFigures(OnDisk):
    """How much a learned mask lets through of the raw dimensions of a modality: figures of its values in 0 to 1.

    The contributions are mean sizes over pairs of users and items drawn at random, in the model that was trained before
    the mask, on the scale of its scores; null in bundles made before they were measured.
    """

    mean: _Share
    q10: _Share
    median: _Share
    q90: _Share
    contribution_with_mask: _Size | None = Field(
        default=None, description="Mean size of what the modality adds to a score, or takes from it, under the mask."
    )
    contribution_without_mask: _Size | None = Field(default=None, description="The same of all its content.")
    contribution_removed: _Size | None = Field(
        default=None, description="Mean size of the difference: what invariance took out of the score."
    )

    @model_validator(mode="after")
    def _quantiles_rise(self) -> Self:
        if not self.q10 <= self.median <= self.q90:
            raise ValueError(f"q10, median and q90 do not rise: {self.q10}, {self.median}, {self.q90}")
        return self


class ModalityMask(MaskFigures):
    """The mask's figures of one modality."""

    modality: ModalityName


def widths_of(modalities: list[Modality]) -> dict[str, int]:
    """Return the width of the raw vector of each modality by name: in this, two models that work together agree."""
    return {modality.name: modality.dim for modality in modalities}


def _part_names(modalities: list[Modality], parts: list[ModalityName]) -> tuple[str, ...]:
    return tuple(parts) or tuple([modality.name for modality in modalities])


def _check_parts(modalities: list[Modality], parts: list[ModalityName]) -> None:
    """Raise a ValueError unless the parts are the modalities in their order, then others."""
    names = [modality.name for modality in modalities]
    if len(set(names)) != len(names):
        raise ValueError(f"modalities: the names repeat: {names}")
    if parts and parts[: len(names)] != names:
        raise ValueError(f"parts: {parts} do not start with the modalities {names}")
    for extra in parts[len(names) :]:
        if extra in names:
            raise ValueError(f"parts: {extra!r} is a part that the model adds, and a modality of the data: rename it")
    if len(set(parts)) != len(parts):
        raise ValueError(f"parts: the names repeat: {parts}")


class BundleManifest(OnDisk):
    """`manifest.json` of a bundle: the immutable product of one training run."""

    schema_version: Literal[1] = 1
    kind: Literal["bundle"] = "bundle"
    version: Version
    created_at: datetime
    family: str
    modalities: list[Modality] = Field(min_length=1)
    parts: list[ModalityName] = Field(
        default_factory=list,
        description="What an item's states are of, in order: the modalities, then what the model adds, such as `id` and"
        " `bias`. Empty: the modalities alone.",
    )
    dim: int = Field(ge=1, description="Width d of candidate and query vectors.")
    history_dim: int = Field(ge=1, description="Width h of a history row.")
    state_dim: int = Field(ge=1, description="Width s of the state of one part.")
    history_length: int = Field(ge=1, description="L: histories are cut to the last L items and padded to L.")
    history_ages: bool = Field(
        default=False,
        description="The user encoder, and the explainer, read how many seconds each behaviour was before the latest"
        " one of its history.",
    )
    num_queries: int = Field(ge=1)
    metric: Literal["inner_product"] = "inner_product"
    scorer: Scorer = Field(
        default="max",
        description="What a user's inner products with an item make together: the largest, or the log of the sum of"
        " their exponentials. ranker: no inner product is taken, the graph of that name scores the two vectors.",
    )
    query_dim: int | None = Field(
        default=None, ge=1, description="Width of a query where a ranker reads it; null: that of a candidate."
    )
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
    warm: WarmItems | None = None
    known_users: KnownUsers | None = None
    fold_in: FoldIn | None = None
    cold_items: ColdItems | None = None
    modality_mask: list[ModalityMask] = Field(default_factory=list, description="Empty: the model has no mask.")
    dataset_name: str
    data_fingerprint: str
    code_revision: str
    files: list[FileEntry]

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of an item's states, in order."""
        return _part_names(self.modalities, self.parts)

    @property
    def is_ranker(self) -> bool:
        """Whether the model orders candidates that another one has retrieved, and retrieves none itself."""
        return self.scorer == "ranker"

    @property
    def width_of_queries(self) -> int:
        """Width of a query."""
        return self.query_dim or self.dim

    @model_validator(mode="after")
    def _scorer_and_graphs_fit(self) -> Self:
        if self.is_ranker != ("ranker" in self.graphs):
            raise ValueError(f"scorer: is {self.scorer}, but the graphs are {sorted(self.graphs)}")
        if self.query_dim is not None and not self.is_ranker:
            raise ValueError("query_dim: only a ranker's queries have a width of their own")
        if self.is_ranker and (strange := sorted(set(self.explanation_methods) - set(RANKER_METHODS))):
            raise ValueError(f"explanation_methods: {strange[0]} needs more of a ranker than scores")
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        _check_parts(self.modalities, self.parts)
        if self.warm is not None:
            strange = sorted(set(self.warm.parts) - set(self.part_names))
            if strange:
                raise ValueError(f"warm.parts: {strange[0]!r} is not one of the parts {list(self.part_names)}")
            if len(set(self.warm.parts)) != len(self.warm.parts):
                raise ValueError(f"warm.parts: the names repeat: {self.warm.parts}")
        if self.known_users is not None and not self.is_ranker and self.state_dim < self.dim:
            raise ValueError(
                f"known_users: state_dim is {self.state_dim} and dim {self.dim}, but where users are learned a state"
                " starts with what the part adds to the item's vector"
            )
        masked = [mask.modality for mask in self.modality_mask]
        unknown = sorted(set(masked) - {modality.name for modality in self.modalities})
        if unknown:
            raise ValueError(f"modality_mask: {unknown[0]!r} is not a modality")
        if len(set(masked)) != len(masked):
            raise ValueError(f"modality_mask: the names repeat: {masked}")
        return self


class SearchSettings(OnDisk):
    """How an approximate index is searched; an exact one ignores all of it."""

    nprobe: int = Field(default=32, ge=1, description="Lists that an inverted file looks into.")
    ef_search: int = Field(default=128, ge=1, description="Nodes that a graph index keeps in view.")
    refine: int = Field(default=4, ge=1, description="k times so many candidates are scored exactly, for the best k.")


class EncodedCatalogue(OnDisk):
    """What a snapshot says of a model: its bundle, and the tables that came of encoding the catalogue with it."""

    bundle_version: Version
    bundle_sha256: Sha256 = Field(description="SHA-256 of the bundle's manifest.json: ties tables and encoder.")
    dim: int = Field(ge=1, description="Width d of a candidate vector.")
    history_dim: int = Field(ge=1, description="Width h of a history row.")
    state_dim: int = Field(ge=1, description="Width s of the state of one part.")
    history_is_candidate: bool = Field(description="The candidate table is the history table, too: stored once.")
    modalities: list[Modality]
    parts: list[ModalityName] = Field(
        default_factory=list, description="What the states are of, in order. Empty: the modalities alone."
    )
    num_encoded: int = Field(ge=0, description="Items that this rebuild encoded; the rest was taken over unchanged.")

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of an item's states, in order."""
        return _part_names(self.modalities, self.parts)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        _check_parts(self.modalities, self.parts)
        return self


class SnapshotManifest(EncodedCatalogue):
    """`manifest.json` of an index snapshot: the immutable product of one rebuild.

    What it is by itself is of the model that retrieves.
    """

    schema_version: Literal[1] = 1
    kind: Literal["snapshot"] = "snapshot"
    version: Version
    created_at: datetime
    dataset_name: str
    data_fingerprint: str
    num_items: int = Field(ge=1)
    changes_seq: int = Field(
        default=0, ge=0, description="Changes of the catalogue up to this number were folded into the dataset."
    )
    scorer: ProductScorer = Field(default="max", description="As in the bundle's manifest.")
    ranker: EncodedCatalogue | None = Field(
        default=None, description="The model that orders what is retrieved; null: the retriever's order stands."
    )
    factory: str = Field(description="FAISS factory string; Flat is exact.")
    exact: bool
    search: SearchSettings
    recall_at_100: float = Field(ge=0, le=1, description="Of the index against exact search, measured at rebuild.")
    files: list[FileEntry]

    @property
    def encoded(self) -> tuple[EncodedCatalogue, ...]:
        """What it says of each of its models: the one that retrieves, then the ranker if there is one."""
        return (self,) if self.ranker is None else (self, self.ranker)

    @model_validator(mode="after")
    def _ranker_reads_the_same(self) -> Self:
        if self.ranker is not None and widths_of(self.ranker.modalities) != widths_of(self.modalities):
            raise ValueError("ranker.modalities: not those of the snapshot")
        return self
