"""UltraGCN with multimedia content, and InvRL on it: what they can be told.

UltraGCN (Mao et al. 2021) is what infinitely many layers of graph convolution converge to, trained directly: a weighted
cross-entropy whose weights are the graph's. InvRL (Du et al. 2022) finds environments in which users' tastes for
spurious content differ, and learns a mask of content that works alike in all of them.
"""

from typing import ClassVar, Literal

from pydantic import Field

from training.models.factors import FactorSettings, Layout
from training.settings import Settings

Negatives = Literal["auto", "full", "shared", "sampled"]


class UltraGcnSettings(FactorSettings):
    """What both families share."""

    layout: ClassVar[Layout] = Layout(projection_bias=True)

    init_std: float = Field(0.01, gt=0, le=10, description="Deviation of the normal law that all weights start from.")
    positive_weight: float = Field(1.0, ge=0, description="w1 of a user's items; UltraGCN's constraint has 1.")
    positive_beta: float = Field(1.0, ge=0, description="w2, times beta_ui: the constraint of the graph (Eq. 18).")
    negative_weight: float = Field(1.0, ge=0, description="w3 of other items.")
    negative_beta: float = Field(1.0, ge=0, description="w4, times beta_uj.")
    negative_factor: float = Field(
        1.0, gt=0, description="Of the mean over negatives in the sum; UltraGCN takes 200 to 1000, InvRL 1."
    )
    negatives: Negatives = Field(
        "auto",
        description="full: every item, the expected value of any sample. shared: a sample for the step. sampled: one "
        "for each pair, as published. auto: full up to 10,000 items, else shared.",
    )
    num_negatives: int = Field(1024, ge=1, le=1_000_000, description="Of a sample; the papers have 50 for each pair.")
    item_item: float = Field(0.0, ge=0, description="gamma_I: weight of the item-item term (Eq. 19-20).")
    item_neighbours: int = Field(10, ge=1, le=1000, description="Of an item in that term; the item itself is none.")


class UltraGcnConfig(UltraGcnSettings):
    """UltraGCN on ids and content."""

    kind: Literal["ultragcn"] = "ultragcn"


class PartitionConfig(Settings):
    """InvRL's environments (Eq. 5-7): interactions go where a model of their variant content scores them best."""

    environments: int = Field(3, ge=1, le=64, description="|E|.")
    rounds: int = Field(4, ge=1, le=100, description="Assignments after each other, at most.")
    stop_moved: float = Field(0.01, ge=0, lt=1, description="No further round when at most this share has moved.")
    epochs: int = Field(2, ge=1, le=1000, description="Of the environments' models in one round.")
    lr: float = Field(1e-2, gt=0, description="Of Adam for W and b of each environment.")
    batch_size: int = Field(1024, ge=1, description="Users of a step.")
    content: Literal["variant", "soft"] = Field(
        "variant",
        description="variant: (1 - m) * c, as the paper has it. soft: all content, with an L1 penalty on W * m, as the "
        "published code has it.",
    )
    soft_weight: float = Field(0.01, ge=0, description="Of that penalty, times the mean of |W * m|.")
    warm: bool = Field(True, description="Each round goes on from the one before; False: from the pretrained model.")
    score: Literal["raw", "centred"] = Field(
        "raw", description="centred: minus the environment's mean score of the user over all items."
    )


class MaskConfig(Settings):
    """InvRL's mask (Eq. 8-12)."""

    epochs: int = Field(10, ge=1, le=1000, description="Passes over the users.")
    batch_size: int = Field(512, ge=1, description="Users of a step; each environment has its own pairs of them.")
    num_negatives: int = Field(512, ge=1, le=1_000_000, description="Shared by a step, at most the catalogue.")
    lr: float = Field(1e-2, gt=0, description="Of Adam for the mask.")
    lr_weight: float = Field(1e-2, gt=0, description="Of Adam for W.")
    noise: float = Field(0.1, ge=0, le=1, description="sigma of the mask's noise, fresh for each environment and step.")
    alpha: float = Field(16.0, ge=0, description="Weight of the gradients' variance over environments.")
    prior_weight: float = Field(1e-4, ge=0, description="lambda of the pull to `prior`, for a mean loss over pairs.")
    prior: float = Field(0.5, ge=0, le=1, description="Where the mask starts and is pulled to; the paper prints 0.")
    growth: float = Field(1.05, ge=1, description="Of alpha and lambda from one iteration to the next.")
    penalty: Literal["direct", "hrm", "paper", "code"] = Field(
        "direct",
        description="direct: variance of the gradients of W times the mask, times the mask, summed. The others take "
        "those of W, which fade as the mask closes. hrm: variance times mask, summed. paper: squared after that, "
        "variance over E. code: the same with the sum over environments in place of the variance.",
    )
    normalised: bool = Field(
        True, description="Divide by the gradients' mean squared length, so that alpha has no scale."
    )


class InvrlConfig(UltraGcnSettings):
    """InvRL on UltraGCN."""

    kind: Literal["invrl"] = "invrl"
    iterations: int = Field(2, ge=1, le=100, description="T: partition and mask after each other; the paper has 5.")
    partition: PartitionConfig = PartitionConfig()
    masking: MaskConfig = MaskConfig()
    final: Literal["scratch", "warm"] = Field(
        "scratch", description="Where the last model starts: new, or from the pretrained one."
    )
