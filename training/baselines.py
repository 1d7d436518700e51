"""What a model must beat: popularity, item-kNN and EASE, on the same split and by the same metrics.

Legend: `U` training users, `N` items, `B` held-out users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.interactions import gather_rows
from training.data.split import HeldOut, Seen, Split
from training.evaluate import evaluate_scores

Name = Literal["popularity", "item_knn", "ease"]

NUM_NEIGHBOURS = (20, 50, 100, 200, 500)
RIDGE = (100.0, 200.0, 400.0, 800.0, 1600.0)

MAX_ITEMS = 20_000
"""EASE and item-kNN keep an N x N matrix in memory; at this size it takes 3.2 GB."""

OnProgress = Callable[[str, int, int], None]
ItemMatrix = NDArray[np.float32]
"""Weights `[N, N]`: a user's scores are the sum of the rows of the history."""


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """One tuned baseline on one split."""

    name: Name
    setting: str
    """What was chosen on the validation users, such as `k=100`."""
    valid: dict[str, float]
    test: dict[str, float]


def run_baselines(
    split: Split,
    *,
    cutoffs: Sequence[int] = (20, 50),
    monitor: str = "recall@20",
    seen: Seen = "mask",
    on_progress: OnProgress | None = None,
) -> list[BaselineResult]:
    """Fit each baseline on the training users, choose its one setting on validation, and judge it on test.

    Args:
        split: As the models have it.
        cutoffs: Of the metrics.
        monitor: Metric that chooses the setting.
        seen: As in training.
        on_progress: Hears how many settings are done, and of how many.

    Raises:
        ValueError: The catalogue is too large for matrices over all pairs of items, or there are no test users.
    """
    num_items = split.train.num_items
    if num_items > MAX_ITEMS:
        raise ValueError(f"baselines need all pairs of items in memory: {num_items:,} items, at most {MAX_ITEMS:,}")
    if len(split.test) == 0:
        raise ValueError("the split has no test users to judge baselines on")
    report = on_progress or (lambda _what, _done, _total: None)
    history_UN = _matrix(*gather_rows(split.train, split.train_users), shape=(len(split.train_users), num_items))
    gram_NN = (history_UN.T @ history_UN).toarray().astype(np.float64)

    def judge(weights_NN: ItemMatrix | None, users: HeldOut) -> dict[str, float]:
        popularity_N = torch.from_numpy(np.diag(gram_NN).astype(np.float32))

        def score(piece: slice) -> Tensor:
            histories = users.histories[piece]
            if weights_NN is None:
                return popularity_N.repeat(len(histories), 1)
            user_X = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
            item_X = np.concatenate(histories)
            return torch.from_numpy(_matrix(user_X, item_X, shape=(len(histories), num_items)) @ weights_NN)

        return evaluate_scores(score, users, num_items=num_items, cutoffs=cutoffs, seen=seen)

    results = [BaselineResult("popularity", "", judge(None, split.valid), judge(None, split.test))]
    candidates: dict[Name, list[tuple[str, Callable[[], ItemMatrix]]]] = {
        "item_knn": [(f"k={k}", partial(item_knn, gram_NN, num_neighbours=k)) for k in NUM_NEIGHBOURS],
        "ease": [(f"ridge={ridge:g}", partial(ease, gram_NN, ridge=ridge)) for ridge in RIDGE],
    }
    for name, settings in candidates.items():
        best: BaselineResult | None = None
        for done, (setting, make) in enumerate(settings, start=1):
            weights_NN = make()
            valid = judge(weights_NN, split.valid)
            if best is None or valid[monitor] > best.valid[monitor]:
                best = BaselineResult(name, setting, valid, judge(weights_NN, split.test))
            report(name, done, len(settings))
        assert best is not None
        results.append(best)
    return results


def item_knn(gram_NN: NDArray[np.float64], *, num_neighbours: int) -> ItemMatrix:
    """Return cosine similarities of items as sets of users, cut to each item's nearest neighbours.

    Args:
        gram_NN: How many users two items share; the diagonal is how many an item has.
        num_neighbours: Kept per column: the candidates' side.
    """
    length_N = np.sqrt(np.maximum(np.diag(gram_NN), 1))
    similarity_NN = (gram_NN / length_N[:, None] / length_N[None, :]).astype(np.float32)
    np.fill_diagonal(similarity_NN, 0)
    cut = max(0, len(gram_NN) - num_neighbours)
    weakest_N = np.partition(similarity_NN, cut, axis=0)[cut] if cut else np.zeros(len(gram_NN), np.float32)
    return np.where(similarity_NN >= weakest_N, similarity_NN, np.float32(0))


def ease(gram_NN: NDArray[np.float64], *, ridge: float) -> ItemMatrix:
    """Return EASE's weights (Steck 2019): B = -P / diag(P) with P = (G + ridge I)^-1, and a diagonal of zeros."""
    inverse_NN = np.linalg.inv(gram_NN + ridge * np.eye(len(gram_NN)))
    weights_NN = -inverse_NN / np.diag(inverse_NN)
    np.fill_diagonal(weights_NN, 0)
    return weights_NN.astype(np.float32)


def _matrix(user_X: NDArray[np.int64], item_X: NDArray[np.int64], *, shape: tuple[int, int]) -> sp.csr_matrix:
    """Return a matrix with 1 where a user has an item, however often."""
    matrix = sp.csr_matrix((np.ones(len(user_X), np.float32), (user_X, item_X)), shape=shape)
    matrix.data[:] = 1
    return matrix
