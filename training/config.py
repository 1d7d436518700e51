"""What a training run is told: TOML in, one frozen validated object out, and TOML again for the bundle.

Each value has one place: its default is in its field and its meaning in the field's description. There is no
inheritance between files; a variant is another small file, and `--set key=value` is the only override.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeVar, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from training.data.batches import PairsConfig
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
from training.sections import (
    BesideConfig,
    ContentOptimConfig,
    EvalConfig,
    ExportConfig,
    FactorOptimConfig,
    OptimConfig,
    ServingConfig,
)
from training.settings import Settings

SearchValue = bool | int | float | str
SearchSpace = dict[str, Annotated[tuple[SearchValue, ...], Field(min_length=1)]]

_OWN_ENCODERS = ("macridvae", "ease", "slit", "item_knn", "popularity")
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
    beside: BesideConfig | None = Field(
        None, description="Solve what follows what in closed form, too, and add its scores to the network's."
    )

    @model_validator(mode="after")
    def _beside_is_one_part(self) -> Self:
        if self.beside is not None and (self.model.ids or self.model.reads_ages):
            raise ValueError("beside: knows items as such, so model.ids has no place; and mtin, which reads ages, none")
        return self


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
