"""What a training run is told: TOML in, one frozen validated object out, and TOML again for the bundle.

Each value has one place: its default is in its field and its meaning in the field's description. There is no
inheritance between files; a variant is another small file, and `--set key=value` is the only override.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from index.metrics import METRICS
from training.data.batches import PairsConfig
from training.data.candidates import SampledConfig, is_sampled
from training.data.conditioning import ConditioningConfig
from training.data.negatives import FullSoftmaxConfig, NegativesConfig
from training.data.split import SplitConfig
from training.models import (
    ContentFamily,
    IdFamily,
    InvrlConfig,
    ModelConfig,
    RankerSettings,
    VecfConfig,
)
from training.pretraining.settings import FeaturesConfig, RawFeatures
from training.settings import Settings

MetricName = Annotated[str, StringConstraints(pattern=rf"^({'|'.join(METRICS)})@[1-9][0-9]{{0,3}}$")]

SearchValue = bool | int | float | str
SearchSpace = dict[str, Annotated[tuple[SearchValue, ...], Field(min_length=1)]]

_OWN_ENCODERS = ("macridvae", "ease", "item_knn", "popularity")
"""Kinds that learn no users and read them all by one rule of their own."""

_NOT_SEARCHED = (
    "name",
    "seed",
    "search",
    "model.kind",
    "split",
    "eval.cutoffs",
    "eval.monitor",
    "eval.seen",
    "eval.sampled",
)
"""What a run is called and judged by: the same for all runs that are compared."""


class ConfigError(ValueError):
    """A configuration that can not be used; the message names the field."""


class OptimConfig(Settings):
    """Adam and how long it runs."""

    batch_size: int = Field(1024, ge=1, le=1_000_000)
    epochs: int = Field(20, ge=1, le=100_000, description="Passes over the training pairs, at most.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many steps, whatever the epochs say.")
    lr: float = Field(3e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float | None = Field(1.0, gt=0, description="Longest gradient over all parameters; unset: any.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Of the learning rate, to 0.")
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises from 0.")


class ContentOptimConfig(OptimConfig):
    """How content models are trained."""

    weight_decay: float = Field(1e-7, ge=0, description="L2 on all parameters, through Adam as the paper has it.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast; parameters stay float32."
    )


class FactorOptimConfig(OptimConfig):
    """How id-based models are trained. Losses are means over the pairs of a step."""

    batch_size: int = Field(
        2048, ge=1, le=1_000_000, description="Pairs of a step; users with all their pairs where negatives are `full`."
    )
    epochs: int = Field(100, ge=1, le=100_000, description="Passes over the training pairs, at most.")
    lr: float = Field(1e-3, gt=0)
    beta2: float = Field(0.999, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0, description="Longest gradient over all parameters; unset: any.")
    l2_tables: float = Field(0.0, ge=0, description="Weight of the squared length of users' and items' own numbers.")
    l2_projection: float = Field(0.0, ge=0, description="The same of the projection of content, always whole.")
    l2_scope: Literal["batch", "tables"] = Field(
        "batch",
        description="batch: half the squared length of the rows that a pair touches, as LightGCN has it. tables: of "
        "the whole tables in every step, as InvRL has it.",
    )


class EvalConfig(Settings):
    """Validation during training, and the figures that go into the bundle."""

    cutoffs: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field((20, 50), min_length=1)
    monitor: MetricName = Field("recall@20", description="Metric on the validation users that selects the checkpoint.")
    every_epochs: float = Field(1.0, gt=0, description="Epochs between validations.")
    patience: int = Field(5, ge=1, description="Validations without a better monitor before training stops.")
    seen: Literal["mask", "keep"] = Field("mask", description="Whether items of the history may be recommended again.")
    sampled: SampledConfig | None = Field(
        None, description="Rank targets among drawn candidates too, to compare with tables of papers. Unset: not."
    )

    @field_validator("monitor", mode="before")
    @classmethod
    def _monitor_is_of_the_whole_catalogue(cls, monitor: object) -> object:
        if isinstance(monitor, str) and is_sampled(monitor):
            raise ValueError(f"{monitor!r} is of a sample: what is selected is selected on the whole catalogue")
        return monitor

    @model_validator(mode="after")
    def _cutoffs_are_within_the_sample(self) -> Self:
        if self.sampled is not None and self.sampled.n < max(self.cutoffs):
            raise ValueError(f"sampled.n = {self.sampled.n} is less than the cut-off {max(self.cutoffs)}")
        return self

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> Self:
        if int(self.monitor.split("@")[1]) not in self.cutoffs:
            raise ValueError(f"monitor {self.monitor!r} is not measured: cutoffs are {list(self.cutoffs)}")
        return self


class ExportConfig(Settings):
    """The bundle."""

    faithfulness_users: int = Field(
        100, ge=0, le=100_000, description="Held-out users on whom the explanations' faithfulness is measured; 0: not."
    )


class LearnedConfig(Settings):
    """How the user encoders `softmax` and `attention` are trained, after everything else."""

    steps: int = Field(400, ge=1, le=1_000_000, description="Of Adam.")
    batch_size: int = Field(256, ge=1, le=100_000, description="Cuts of training histories in a step.")
    lr: float = Field(3e-3, gt=0, description="Of attention; the map moves by a hundredth of its deviation.")
    compared: int = Field(
        10_000, ge=1, description="Items in the softmax: all where there are no more, else so many at random."
    )


class ServingConfig(Settings):
    """How an id-based model is served to users and items that it was not trained on."""

    fold_in: Literal["affine", "mean", "exact", "softmax", "attention"] = Field(
        "affine",
        description="User from a live history. mean: of the items' vectors. affine: that, through a map fitted in "
        "closed form to the learned users. exact: what propagation gives a new node of the graph (lightgcn, "
        "lightgcn_channels, slmrec), or the affine map where that finds more of users that neither was fitted on. "
        "macridvae, ease, item_knn, popularity: their own encoder, and there is no other; rankers: affine alone. "
        "softmax: a map trained to find the next item, from the better of those. attention: so trained, and the mean "
        "is weighted. What is trained is kept if it finds more of those users.",
    )
    learned: LearnedConfig = Field(LearnedConfig(), description="For `fold_in` softmax and attention.")
    min_fold_in: float = Field(
        0.8, ge=0, le=1, description="Least recall from a history over that from learned vectors; below, no bundle."
    )
    cold_items: Literal["ridge", "knn", "mean"] = Field(
        "ridge",
        description="Learned part of a new item. ridge: predicted from its content by regression. knn: that of the "
        "known items with the nearest content. mean: of all. Of no effect on popularity: a new item has none.",
    )
    neighbours: int = Field(20, ge=1, le=1000, description="Of a new item with `cold_items = knn`.")


class RunConfig(Settings):
    """What every training run is told."""

    name: str = Field(
        "run", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", description="Becomes part of the bundle's version."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of initialisation, sampling, and the split.")
    model: ModelConfig
    features: FeaturesConfig = Field(
        RawFeatures(),
        description="What the model reads of content: conditioned vectors, or what pretraining makes of it.",
    )
    split: SplitConfig = SplitConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    search: SearchSpace = Field(
        {}, description='Values to try in `prismrec-train compare`, by key: `"optim.lr" = [1e-3, 3e-3]`.'
    )

    @field_validator("search", mode="before")
    @classmethod
    def _keys_are_dotted(cls, search: object) -> object:
        """Take `optim.lr` without quotes, which TOML reads as tables in each other, as the key that it looks like."""
        return dict(_leaves(search)) if isinstance(search, dict) else search

    @model_validator(mode="after")
    def _searched_values_are_possible(self) -> Self:
        for key, values in self.search.items():
            if any(key == fixed or key.startswith(f"{fixed}.") for fixed in _NOT_SEARCHED):
                raise ValueError(f"search.{key}: is the same for all runs that are compared")
            if len(set(values)) < len(values):
                raise ValueError(f"search.{key}: has a value twice")
            for value in values:
                try:
                    with_settings(self, {key: value})
                except ConfigError as error:
                    raise ValueError(f"search.{key} = {json.dumps(value)}: {error}") from error
        return self


class ContentRun(RunConfig):
    """One training run of a content model."""

    model: Annotated[ContentFamily, Field(discriminator="kind")]
    conditioning: ConditioningConfig = ConditioningConfig()
    pairs: PairsConfig = PairsConfig()
    negatives: NegativesConfig = FullSoftmaxConfig()
    optim: ContentOptimConfig = ContentOptimConfig()


class FactorRun(RunConfig):
    """One training run of an id-based model."""

    model: Annotated[IdFamily, Field(discriminator="kind")]
    conditioning: ConditioningConfig = ConditioningConfig(kind="raw")
    optim: FactorOptimConfig = FactorOptimConfig()
    serving: ServingConfig = ServingConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_encoders_need_not_be_asked_for(cls, document: object) -> object:
        """Write `exact` for a family that has an encoder of its own and is asked for none."""
        if isinstance(document, dict):
            match document:
                case {"model": {"kind": kind}, "serving": {**given}} if kind in _OWN_ENCODERS:
                    return {**document, "serving": {"fold_in": "exact", **given}}
                case {"model": {"kind": kind}} if kind in _OWN_ENCODERS and "serving" not in document:
                    return {**document, "serving": {"fold_in": "exact"}}
        return document

    @model_validator(mode="after")
    def _own_encoders_are_the_only_ones(self) -> Self:
        if self.model.kind in _OWN_ENCODERS and self.serving.fold_in != "exact":
            raise ValueError(f"serving.fold_in = {self.serving.fold_in} reads no user of {self.model.kind}: exact does")
        return self

    @model_validator(mode="after")
    def _exact_fold_in_exists(self) -> Self:
        if self.serving.fold_in == "exact" and not self.model.has_exact_fold_in:
            raise ValueError(f"serving.fold_in = exact: {self.model.kind} reads no user by itself")
        return self

    @model_validator(mode="after")
    def _rankers_read_users_by_a_map(self) -> Self:
        if isinstance(self.model, RankerSettings) and self.serving.fold_in != "affine":
            raise ValueError(
                f"serving.fold_in = {self.serving.fold_in} looks for items by inner products, which {self.model.kind} "
                "does not take: affine does not"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_of_raw_dimensions(self) -> Self:
        if isinstance(self.model, VecfConfig) and self.model.regions and self.conditioning.kind == "whiten":
            raise ValueError("conditioning.kind = whiten would mix regions; vecf cuts raw vectors: raw, scale")
        return self

    @model_validator(mode="after")
    def _masks_are_of_raw_dimensions(self) -> Self:
        if isinstance(self.model, InvrlConfig) and self.conditioning.kind == "whiten":
            raise ValueError("conditioning.kind = whiten would mask directions; invrl masks raw dimensions: raw, scale")
        if isinstance(self.model, InvrlConfig) and self.features.kind != "raw":
            raise ValueError(f"features.kind = {self.features.kind}: invrl masks raw dimensions, and these are others")
        return self


AnyRun = ContentRun | FactorRun
RunT = TypeVar("RunT", bound=RunConfig)

_RUNS: dict[str, type[ContentRun] | type[FactorRun]] = {
    family.model_fields["kind"].default: run
    for run, families in ((ContentRun, get_args(ContentFamily)), (FactorRun, get_args(IdFamily)))
    for family in families
}
"""By the model's kind."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> AnyRun:
    """Return the configuration in a TOML file, after `key=value` overrides such as `optim.lr=1e-3`.

    Raises:
        ConfigError: The file can not be read, is not TOML, or a field is unknown or out of bounds; names the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can not be read: {error}") from error
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, source: str = "config") -> AnyRun:
    """Return the configuration in a TOML text; see `load_config`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: is not TOML: {error}") from error
    for override in overrides:
        _override(document, override)
    try:
        return _run_of(document, source=source).model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_told(error)}") from error


def with_settings(config: RunT, settings: Mapping[str, SearchValue]) -> RunT:
    """Return the configuration with other values, by dotted key, and nothing to search.

    Raises:
        ConfigError: A field is unknown or out of bounds; names the field.
    """
    document = _document(config)
    for key, value in settings.items():
        _set(document, key.split("."), value, told=key)
    try:
        return type(config).model_validate(document)
    except ValidationError as error:
        raise ConfigError(_told(error)) from error


def _run_of(document: Mapping[str, object], *, source: str) -> type[ContentRun] | type[FactorRun]:
    """Return which kind of run this is; what is wrong apart from `model.kind` is left to validation."""
    model = document.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    if kind is not None and kind not in _RUNS:
        raise ConfigError(f"{source}: model.kind: {kind!r} is none of {', '.join(map(repr, _RUNS))}")
    return ContentRun if kind is None else _RUNS[kind]


def _override(document: dict[str, object], override: str) -> None:
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override}: expected key=value, such as optim.lr=1e-3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a bare word is a string, as shells make quoting a nuisance
    _set(document, names, parsed, told=f"--set {override}")


def _set(document: dict[str, object], names: Sequence[str], value: object, *, told: str) -> None:
    table = document
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{told}: {name} is a value, not a table")
        table = inner
    table[names[-1]] = value


def _leaves(table: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _told(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(str(part) for part in e['loc']) or 'document'}: {e['msg']}" for e in error.errors())


def to_toml(config: RunConfig) -> str:
    """Return the resolved configuration as TOML, every default written out; `parse_config` gives back the same.

    What could be searched is left out: it is no part of what a run does.
    """
    lines: list[str] = []
    _write_table(_document(config), (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _document(config: RunConfig) -> dict[str, object]:
    return config.model_dump(mode="json", exclude_none=True, exclude={"search"})


def _write_table(table: Mapping[str, object], path: tuple[str, ...], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(path)}]"]
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    # JSON's strings, numbers, booleans and lists of them are TOML's as well.
    lines += [f"{name} = {json.dumps(value)}" for name, value in table.items() if name not in inner]
    for name, value in inner.items():
        _write_table(value, (*path, name), lines)
