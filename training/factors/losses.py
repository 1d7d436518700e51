"""The losses of id-based models. Sums over negatives are means; UltraGCN's weights are in its Eq. 18 to 20.

Legend: `B` users or pairs, `I` items, `N` negatives shared by a step, `n` negatives of a pair, `D` width, `K`
neighbours.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx

_USERS_AT_ONCE = 64
"""Rows of scores that are worked on together: they stay in the processor's cache."""


def bpr(positive_B: Tensor, negative_Bn: Tensor) -> Tensor:
    """Return -log sigmoid(s+ - s-), averaged over each pair's negatives `[B]`; stable for scores of any size."""
    return F.softplus(negative_Bn - positive_B.unsqueeze(-1)).mean(dim=-1)


def cross_entropy(positive_B: Tensor, negative_Bn: Tensor) -> Tensor:
    """Return -log sigmoid(s+), and -log sigmoid(-s-) summed over each pair's negatives `[B]`."""
    return F.softplus(-positive_B) + F.softplus(negative_Bn).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Positives:
    """Pairs of a step, in the order of their users."""

    place_X: Tensor
    """Place of each pair's user, ascending."""
    column_X: Tensor
    """Row of its item in the catalogue."""
    weight_X: Tensor

    def of_users(self, start: int, stop: int) -> slice:
        """Return which pairs are those of the users from `start` to before `stop`."""
        first, last = torch.searchsorted(self.place_X, torch.tensor([start, stop])).tolist()
        return slice(first, last)


def user_factor(degree_B: Tensor) -> Tensor:
    """Return sqrt(d_u + 1) / d_u, the user's side of beta (0 for a user without items)."""
    return torch.where(degree_B > 0, torch.sqrt(degree_B + 1) / degree_B.clamp_min(1), torch.zeros_like(degree_B))


def item_factor(degree_I: Tensor) -> Tensor:
    """Return 1 / sqrt(d_i + 1), the item's side of beta."""
    return torch.rsqrt(degree_I + 1)


def weighted_cross_entropy(
    user_BD: Tensor,
    item_ND: Tensor,
    *,
    weight_B: Tensor,
    user_factor_B: Tensor,
    item_factor_N: Tensor,
    w3: float,
    w4: float,
    positives: Positives | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum over users of weight times mean over N items of (w3 + w4 beta) softplus(score), plus positives.

    Scores are made, used for loss and gradient and dropped, some users at a time. Where the N items are the catalogue,
    the positives' scores are among them, and cost nothing more.

    Returns:
        The whole sum, and the positives' share of it, which carries no gradient.
    """
    total, positive = _CrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch
        user_BD, item_ND, weight_B, user_factor_B, item_factor_N, w3, w4, positives
    )
    return total, positive


class _CrossEntropy(torch.autograd.Function):
    """The gradients are made on the way forward."""

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by place
        ctx: FunctionCtx,
        user_BD: Tensor,
        item_ND: Tensor,
        weight_B: Tensor,
        user_factor_B: Tensor,
        item_factor_N: Tensor,
        w3: float,
        w4: float,
        positives: Positives | None,
    ) -> tuple[Tensor, Tensor]:
        negative, positive = user_BD.new_zeros(()), user_BD.new_zeros(())
        user_grad_BD, item_grad_ND = torch.empty_like(user_BD), torch.zeros_like(item_ND)
        scale_B = weight_B / len(item_ND)
        for start in range(0, len(user_BD), _USERS_AT_ONCE):
            piece = slice(start, start + _USERS_AT_ONCE)
            scores_BN = user_BD[piece] @ item_ND.T
            pull_BN = w3 + w4 * torch.outer(user_factor_B[piece], item_factor_N)
            pull_BN *= scale_B[piece].unsqueeze(-1)
            negative += (pull_BN * F.softplus(scores_BN)).sum()
            if positives is None:
                pull_BN *= torch.sigmoid_(scores_BN)
            else:
                own = positives.of_users(start, start + _USERS_AT_ONCE)
                place_X = (positives.place_X[own] - start, positives.column_X[own])
                score_X, weight_X = scores_BN[place_X], positives.weight_X[own]
                positive += (weight_X * F.softplus(-score_X)).sum()
                pull_BN *= torch.sigmoid_(scores_BN)
                pull_BN.index_put_(place_X, -weight_X * torch.sigmoid(-score_X), accumulate=True)
            user_grad_BD[piece] = pull_BN @ item_ND
            item_grad_ND += pull_BN.T @ user_BD[piece]
        ctx.save_for_backward(user_grad_BD, item_grad_ND)
        ctx.mark_non_differentiable(positive)
        return negative + positive, positive

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        user_grad_BD, item_grad_ND = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        return user_grad_BD * grads[0], item_grad_ND * grads[0], *[None] * 6


def item_neighbours(
    user_E: NDArray[np.int64], item_E: NDArray[np.int64], *, num_users: int, num_items: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each item's strongest neighbours `[I, K]` and their omega (Eq. 20), 0 where there are fewer.

    omega_ij = G_ij / (g_i - G_ii) sqrt(g_i / g_j), G the items' co-occurrence and g its row sums. The item itself is
    left out, as the paper's formula has it.
    """
    seen_UI = sp.csr_matrix((np.ones(len(item_E)), (user_E, item_E)), shape=(num_users, num_items))
    seen_UI.data[:] = 1
    gram_II = (seen_UI.T @ seen_UI).tocsr()
    sums_I = np.asarray(gram_II.sum(axis=1)).ravel()
    others_I = sums_I - gram_II.diagonal()
    neighbours_IK = np.zeros((num_items, count), np.int64)
    omega_IK = np.zeros((num_items, count), np.float32)
    for item in range(num_items):
        begin, end = gram_II.indptr[item], gram_II.indptr[item + 1]
        columns = gram_II.indices[begin:end]
        kept = columns != item
        columns, together = columns[kept], gram_II.data[begin:end][kept]
        if len(columns) == 0:
            continue
        omega = together / others_I[item] * np.sqrt(sums_I[item] / sums_I[columns])
        best = np.lexsort((columns, -omega))[:count]  # equal ones: the lowest row first
        neighbours_IK[item, : len(best)], omega_IK[item, : len(best)] = columns[best], omega[best]
    return neighbours_IK, omega_IK
