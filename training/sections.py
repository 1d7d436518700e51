"""Sections of a run's configuration that tell how it trains, is judged and is served; `training.config` joins them."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from index.metrics import METRICS
from training.data.candidates import SampledConfig, is_sampled
from training.models.item_item import SlitSettings
from training.settings import Settings

MetricName = Annotated[str, StringConstraints(pattern=rf"^({'|'.join(METRICS)})@[1-9][0-9]{{0,3}}$")]


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


class BesideConfig(SlitSettings):
    """A linear model of what follows what beside a content model; see `training.models.beside`."""

    dim: int = Field(
        64, ge=1, le=1024, description="Directions that are kept: so much longer are item vectors and queries."
    )


class ServingConfig(Settings):
    """How an id-based model is served to users and items that it was not trained on."""

    fold_in: Literal["affine", "mean", "exact", "softmax", "attention"] = Field(
        "affine",
        description="User from a live history. mean: of the items' vectors. affine: that, through a map fitted in "
        "closed form to the learned users. exact: what propagation gives a new node of the graph (lightgcn, "
        "lightgcn_channels, slmrec), or the affine map where that finds more of users that neither was fitted on. "
        "macridvae, ease, slit, item_knn, popularity: their own encoder, and there is no other; rankers: affine alone. "
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
