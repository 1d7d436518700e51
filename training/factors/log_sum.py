"""log sum exp over items of scores that are never all there at once, with a gradient made from what is kept of them.

Legend: `V` users, `Y` items, `D` width.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

_USERS_AT_ONCE = 128
"""Rows of scores that are worked on together: they stay in the processor's cache."""


def log_sum_exp(users_VD: Tensor, items_YD: Tensor, *, log_weight_Y: Tensor, left_out_VY: Tensor | None) -> Tensor:
    """Return log sum_y w_y exp(u . i_y) of each user `[V]`; -inf where nothing is summed.

    Args:
        users_VD: Users.
        items_YD: Items.
        log_weight_Y: log w.
        left_out_VY: Items that a user's sum is without, bool; None: it has all.
    """
    sums_V: Tensor = _LogSumExp.apply(users_VD, items_YD, log_weight_Y, left_out_VY)  # type: ignore[no-untyped-call]  # torch
    return sums_V


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, users_VD: Tensor, items_YD: Tensor, log_weight_Y: Tensor, left_out_VY: Tensor | None
    ) -> Tensor:
        shares_VY = users_VD.new_empty(len(users_VD), len(items_YD))
        sums_V = users_VD.new_empty(len(users_VD))
        for start in range(0, len(users_VD), _USERS_AT_ONCE):
            piece = slice(start, start + _USERS_AT_ONCE)
            scores_VY = torch.addmm(log_weight_Y, users_VD[piece], items_YD.T, out=shares_VY[piece])
            if left_out_VY is not None:
                scores_VY.masked_fill_(left_out_VY[piece], -torch.inf)
            most_V1 = scores_VY.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(scores_VY.dtype).min)
            total_V1 = scores_VY.sub_(most_V1).exp_().sum(dim=-1, keepdim=True)
            scores_VY.div_(total_V1.clamp_min(1e-30))
            sums_V[piece] = (most_V1 + total_V1.log()).squeeze(-1)
        ctx.save_for_backward(users_VD, items_YD, shares_VY)
        return sums_V

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        users_VD, items_YD, shares_VY = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        grad_V1 = grads[0].unsqueeze(-1)
        return grad_V1 * (shares_VY @ items_YD), shares_VY.T @ (grad_V1 * users_VD), None, None
