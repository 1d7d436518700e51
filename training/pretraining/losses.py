"""PAMD's losses of pretraining (Eq. 3-11), for any number of modalities, some of them absent.

Eq. 10 as printed, log sigma(L_c - L_p) + log sigma(L_p - L_s) to be minimised, is unbounded below and all but ignores
an order that is wrong. What is meant, and what the published code has commented out, is `ordering`; what it runs is
`infonce` (docs/adr/0024-pretraining.md).

Legend: `B` items, `M` modalities, `D` width of a representation, `P` pairs of modalities, `R` width of what is
predicted.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Gaps(NamedTuple):
    """How badly one modality's parts tell of another modality: a loss of each item, `[B]`, or the mean over items."""

    common: Tensor
    """L_c (Eq. 5)."""
    primitive: Tensor
    """L_p (Eq. 8)."""
    specific: Tensor
    """L_s (Eq. 9)."""


def encoder_loss(common_BMD: Tensor, specific_BMD: Tensor, presence_BM: Tensor) -> Tensor:
    """Return the mean over items and pairs of |c_m - c_n|^2 + (s_m . s_n)^2 (Eq. 3); 0 where nothing is a pair.

    The second term is the squared inner product: one number for an item, not one for each dimension.
    """
    first_P, second_P = torch.triu_indices(common_BMD.shape[1], common_BMD.shape[1], offset=1)
    both_BP = presence_BM[:, first_P] & presence_BM[:, second_P]
    apart_BP = (common_BMD[:, first_P] - common_BMD[:, second_P]).square().sum(dim=-1)
    aligned_BP = (specific_BMD[:, first_P] * specific_BMD[:, second_P]).sum(dim=-1).square()
    return mean_of(apart_BP + aligned_BP, both_BP)


def squared_gap(predicted_BR: Tensor, target_BR: Tensor) -> Tensor:
    """Return the squared error of each item `[B]`, summed over dimensions."""
    return (predicted_BR - target_BR).square().sum(dim=-1)


def ordering(gaps: Gaps) -> Tensor:
    """Return softplus(L_c - L_p) + softplus(L_p - L_s): small where L_c < L_p < L_s, and never below 0."""
    return F.softplus(gaps.common - gaps.primitive) + F.softplus(gaps.primitive - gaps.specific)


def infonce(predicted_3BR: Tensor, target_BR: Tensor, *, tau: float) -> Tensor:
    """Return of each item `[B]` -log softmax of the common part's cosine, and of the whole's beside the specific one's.

    Args:
        predicted_3BR: What common part, whole and specific part predict, in this order.
        target_BR: What is there.
        tau: Temperature.
    """
    cosine_3B = F.cosine_similarity(predicted_3BR, target_BR.unsqueeze(0), dim=-1) / tau
    of_three_B = torch.logsumexp(cosine_3B, dim=0) - cosine_3B[0]
    of_two_B = torch.logsumexp(cosine_3B[1:], dim=0) - cosine_3B[1]
    return of_three_B + of_two_B


def mean_of(values: Tensor, there: Tensor) -> Tensor:
    """Return the mean of the values that count; 0 where none does."""
    kept = there.to(values.dtype)
    return (values * kept).sum() / kept.sum().clamp_min(1)
