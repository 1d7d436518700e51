"""The families of models: one file each, joined in the closed union `ModelConfig`.

To add a family: its file here (config and module), its config in the union, and a file in `training/configs`.
"""

from typing import Annotated

from pydantic import Field

from training.models.content import ContentModel, FeatureSpec
from training.models.demure import BaseConfig, Demure, DemureConfig

ModelConfig = Annotated[DemureConfig | BaseConfig, Field(discriminator="kind")]
"""`kind` in the configuration says which; a typo is an error that lists the kinds."""

__all__ = ["BaseConfig", "ContentModel", "Demure", "DemureConfig", "FeatureSpec", "ModelConfig"]
