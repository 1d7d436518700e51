"""Whether one model is better than another on the same users: resampling users, not figures.

Legend: `B` test users of a seed, `U` test users of any seed, `S` seeds, `R` resamples, `C` columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

_SEED = 0
_LEVEL = (2.5, 97.5)
_DRAWN_AT_ONCE = 4_000_000
"""Users drawn in one piece: 32 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A metric of each test user of one run."""

    users_B: NDArray[np.int64]
    values_B: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference of two models' means, with its interval of 95 %."""

    difference: float
    interval: tuple[float, float]
    relative: float | None
    """Over the other model's mean; None where that is 0."""
    relative_interval: tuple[float, float] | None
    p: float
    """Two-sided: how often a difference of the other sign comes out, twice."""


def paired_bootstrap(ours: Sequence[Sample], theirs: Sequence[Sample], *, resamples: int = RESAMPLES) -> Paired:
    """Return how much better `ours` is than `theirs`, over resamples of the users.

    A user is drawn with what both models did in every seed: seeds are averaged, and do not count as further users.
    Where each seed has its own split, a user counts in the seeds that have them in the test.

    Args:
        ours: One sample per seed.
        theirs: The same seeds in the same order.
        resamples: How many.

    Raises:
        ValueError: There is no seed, or a seed's users are not the same for both.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} runs can not be paired")
    if not all(np.array_equal(a.users_B, b.users_B) for a, b in zip(ours, theirs, strict=True)):
        raise ValueError("the runs were judged on different users")
    users_U = np.unique(np.concatenate([sample.users_B for sample in ours]))
    num_users, num_seeds = len(users_U), len(ours)
    # The difference is a column of its own, so that equal models differ by exactly nothing, whatever is rounded.
    difference_US, theirs_US, tested_US = (np.zeros((num_users, num_seeds)) for _ in range(3))
    for seed, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        place_B = np.searchsorted(users_U, a.users_B)
        difference_US[place_B, seed] = a.values_B - b.values_B
        theirs_US[place_B, seed] = b.values_B
        tested_US[place_B, seed] = 1
    columns_UC = np.concatenate([difference_US, theirs_US, tested_US], axis=1)

    def averaged(sums_RC: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        difference_RS, theirs_RS, count_RS = np.split(sums_RC, 3, axis=1)
        count_RS = np.maximum(count_RS, 1)
        return (difference_RS / count_RS).mean(axis=1), (theirs_RS / count_RS).mean(axis=1)

    rng = np.random.default_rng(_SEED)
    at_once = max(1, _DRAWN_AT_ONCE // num_users)
    sums = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn_RU = rng.integers(0, num_users, (count, num_users)) + np.arange(count)[:, None] * num_users
        weight_RU = np.bincount(drawn_RU.ravel(), minlength=count * num_users).reshape(count, num_users)
        sums.append(weight_RU.astype(np.float64) @ columns_UC)
    difference_R, theirs_R = averaged(np.concatenate(sums))
    (difference,), (mean,) = averaged(columns_UC.sum(axis=0, keepdims=True))
    # One more on either side: a p of 0 would claim more than so many resamples can tell.
    tail = 1 + min(int((difference_R <= 0).sum()), int((difference_R >= 0).sum()))
    has_ratio = mean > 0 and bool((theirs_R > 0).all())
    return Paired(
        difference=float(difference),
        interval=_interval(difference_R),
        relative=float(difference / mean) if has_ratio else None,
        relative_interval=_interval(difference_R / theirs_R) if has_ratio else None,
        p=min(1.0, 2 * tail / (resamples + 1)),
    )


def _interval(value_R: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(value_R, _LEVEL)
    return float(low), float(high)
