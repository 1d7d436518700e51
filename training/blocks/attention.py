"""Attention pooling: a set of vectors becomes one (Demure, Eq. 1-3).

Legend: `N` elements of the set (index m for the attending, n for the attended), `D` width, `...` any batch.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["row", "column"]
Scale = Literal["sqrt_dim", "none"]

MASKED = -1e30
"""Stands for minus infinity: an empty set stays finite, and so does its gradient."""


class AttentionPool(nn.Module):
    """Self-attention, then a pooling that is weighted by the same scores.

    With s_mn = c (W_f x_m).(W_g x_n) (Eq. 1), beta_mn = softmax_n(s_mn) and x~_m = sum_n beta_mn W_h x_n (Eq. 2), the
    set's vector is sum_m w_m x~_m. It is linear in W_h x_n: sum_n a_n W_h x_n with a_n = sum_m w_m beta_mn, so W_h is
    applied once, to the weighted mean, and a_n is the exact weight of element n in a decomposition.

    * `row` pooling, as Eq. 3 prints it: w_m = softmax_m(LSE_n s_mn). Then w_m beta_mn is the softmax over all pairs
      and a_n = softmax_n(LSE_m s_mn).
    * `column` pooling, as the paper's prose says it: w_m = softmax_m(LSE_n s_nm).

    Every sum of exponentials goes through log-sum-exp. The parameters are W_f, W_g and W_h; s uses the product
    W_f' W_g, which costs one matrix product over the set instead of two.
    """

    def __init__(self, dim: int, *, pooling: Pooling = "row", scale: Scale = "sqrt_dim") -> None:
        super().__init__()
        self.f = nn.Linear(dim, dim, bias=False)
        self.g = nn.Linear(dim, dim, bias=False)
        self.h = nn.Linear(dim, dim, bias=False)
        self.pooling = pooling
        self.scale = 1 / math.sqrt(dim) if scale == "sqrt_dim" else 1.0

    def weights(self, x_ND: Tensor, mask_N: Tensor) -> Tensor:
        """Return a_n `[..., N]`: non-negative, zero where masked, sum 1 (0 for an empty set).

        Args:
            x_ND: `[..., N, D]`.
            mask_N: `[..., N]` bool, True for elements that are there.
        """
        scores_NN = (x_ND @ self._bilinear()) @ x_ND.transpose(-1, -2)
        out_N = _out_of(mask_N, scores_NN.dtype)
        # Adding the mask costs one pass and nothing on the way back; filling costs a pass each way.
        weights_N = torch.softmax(torch.logsumexp(scores_NN + out_N.unsqueeze(-1), dim=-2) + out_N, dim=-1)
        if self.pooling == "column":
            beta_NN = torch.softmax(scores_NN + out_N.unsqueeze(-2), dim=-1)
            weights_N = (weights_N.unsqueeze(-2) @ beta_NN).squeeze(-2)
        return weights_N * mask_N.to(weights_N.dtype)

    def forward(self, x_ND: Tensor, mask_N: Tensor) -> Tensor:
        """Return the set's vector `[..., D]`; zero for an empty set."""
        pooled_D = (self.weights(x_ND, mask_N).unsqueeze(-2) @ x_ND).squeeze(-2)
        output_D: Tensor = self.h(pooled_D)
        return output_D

    @torch.no_grad()
    def slopes(self, x_ND: Tensor, mask_N: Tensor, direction_ND: Tensor) -> Tensor:
        """Return the derivative of the set's vector when element k alone moves along its direction: `[..., N, D]`.

        In closed form, at the price of about one forward pass for all k; carries no gradient. Moving x_k by t_k moves
        s_kn by F_kn = t_k A x_n and s_mk by G_mk = x_m A t_k, and everything else follows from these two.

        Args:
            x_ND: As in `forward`.
            mask_N: As in `forward`; an element that is not there has slope 0.
            direction_ND: t, `[..., N, D]`.
        """
        bilinear_DD = self._bilinear()
        projected_ND = x_ND @ bilinear_DD
        scores_NN = projected_ND @ x_ND.transpose(-1, -2)
        f_NN = (direction_ND @ bilinear_DD) @ x_ND.transpose(-1, -2)
        g_NN = projected_ND @ direction_ND.transpose(-1, -2)
        out_N = _out_of(mask_N, scores_NN.dtype)
        # l_n = LSE_m s_mn moves by the softmax over m of what its terms move by; p = softmax(l) as any softmax does.
        column_NN = torch.softmax(scores_NN + out_N.unsqueeze(-1), dim=-2)
        p_N = torch.softmax(torch.logsumexp(scores_NN + out_N.unsqueeze(-1), dim=-2) + out_N, dim=-1) * mask_N
        dl_NN = column_NN * f_NN + torch.diag_embed((column_NN * g_NN).sum(dim=-2))
        dp_NN = p_N.unsqueeze(-2) * (dl_NN - dl_NN @ p_N.unsqueeze(-1))
        a_N, da_NN = p_N, dp_NN
        if self.pooling == "column":
            beta_NN = torch.softmax(scores_NN + out_N.unsqueeze(-2), dim=-1)
            a_N = (p_N.unsqueeze(-2) @ beta_NN).squeeze(-2)
            weighted_NN = p_N.unsqueeze(-1) * beta_NN
            centred_NN = f_NN - (beta_NN * f_NN).sum(dim=-1, keepdim=True)
            da_NN = dp_NN @ beta_NN + weighted_NN * centred_NN
            da_NN = da_NN + torch.diag_embed((weighted_NN * g_NN).sum(dim=-2))
            da_NN = da_NN - (beta_NN * g_NN).transpose(-1, -2) @ weighted_NN
        slopes_ND: Tensor = self.h(a_N.unsqueeze(-1) * direction_ND + da_NN @ x_ND)
        return slopes_ND * mask_N.unsqueeze(-1)

    def _bilinear(self) -> Tensor:
        return (self.f.weight.T @ self.g.weight) * self.scale


def _out_of(mask_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where the element is there, else a stand-in for minus infinity."""
    return torch.zeros(mask_N.shape, dtype=dtype, device=mask_N.device).masked_fill(~mask_N, MASKED)
