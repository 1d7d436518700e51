"""The multinomial likelihood of users' items, where a score sums over queries: no score outlives its piece of users.

Legend: `B` users, `Q` queries, `I` items, `D` width, `X` pairs.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from training.factors.losses import Positives

_ROWS_AT_ONCE = 128
"""Queries whose scores are worked on together: they stay in the processor's cache."""


def multinomial(queries_BQD: Tensor, items_ID: Tensor, positives: Positives) -> Tensor:
    """Return -sum_x w_x log p(item of x | user of x), where p is the softmax over items of log sum_q exp(u_q . v)."""
    total: Tensor = _Multinomial.apply(queries_BQD, items_ID, positives)  # type: ignore[no-untyped-call]  # torch
    return total


class _Multinomial(torch.autograd.Function):
    """The gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: FunctionCtx, queries_BQD: Tensor, items_ID: Tensor, positives: Positives) -> Tensor:
        num_users, num_queries, dim = queries_BQD.shape
        total = queries_BQD.new_zeros(())
        query_grad_BQD, item_grad_ID = torch.empty_like(queries_BQD), torch.zeros_like(items_ID)
        size = max(1, _ROWS_AT_ONCE // num_queries)
        query_1Q = torch.arange(num_queries).unsqueeze(0)
        for start in range(0, num_users, size):
            piece, own = slice(start, start + size), positives.of_users(start, start + size)
            rows_ZD = queries_BQD[piece].reshape(-1, dim)
            scores_BQI = (rows_ZD @ items_ID.T).view(-1, num_queries, len(items_ID))
            place_X, column_X, weight_X = (
                positives.place_X[own] - start,
                positives.column_X[own],
                positives.weight_X[own],
            )
            cells_XQ = (place_X.unsqueeze(-1), query_1Q, column_X.unsqueeze(-1))
            chosen_XQ = scores_BQI[cells_XQ]
            most_B11 = scores_BQI.amax(dim=(1, 2), keepdim=True)
            scores_BQI.sub_(most_B11).exp_()
            sum_B11 = scores_BQI.sum(dim=(1, 2), keepdim=True)
            log_sum_B = (most_B11 + sum_B11.log()).flatten()
            total += (weight_X * (log_sum_B[place_X] - chosen_XQ.logsumexp(dim=-1))).sum()
            weight_B = torch.zeros_like(log_sum_B).index_add_(0, place_X, weight_X)
            pull_BQI = scores_BQI.mul_(weight_B[:, None, None] / sum_B11)
            pull_BQI.index_put_(cells_XQ, -weight_X.unsqueeze(-1) * chosen_XQ.softmax(dim=-1), accumulate=True)
            pull_ZI = pull_BQI.view(-1, len(items_ID))
            query_grad_BQD[piece] = (pull_ZI @ items_ID).view(-1, num_queries, dim)
            item_grad_ID += pull_ZI.T @ rows_ZD
        ctx.save_for_backward(query_grad_BQD, item_grad_ID)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_grad_BQD, item_grad_ID = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        return query_grad_BQD * grads[0], item_grad_ID * grads[0], None
