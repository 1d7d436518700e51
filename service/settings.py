"""Settings of the service. Flags win over the environment, the environment over the TOML file, that over the defaults.

Built once, in `service.cli` or a test; parts get plain values or one of the small groups here, never the whole.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "PRISMREC_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
NOT_SETTINGS = frozenset({CONFIG_VARIABLE, f"{PREFIX}TEST_SHARED"})

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(_Group):
    """What a connection may do."""

    max_body_bytes: int = Field(default=4_194_304, ge=1_024, le=268_435_456, description="Largest request body.")
    default_timeout_ms: int = Field(
        default=1_000, ge=1, le=60_000, description="Time for a request that brings no `timeout_ms`."
    )
    max_timeout_ms: int = Field(
        default=10_000, ge=1, le=60_000, description="Largest time that a request gets, whatever its `timeout_ms`."
    )
    keep_alive_s: Seconds = Field(default=30.0, description="An idle connection is closed after so long.")
    drain_s: float = Field(
        default=5.0,
        ge=0,
        le=3_600,
        description="After SIGTERM `/readyz` fails and requests are served for so long before the service stops.",
    )
    finish_s: Seconds = Field(default=30.0, description="Time for requests in flight once the drain window is over.")
    body_timeout_s: Seconds = Field(default=10.0, description="Time for a request body to arrive.")
    docs: bool = Field(default=True, description="Serve `/docs` and `/openapi.json`.")


class ComputeSettings(_Group):
    """Threads and bounds of what is computed."""

    max_in_flight: int = Field(
        default=256, ge=1, le=100_000, description="Requests in flight in one worker; the next one gets 503 at once."
    )
    max_batch: int = Field(default=16, ge=1, le=1_024, description="Recommendations that are computed together.")
    num_threads: int = Field(default=1, ge=1, le=256, description="Threads that compute recommendations.")
    num_explain_threads: int = Field(
        default=1, ge=1, le=256, description="Threads for explanations, similar and popular items."
    )
    rerank_candidates: int = Field(
        default=500,
        ge=1,
        le=10_000,
        description="Items that are retrieved for the ranker to order, where the current snapshot has a ranker.",
    )
    on_loop_below_ms: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Recommendations that take less processor time than this (measured when a version is loaded) are "
        "computed on the event loop, as a thread would cost more; 0: never.",
    )
    model_threads: int = Field(
        default=1, ge=1, le=256, description="Threads of ONNX Runtime and FAISS inside one call."
    )


class EventSettings(_Group):
    """How much of a behaviour is kept, and what a store may take."""

    max_per_subject: int = Field(
        default=500, ge=1, le=100_000, description="Events kept for a user or session; older ones are dropped."
    )
    max_blocks: int = Field(
        default=1_000, ge=1, le=10_000, description="Items that a user can block; one more is refused with 409."
    )
    keep_slates_s: Seconds = Field(
        default=3_600.0, description="What was shown can be explained and continued for so long."
    )
    max_slates: int = Field(
        default=100_000, ge=1, le=100_000_000, description="Answers kept for that at most; the oldest go first."
    )
    keep_answers_s: Seconds = Field(
        default=86_400.0, description="A write that brings an `Idempotency-Key` is answered again for so long."
    )
    max_answers: int = Field(
        default=100_000, ge=1, le=100_000_000, description="Keys of that kind kept at most; the oldest go first."
    )
    keep_idle_days: int = Field(
        default=365, ge=1, le=36_500, description="A user or session without a new event is forgotten after so long."
    )
    dedupe_days: int = Field(
        default=7, ge=1, le=3_650, description="Redis: an `event_id` is known for so long (SQLite: while it is kept)."
    )
    max_future_s: float = Field(
        default=600.0, ge=0, le=86_400, description="How far `occurred_at` may lie ahead of our clock."
    )
    read_timeout_s: Seconds = Field(
        default=0.05, description="A history that takes longer is left out and the answer is `degraded`."
    )
    write_timeout_s: Seconds = Field(default=2.0, description="Events that take longer to keep get 503.")


class ItemSettings(_Group):
    """How the catalogue changes between two rebuilds."""

    max_changed: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Changed items that are kept, and held by each process with their vectors; more get 409.",
    )
    interval_s: Seconds = Field(
        default=1.0, description="How often each process looks for changes; a request that needs them looks itself."
    )


class AuthSettings(_Group):
    """Who may call."""

    keys_file: Path | None = Field(
        default=None,
        description="Hashed API keys, read again when the file changes. Without it only loopback clients are served.",
    )


class ReloadSettings(_Group):
    """How a new version is found."""

    interval_s: Seconds = Field(default=2.0, description="How often `CURRENT` and the aliases are looked at.")
    max_versions: int = Field(
        default=8, ge=1, le=64, description="Different snapshots that are kept loaded for scenarios beside the default."
    )


class BuildSettings(_Group):
    """What `POST /v1/indexes` builds from."""

    data: Path | None = Field(
        default=None,
        description="Folder of the dataset folders that a build may name; by default `data` in the store folder.",
    )
    config: Path | None = Field(
        default=None, description="TOML file that says how to rebuild, such as those in `index/configs`."
    )
    max_waiting: int = Field(
        default=8, ge=0, le=100, description="Builds that may wait for the one that runs; more get 409."
    )


class LogSettings(_Group):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else one JSON object a line."
    )
    requests: bool = Field(default=False, description="Log every request; failures of ours are logged in any case.")


class ServiceSettings(BaseSettings):
    """All settings; nested ones are written `PRISMREC_HTTP__DRAIN_S` in the environment, `[http] drain_s` in TOML."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    store: Path = Field(description="Folder of bundles and snapshots.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(default=1, ge=1, le=256, description="Processes that answer.")
    history: str = Field(
        default="",
        repr=False,
        description="Where events are kept: `sqlite:PATH` or `redis://HOST:PORT/DB` (also `rediss://`, `unix://`); "
        "by default `events.db` in the store folder.",
    )
    http: HttpSettings = Field(default=HttpSettings(), description="")
    compute: ComputeSettings = Field(default=ComputeSettings(), description="")
    events: EventSettings = Field(default=EventSettings(), description="")
    items: ItemSettings = Field(default=ItemSettings(), description="")
    auth: AuthSettings = Field(default=AuthSettings(), description="")
    reload: ReloadSettings = Field(default=ReloadSettings(), description="")
    builds: BuildSettings = Field(default=BuildSettings(), description="")
    log: LogSettings = Field(default=LogSettings(), description="")

    @field_validator("history")
    @classmethod
    def _history_is_known(cls, value: str) -> str:
        if value and (not value.startswith(("sqlite:", "redis://", "rediss://", "unix://")) or value == "sqlite:"):
            raise ValueError("must be sqlite:PATH or redis://HOST:PORT/DB")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def history_url(self) -> str:
        """Where events are kept, spelled out."""
        return self.history or f"sqlite:{self.store / 'events.db'}"

    @property
    def data_folder(self) -> Path:
        """Where dataset folders are, spelled out."""
        return self.builds.data or self.store / "data"


class SettingsError(ValueError):
    """A setting that is missing or wrong: one line for each, with its name."""


def load_settings(*, config_file: Path | None = None, **flags: object) -> ServiceSettings:
    """Read the settings: flags, then the environment, then the TOML file.

    Args:
        config_file: The TOML file; by default the one that `PRISMREC_CONFIG` names, if any.
        **flags: Fields that were given on the command line; None stands for one that was not.

    Raises:
        SettingsError: Says what is wrong, a line for each setting.
    """
    file = config_file or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    if file is not None:
        _check_toml(file)

    class FromFile(ServiceSettings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        lines = [f"{_name(problem['loc'])}: {_say(problem['type'], problem['msg'])}" for problem in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def unknown_variables() -> list[str]:
    """Return the variables of the environment that look like settings and are none, such as misspelled ones."""
    known = {row.variable for row in describe_settings()} | NOT_SETTINGS
    groups = {name.rpartition("__")[0] for name in known if "__" in name}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name.upper() not in known | groups)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as the documentation shows it."""

    variable: str
    default: str
    description: str


def describe_settings() -> list[SettingRow]:
    """Return a row for every setting, in the order in which they are declared."""
    return _rows(ServiceSettings, prefix=PREFIX)


def settings_markdown() -> str:
    """Return the table of all settings for the documentation."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    lines += [f"| `{row.variable}` | {row.default} | {row.description} |" for row in describe_settings()]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], *, prefix: str) -> list[SettingRow]:
    rows: list[SettingRow] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += _rows(field.annotation, prefix=f"{prefix}{name.upper()}__")
            continue
        rows.append(SettingRow(f"{prefix}{name.upper()}", _default(field), field.description or ""))
    return rows


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default == "":
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _check_toml(file: Path) -> None:
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from error


def _name(location: tuple[int | str, ...]) -> str:
    return PREFIX + "__".join(str(part).upper() for part in location)


def _say(kind: str, message: str) -> str:
    return "is required" if kind == "missing" else "is no setting" if kind == "extra_forbidden" else message
