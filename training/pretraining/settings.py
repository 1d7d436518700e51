"""What pretraining of content can be told, and what a run's models read of content."""

from typing import Annotated, Literal

from pydantic import Field

from training.data.conditioning import ConditioningConfig
from training.settings import Settings

Contrast = Literal["infonce", "softplus", "none"]


class PretrainingSettings(Settings):
    """What both kinds of pretraining share. It reads items alone: no interaction, no user."""

    dim: int = Field(64, ge=1, le=4096, description="Width of a representation.")
    epochs: int = Field(100, ge=0, le=10_000, description="Passes over the items; 0: the maps stay random.")
    max_steps: int = Field(20_000, ge=1, description="Stop after so many steps, whatever the epochs say.")
    batch_size: int = Field(128, ge=2, le=65_536, description="Items of a step.")
    lr: float = Field(1e-3, gt=0, description="Of Adam.")
    weight_decay: float = Field(1e-5, ge=0, description="L2 on all weights, through Adam.")


class DisentanglingConfig(PretrainingSettings):
    """PAMD's pretraining: L_pre = L_en + L_de (Eq. 11)."""

    encoder_weight: float = Field(
        1.0, ge=0, description="Of L_en (Eq. 3): common parts alike, specific parts orthogonal. 0: contrast alone."
    )
    contrast_weight: float = Field(1.0, ge=0, description="Of L_de. 0: the encoder's loss alone.")
    contrast: Contrast = Field(
        "infonce",
        description="How L_de orders what each part tells of the other modalities, common before whole before "
        "specific. infonce: by cosine, as the published code. softplus: of differences of squared errors (Eq. 10 as "
        "it is meant). none: the common part's squared error alone (Eq. 14).",
    )
    tau: float = Field(0.5, gt=0, le=100, description="Temperature of infonce.")
    rho: float = Field(0.0, ge=0, description="Of the common part's squared error beside `softplus`.")


class CorrAeConfig(PretrainingSettings):
    """Corr-AE: an autoencoder for each modality, with codes that are tied (Feng et al. 2014)."""

    tie: float = Field(0.5, ge=0, le=1, description="alpha: weight of the codes' distance; 1 - alpha of the errors.")


class RawFeatures(Settings):
    """Models read conditioned vectors."""

    kind: Literal["raw"] = "raw"


class PretrainedFeatures(Settings):
    """Models read what pretraining makes of vectors that are whitened first."""

    whitening: ConditioningConfig = Field(
        ConditioningConfig(), description="Of what pretraining reads and predicts; the run's own is not used."
    )


class PamdFeatures(PretrainedFeatures):
    """Of each modality PAMD's common and specific part, side by side."""

    kind: Literal["pamd"] = "pamd"
    pretraining: DisentanglingConfig = Field(DisentanglingConfig(), description="What is done with the items first.")


class CorrAeFeatures(PretrainedFeatures):
    """Of each modality its code."""

    kind: Literal["corr_ae"] = "corr_ae"
    pretraining: CorrAeConfig = Field(CorrAeConfig(), description="What is done with the items first.")


FeaturesConfig = Annotated[RawFeatures | PamdFeatures | CorrAeFeatures, Field(discriminator="kind")]
