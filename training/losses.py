"""The losses of Demure (Eq. 5, 6, 14), one value a user, and what makes a sampled softmax right.

Every sum of exponentials goes through log-sum-exp. Legend: `B` users, `N` candidates shared by the batch (negatives,
or the whole catalogue), `J` views, `D` width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

ViewSimilarity = Literal["dot", "cosine"]

_USERS_AT_ONCE = 64
"""Rows of scores that are worked on together on a CPU: 64 x 10,000 floats fit into its cache."""

REMOVED = -1e30
"""Logit of a candidate that does not take part."""


def full_softmax(queries_BD: Tensor, items_ND: Tensor, target_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the users' cross-entropies against the whole catalogue, and each of them `[B]`.

    The sampled softmax of Eq. 5-6 with every other item as a negative: no sampling noise and no bias to correct.
    Affordable up to some ten thousand items.

    Scores are made, used for loss and gradient, and dropped for some users at a time: they stay in the processor's
    cache and `exp` is taken once, which makes the step's largest part a third faster than `F.cross_entropy`.

    Args:
        queries_BD: User vectors.
        items_ND: Vectors of the whole catalogue.
        target_B: Index into `items_ND` of each user's next item.
        weight_B: Weight of each user in the sum.
    """
    total, loss_B = _FullSoftmax.apply(queries_BD, items_ND, target_B, weight_B)  # type: ignore[no-untyped-call]  # torch
    return total, loss_B


class _FullSoftmax(torch.autograd.Function):
    """Linear map, softmax and cross-entropy in one; the gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, queries_BD: Tensor, items_ND: Tensor, target_B: Tensor, weight_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(queries_BD.dtype, torch.float32)
        loss_B = torch.empty(len(queries_BD), dtype=dtype, device=queries_BD.device)
        query_grad_BD, item_grad_ND = torch.empty_like(queries_BD), torch.zeros_like(items_ND, dtype=dtype)
        size = len(queries_BD) if queries_BD.is_cuda else _USERS_AT_ONCE
        for start in range(0, len(queries_BD), size):
            piece = slice(start, start + size)
            target_B1, weight_B1 = target_B[piece].unsqueeze(-1), weight_B[piece].unsqueeze(-1).to(dtype)
            p_BN = (queries_BD[piece] @ items_ND.T).to(dtype)
            p_BN -= p_BN.amax(dim=-1, keepdim=True)
            target_score_B1 = p_BN.gather(-1, target_B1)
            p_BN.exp_()
            sum_B1 = p_BN.sum(dim=-1, keepdim=True)
            loss_B[piece] = (sum_B1.log() - target_score_B1).squeeze(-1)
            p_BN *= weight_B1 / sum_B1
            p_BN.scatter_add_(-1, target_B1, -weight_B1)
            p_BN = p_BN.to(queries_BD.dtype)
            query_grad_BD[piece] = p_BN @ items_ND
            item_grad_ND += p_BN.T @ queries_BD[piece]
        ctx.save_for_backward(query_grad_BD, item_grad_ND.to(items_ND.dtype))
        ctx.mark_non_differentiable(loss_B)
        return (loss_B * weight_B).sum(), loss_B

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query_grad_BD, item_grad_ND = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        return query_grad_BD * grads[0], item_grad_ND * grads[0], None, None


def sampled_softmax(
    positive_B: Tensor,
    negative_BN: Tensor,
    *,
    hit_BN: Tensor | None = None,
    log_expected_positive_B: Tensor | None = None,
    log_expected_negative_N: Tensor | None = None,
) -> Tensor:
    """Return LSE(psi+, psi-_1..psi-_N) - psi+ for each user, `[B]` (Eq. 5-6).

    Args:
        positive_B: Score of the target.
        negative_BN: Scores of the shared negatives.
        hit_BN: True where a negative is the user's own target: an accidental hit, left out of the sum.
        log_expected_positive_B: With `log_expected_negative_N`, the logQ correction: log of the expected count of each
            candidate in the sample, taken off every logit, the positive's included.
        log_expected_negative_N: See above.
    """
    if log_expected_positive_B is not None and log_expected_negative_N is not None:
        positive_B = positive_B - log_expected_positive_B
        negative_BN = negative_BN - log_expected_negative_N
    if hit_BN is not None:
        negative_BN = negative_BN.masked_fill(hit_BN, REMOVED)
    everything_B = torch.logaddexp(positive_B, torch.logsumexp(negative_BN, dim=-1))
    return everything_B - positive_B


def contrastive(phi_positive_BJ: Tensor, phi_negative_BJ: Tensor) -> Tensor:
    """Return LSE(phi+, phi-) - LSE(phi+) for each user, `[B]` (Eq. 14): the sum over positives is inside the log."""
    everything_B = torch.logsumexp(torch.cat([phi_positive_BJ, phi_negative_BJ], dim=-1), dim=-1)
    return everything_B - torch.logsumexp(phi_positive_BJ, dim=-1)


def view_similarity(views_BJD: Tensor, queries_BD: Tensor, *, kind: ViewSimilarity, temperature: float) -> Tensor:
    """Return phi(view, user) `[B, J]`: the inner product of the paper, or cosine over a temperature.

    The inner product has no scale: the loss falls when vectors merely grow. Cosine takes that way out.
    """
    if kind == "cosine":
        views_BJD, queries_BD = F.normalize(views_BJD, dim=-1), F.normalize(queries_BD, dim=-1)
    phi_BJ = (views_BJD @ queries_BD.unsqueeze(-1)).squeeze(-1)
    return phi_BJ / temperature
