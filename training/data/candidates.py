"""Some items at random that a user's targets are ranked among: how many papers evaluate, and no way to decide.

A model that wins among 1,000 candidates need not win in the whole catalogue. So such figures carry their sample in
their name, `recall@10_of_1000`, beside those of the whole catalogue, and select nothing.

Legend: `B` users, `T` longest target list, `C` most candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from index.metrics import NO_TARGET
from training.data.interactions import Interactions
from training.settings import Settings

NO_CANDIDATE = -1
"""Fills lists of candidates that are shorter than the longest."""


class SampledConfig(Settings):
    """How candidates are drawn."""

    n: int = Field(1000, ge=1, le=1_000_000, description="How many candidates.")
    rule: Literal["total", "added"] = Field(
        "total",
        description="total: the targets among n items in all, so the more targets a user has, the fewer others (PAMD's "
        "code). added: the targets and n others (as its paper reads).",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of the draw. The run's has no part in it.")

    def named(self, metric: str) -> str:
        """Return what a metric of the sample is called: `recall@10_of_1000` in all, `recall@10_against_1000` others."""
        return f"{metric}_{'of' if self.rule == 'total' else 'against'}_{self.n}"


def is_sampled(metric: str) -> bool:
    """Return whether a figure of this name is of a sample."""
    return "_" in metric.partition("@")[2]


def without_sampled(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of the whole catalogue."""
    return {name: value for name, value in metrics.items() if not is_sampled(name)}


def sampled_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of a sample."""
    return {name: value for name, value in metrics.items() if is_sampled(name)}


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is ranked for each user beside the whole catalogue."""

    config: SampledConfig
    rows_BC: NDArray[np.int32]
    """Of the catalogue, ascending, filled with `NO_CANDIDATE`: equal scores fall as they would in the whole."""


def draw_candidates(
    config: SampledConfig, interactions: Interactions, users_B: NDArray[np.int64], targets_BT: NDArray[np.int64]
) -> Candidates:
    """Return each user's targets with items at random that the user never had, in training or in any other part.

    A user's draw depends on the seed, the user and the targets alone: it is one for all models, epochs and runs.

    Raises:
        ValueError: There are no more items than candidates.
    """
    num_items = interactions.num_items
    if config.n >= num_items:
        raise ValueError(f"eval.sampled.n is {config.n:,}, and the catalogue has but {num_items:,} items to draw from")
    drawn: list[NDArray[np.int64]] = []
    for user, targets_T in zip(users_B.tolist(), targets_BT, strict=True):
        targets = targets_T[targets_T != NO_TARGET]
        had = np.unique(interactions.of(user))
        num_others = config.n if config.rule == "added" else max(0, config.n - len(targets))
        rng = np.random.default_rng([config.seed, user])
        some = rng.choice(num_items, min(num_items, num_others + len(had)), replace=False)
        others = some[~np.isin(some, had)][:num_others]
        drawn.append(np.sort(np.concatenate([targets, others])))
    rows_BC = np.full((len(drawn), max((len(rows) for rows in drawn), default=0)), NO_CANDIDATE, np.int32)
    for row_C, rows in zip(rows_BC, drawn, strict=True):
        row_C[: len(rows)] = rows
    return Candidates(config, rows_BC)
