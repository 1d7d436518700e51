"""The base of every table of a run's configuration."""

from pydantic import ConfigDict

from api_schemas.base import OnDisk


class Settings(OnDisk):
    """Frozen, without unknown fields, and without infinity and NaN, which TOML has and no setting means."""

    model_config = ConfigDict(allow_inf_nan=False)
