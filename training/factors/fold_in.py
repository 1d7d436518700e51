"""Users from live histories: the mean of the items' vectors, through a map fitted in closed form to learned users.

A raw mean fails for pointwise losses, whose item vectors share a large common direction; the affine map removes it.

Legend: `U` users, `I` items, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried, times the mean of the diagonal of X'X, so that the scale of vectors does not matter."""


@dataclass(frozen=True, slots=True, eq=False)
class FoldInMap:
    """A user encoder: mean of the history's last L items, times `map_DD`, plus `offset_D`."""

    kind: Literal["affine", "mean"]
    history_length: int
    map_DD: Tensor
    offset_D: Tensor
    default_D: Tensor
    """Of an empty history: the mean learned user."""
    ridge: float | None
    r2: float | None
    """On users that the map was not fitted on."""

    def queries(self, items_ID: Tensor, histories: Sequence[NDArray[np.int64]]) -> Tensor:
        """Return `[U, D]` of users with these histories."""
        pooled_UD = pool(items_ID, histories, length=self.history_length)
        empty_U1 = torch.tensor([len(one) == 0 for one in histories]).unsqueeze(-1)
        return torch.where(empty_U1, self.default_D, pooled_UD @ self.map_DD + self.offset_D)


def pool(items_ID: Tensor, histories: Sequence[NDArray[np.int64]], *, length: int) -> Tensor:
    """Return the mean vector `[U, D]` of each history's last `length` items; zero for an empty one."""
    cut = [one[-length:] for one in histories]
    lengths_U = np.array([len(one) for one in cut], np.int64)
    row_X = np.repeat(np.arange(len(cut)), lengths_U)
    item_X = np.concatenate([*cut, np.zeros(0, np.int64)])
    weight_X = 1 / np.repeat(lengths_U, lengths_U)
    mean_UI = sp.csr_matrix((weight_X, (row_X, item_X)), shape=(len(cut), len(items_ID)))
    return torch.from_numpy(np.asarray(mean_UI @ items_ID.numpy())).to(items_ID.dtype)


def affine_map(pooled_UD: Tensor, target_UD: Tensor, *, ridge: float) -> Tensor:
    """Return A `[D + 1, D]` with [x, 1] A the ridge regression of targets on pooled vectors, in float64."""
    x_UZ = torch.cat([pooled_UD, torch.ones_like(pooled_UD[:, :1])], dim=-1).double()
    gram_ZZ = x_UZ.T @ x_UZ
    identity_ZZ = torch.eye(len(gram_ZZ), dtype=torch.float64)
    solution_ZD: Tensor = torch.linalg.solve(gram_ZZ + ridge * identity_ZZ, x_UZ.T @ target_UD.double())
    return solution_ZD


def fit_affine(pooled_UD: Tensor, target_UD: Tensor, *, history_length: int, seed: int) -> FoldInMap:
    """Fit the map; its ridge is chosen by R2 on a tenth of the users, then all are used."""
    shuffled = torch.from_numpy(np.random.default_rng([seed, 11]).permutation(len(pooled_UD)))
    count = max(1, len(shuffled) // 10)
    tune, fit = shuffled[:count], shuffled[count:]
    fit = fit if len(fit) > 0 else tune
    scale = float(pooled_UD.square().sum() + len(pooled_UD)) / (pooled_UD.shape[1] + 1)
    best = max(
        (
            r2(apply(affine_map(pooled_UD[fit], target_UD[fit], ridge=one * scale), pooled_UD[tune]), target_UD[tune]),
            -one,
        )
        for one in RIDGES
    )
    ridge = -best[1] * scale
    solution_ZD = affine_map(pooled_UD, target_UD, ridge=ridge).float()
    return FoldInMap("affine", history_length, solution_ZD[:-1], solution_ZD[-1], target_UD.mean(dim=0), ridge, best[0])


def mean_map(target_UD: Tensor, *, bias_dim: int, history_length: int) -> FoldInMap:
    """Return the mean alone; where vectors end in a piece of bias, a user's is 1."""
    width = target_UD.shape[1]
    map_DD, offset_D = torch.eye(width), torch.zeros(width)
    if bias_dim:
        map_DD[-1, -1], offset_D[-1] = 0.0, 1.0
    return FoldInMap("mean", history_length, map_DD, offset_D, target_UD.mean(dim=0), None, None)


def apply(solution_ZD: Tensor, pooled_UD: Tensor) -> Tensor:
    """Return [x, 1] A."""
    return pooled_UD.double() @ solution_ZD[:-1] + solution_ZD[-1]


def r2(found_UD: Tensor, target_UD: Tensor) -> float:
    """Return the share of the targets' variance that was found, over all dimensions together; at most 1."""
    error = (found_UD - target_UD).double().square().sum()
    total = (target_UD - target_UD.mean(dim=0)).double().square().sum()
    return 1 - float(error / total.clamp_min(1e-30))
