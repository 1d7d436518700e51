"""Ranking metrics on plain arrays: recall, precision, hit and the five NDCG conventions under their own names.

Published NDCG figures are not comparable with each other, because at least four formulas go by that name. `ndcg` is
the standard one here, always; the others exist to reproduce other people's tables and never share its name.

Legend: `B` users, `K` length of the ranked list, `T` longest target list. With hits at positions j (from 0),
disc(j) = 1 / log2(j + 2) and IDC(n) = sum of disc(j) for j < n.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["recall", "precision", "hit", "ndcg", "ndcg_hits", "ndcg_target_index", "ndcg_untruncated"]

METRICS: tuple[Metric, ...] = (
    "recall",
    "precision",
    "hit",
    "ndcg",
    "ndcg_hits",
    "ndcg_target_index",
    "ndcg_untruncated",
)

NO_TARGET = -1
"""Fills target lists that are shorter than the longest."""


def pad_targets(targets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return target lists as `[B, T]`, without repeats (the first stays), filled with `NO_TARGET`.

    Args:
        targets: Per user the held-out rows in chronological order.
    """
    unique = []
    for rows in targets:
        _, first = np.unique(rows, return_index=True)
        unique.append(rows[np.sort(first)])
    padded_BT = np.full((len(unique), max((len(rows) for rows in unique), default=0)), NO_TARGET, np.int64)
    for row, rows in zip(padded_BT, unique, strict=True):
        row[: len(rows)] = rows
    return padded_BT


def per_user(
    ranked_BK: NDArray[np.int64], targets_BT: NDArray[np.int64], *, k: int
) -> dict[Metric, NDArray[np.float64]]:
    """Return every metric at cut-off k, for each user `[B]`.

    * recall = h / |T|, precision = h / k, hit = [h > 0] for h hits among the first k.
    * ndcg (standard): sum over hits of disc(j) / IDC(min(|T|, k)).
    * ndcg_hits: the same over IDC(h), 0 without a hit. Measures the order of the hits only.
    * ndcg_target_index: sum over held-out items that were found of disc(their index in the chronological target list)
      over IDC(h). By the evidence the convention of Demure's tables; grows where the rank is not discounted at all.
    * ndcg_untruncated: sum over hits of disc(j) / IDC(|T|).

    Args:
        ranked_BK: Best first, at least k long; a negative row (nothing more to recommend) is never a hit.
        targets_BT: From `pad_targets`: chronological, no repeats, filled with `NO_TARGET`.
        k: Cut-off.

    Raises:
        ValueError: A user has no target, or the ranked lists are shorter than k.
    """
    if ranked_BK.shape[1] < k:
        raise ValueError(f"the ranked lists hold {ranked_BK.shape[1]} items, the cut-off is {k}")
    sizes_B = (targets_BT != NO_TARGET).sum(axis=1)
    if np.any(sizes_B == 0):
        raise ValueError(f"user {int(np.argmin(sizes_B))} has no target: leave such users out of the mean")
    top_BK = ranked_BK[:, :k]
    hits_BK, found_BT = _matches(top_BK, targets_BT)
    num_hits_B = hits_BK.sum(axis=1)
    disc = 1 / np.log2(np.arange(max(k, targets_BT.shape[1])) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(disc)])
    gain_B = hits_BK @ disc[:k]
    found_gain_B = found_BT @ disc[: targets_BT.shape[1]]
    ideal_hits_B = np.maximum(ideal[num_hits_B], 1.0)  # disc(0) = 1: only users without a hit are touched, and give 0
    return {
        "recall": num_hits_B / sizes_B,
        "precision": num_hits_B / k,
        "hit": (num_hits_B > 0).astype(np.float64),
        "ndcg": gain_B / ideal[np.minimum(sizes_B, k)],
        "ndcg_hits": gain_B / ideal_hits_B,
        "ndcg_target_index": found_gain_B / ideal_hits_B,
        "ndcg_untruncated": gain_B / ideal[sizes_B],
    }


def evaluate(
    ranked_BK: NDArray[np.int64], targets_BT: NDArray[np.int64], *, cutoffs: Sequence[int] = (20, 50)
) -> dict[str, float]:
    """Return the plain mean over users of every metric, by name such as `recall@20`. Arguments as `per_user`."""
    return {
        f"{name}@{k}": float(values_B.mean())
        for k in cutoffs
        for name, values_B in per_user(ranked_BK, targets_BT, k=k).items()
    }


def mean_and_deviation(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and sample standard deviation (0 for one run) of each metric over runs, such as seeds."""
    return {
        name: (
            float(np.mean([run[name] for run in runs])),
            float(np.std([run[name] for run in runs], ddof=1)) if len(runs) > 1 else 0.0,
        )
        for name in runs[0]
    }


def _matches(top_BK: NDArray[np.int64], targets_BT: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which ranks are hits `[B, K]` and which targets were found `[B, T]`.

    One search over (user, row) keys: memory stays at B x (K + T), where comparing all pairs takes B x K x T.
    """
    users, _ = top_BK.shape
    span = int(max(top_BK.max(initial=0), targets_BT.max(initial=0))) + 1
    offset_B1 = np.arange(users, dtype=np.int64)[:, None] * span
    top_keys_BK = np.where(top_BK >= 0, top_BK + offset_B1, -1)
    target_keys_BT = np.where(targets_BT >= 0, targets_BT + offset_B1, -2)
    return np.isin(top_keys_BK, target_keys_BT), np.isin(target_keys_BT, top_keys_BK)
