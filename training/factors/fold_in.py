"""Users from live histories: pooled item vectors, and the map fitted in closed form to learned users.

A raw mean fails for pointwise losses, whose item vectors share a large common direction; the affine map removes it.

Legend: `U` users, `I` items, `L` history length, `H` history row, `Q` queries, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.factors.encoders import ExactEncoder, HistoryEncoder, MeanEncoder

FoldInKind = Literal["affine", "mean", "exact", "softmax", "attention"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried, times the mean of the diagonal of X'X, so that the scale of vectors does not matter."""

_USERS_AT_ONCE = 1024

_NUMBERS_AT_ONCE = 1 << 24
"""Of history rows of one piece: 64 MB."""


class ItemTables(NamedTuple):
    """The catalogue as users meet it."""

    items_ID: Tensor
    rows_IH: Tensor | None = None
    """Of items in a history, where the model has rows of its own."""

    def read_by(self, encoder: HistoryEncoder | type[HistoryEncoder]) -> Tensor:
        """Return what a user encoder reads of items `[I, H]`."""
        if not encoder.reads_history_rows:
            return self.items_ID
        assert self.rows_IH is not None, "a model without rows of its own has no encoder of them"
        return self.rows_IH


@dataclass(frozen=True, slots=True, eq=False)
class FoldInMap:
    """How users are read from their histories."""

    kind: FoldInKind
    history_length: int
    """L: of longer histories the last L items count."""
    encoder: HistoryEncoder
    ridge: float | None
    r2: float | None
    """Of the affine map, on users that it was not fitted on."""

    def queries(self, tables: ItemTables, histories: Sequence[NDArray[np.int64]]) -> Tensor:
        """Return `[U, Q, D]` of users with these histories, as the exported graph computes them."""
        rows_IH = tables.read_by(self.encoder)
        real_I = (rows_IH != 0).any(dim=-1)  # a row of zeros is no item, as `UserEncoder` has it
        size = max(1, min(_USERS_AT_ONCE, _NUMBERS_AT_ONCE // (self.history_length * rows_IH.shape[1])))
        queries = []
        for start in range(0, max(1, len(histories)), size):  # of nobody, no queries of the right shape
            rows_BL, mask_BL = padded(histories[start : start + size], length=self.history_length)
            queries.append(self.encoder.queries(rows_IH[rows_BL], mask_BL & real_I[rows_BL]))
        return torch.cat(queries)


def padded(histories: Sequence[NDArray[np.int64]], *, length: int) -> tuple[Tensor, Tensor]:
    """Return the last `length` items of each history, padded at the end to the longest, and the mask `[U, L]`."""
    cut = [torch.from_numpy(one[-length:]) for one in histories]
    lengths_U = torch.tensor([len(one) for one in cut])
    rows_UL = torch.nn.utils.rnn.pad_sequence([torch.zeros(1, dtype=torch.int64), *cut], batch_first=True)[1:]
    return rows_UL, torch.arange(rows_UL.shape[1]) < lengths_U.unsqueeze(-1)


def pool(
    items_ID: Tensor, histories: Sequence[NDArray[np.int64]], *, length: int, degree_I: Tensor | None = None
) -> Tensor:
    """Return a pooled vector `[U, D]` of each history's last `length` items; zero for an empty one.

    Args:
        items_ID: A row of zeros is no item.
        histories: Oldest first.
        length: L.
        degree_I: Users of each item. None: the mean. Else UltraGCN's fixed point, sum_i beta_ui q_i with beta_ui =
            sqrt((n + 1) / (d_i + 1)) / n. It is measured, not served: see ADR 0018.
    """
    real_I = (items_ID != 0).any(dim=-1).numpy()
    cut = [one[-length:][real_I[one[-length:]]] for one in histories]
    lengths_U = np.array([len(one) for one in cut], np.int64)
    row_X = np.repeat(np.arange(len(cut)), lengths_U)
    item_X = np.concatenate([*cut, np.zeros(0, np.int64)])
    count_X = np.repeat(lengths_U, lengths_U)
    weight_X = 1 / count_X
    if degree_I is not None:
        weight_X = weight_X * np.sqrt((count_X + 1) / (degree_I.double().numpy()[item_X] + 1))
    pooling_UI = sp.csr_matrix((weight_X, (row_X, item_X)), shape=(len(cut), len(items_ID)))
    return torch.from_numpy(np.asarray(pooling_UI @ items_ID.numpy())).to(items_ID.dtype)


def implicit_als(
    items_ID: Tensor, histories: Sequence[NDArray[np.int64]], *, length: int, w0: float, ridge: float
) -> Tensor:
    """Return implicit ALS' users `[U, D]`, (H'H + w0 Q'Q + ridge I)^-1 H'1 with H the history's rows of Q.

    It is measured, not served: see ADR 0018.
    """
    items_ID64 = items_ID.double()
    prior_DD = w0 * items_ID64.T @ items_ID64 + ridge * torch.eye(items_ID.shape[1], dtype=torch.float64)
    users = [items_ID64.new_zeros(0, items_ID.shape[1])]
    for start in range(0, len(histories), _USERS_AT_ONCE):
        rows_UL, mask_UL = padded(histories[start : start + _USERS_AT_ONCE], length=length)
        kept_ULD = items_ID64[rows_UL] * mask_UL.unsqueeze(-1)
        users.append(torch.linalg.solve(kept_ULD.mT @ kept_ULD + prior_DD, kept_ULD.sum(dim=1)))
    return torch.cat(users).to(items_ID.dtype)


def affine_map(pooled_UD: Tensor, target_UD: Tensor, *, ridge: float) -> Tensor:
    """Return A `[D + 1, D]` with [x, 1] A the ridge regression of targets on pooled vectors, in float64."""
    x_UZ = torch.cat([pooled_UD, torch.ones_like(pooled_UD[:, :1])], dim=-1).double()
    gram_ZZ = x_UZ.T @ x_UZ
    identity_ZZ = torch.eye(len(gram_ZZ), dtype=torch.float64)
    solution_ZD: Tensor = torch.linalg.solve(gram_ZZ + ridge * identity_ZZ, x_UZ.T @ target_UD.double())
    return solution_ZD


def fit_affine(
    pooled_UH: Tensor,
    target_UD: Tensor,
    *,
    history_length: int,
    seed: int,
    encoder: type[MeanEncoder] = MeanEncoder,
) -> FoldInMap:
    """Fit the map; its ridge is chosen by R2 on a tenth of the users, then all are used."""
    shuffled = torch.from_numpy(np.random.default_rng([seed, 11]).permutation(len(pooled_UH)))
    count = max(1, len(shuffled) // 10)
    tune, fit = shuffled[:count], shuffled[count:]
    fit = fit if len(fit) > 0 else tune
    scale = float(pooled_UH.square().sum() + len(pooled_UH)) / (pooled_UH.shape[1] + 1)
    best = max(
        (
            r2(apply(affine_map(pooled_UH[fit], target_UD[fit], ridge=one * scale), pooled_UH[tune]), target_UD[tune]),
            -one,
        )
        for one in RIDGES
    )
    ridge = -best[1] * scale
    solution_ZD = affine_map(pooled_UH, target_UD, ridge=ridge).float()
    users = encoder(solution_ZD[:-1], solution_ZD[-1], target_UD.mean(dim=0))
    return FoldInMap("affine", history_length, users, ridge, best[0])


def mean_map(target_UD: Tensor, *, bias_dim: int, history_length: int) -> FoldInMap:
    """Return the mean alone; where vectors end in a piece of bias, a user's is 1."""
    width = target_UD.shape[1]
    map_DD, offset_D = torch.eye(width), torch.zeros(width)
    if bias_dim:
        map_DD[-1, -1], offset_D[-1] = 0.0, 1.0
    return FoldInMap("mean", history_length, MeanEncoder(map_DD, offset_D, target_UD.mean(dim=0)), None, None)


def exact_map(offset_D: Tensor, target_UD: Tensor, *, history_length: int) -> FoldInMap:
    """Return what propagation gives a user that joins the graph; `offset_D` is what it adds to any user."""
    encoder = ExactEncoder(torch.eye(len(offset_D)), offset_D, target_UD.mean(dim=0))
    return FoldInMap("exact", history_length, encoder, None, None)


def apply(solution_ZD: Tensor, pooled_UD: Tensor) -> Tensor:
    """Return [x, 1] A."""
    return pooled_UD.double() @ solution_ZD[:-1] + solution_ZD[-1]


def r2(found_UD: Tensor, target_UD: Tensor) -> float:
    """Return the share of the targets' variance that was found, over all dimensions together; at most 1."""
    error = (found_UD - target_UD).double().square().sum()
    total = (target_UD - target_UD.mean(dim=0)).double().square().sum()
    return 1 - float(error / total.clamp_min(1e-30))
