"""Items that the model was not trained on: what stands for their learned numbers, and whether lists stay in balance.

A learned number of zero is no neutral choice: with a pointwise loss all learned parts carry a negative offset, and an
item without it would flood every list. So learned numbers are predicted from content, and the exposure of such items is
measured on items that the prediction was not fitted on.

Legend: `I` items, `Z` inputs of the regression, `F` learned numbers of an item, `D` width, `U` users.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.evaluate import mask_seen, pieces
from training.factors.data import FactorData

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried, times the mean of the diagonal of Z'Z."""

TOP = 50
"""Length of the lists in which held-out items are counted."""

MAX_USERS = 1000

BALANCED = (0.5, 2.0)
"""Exposure ratios that are left alone; a bundle may have 0.3 to 3."""

_FIRST_SHIFT, _DOUBLINGS, _BISECTIONS = 0.25, 12, 6


def design(data: FactorData) -> Tensor:
    """Return what the regression reads of each item `[I, Z]`: content, which modalities it has, a constant."""
    return torch.cat([data.content_IR, data.presence_IM.float(), torch.ones(data.num_items, 1)], dim=-1)


def fit_ridge(design_IZ: Tensor, target_IF: Tensor, items: Tensor, *, seed: int) -> Tensor:
    """Return the weights `[Z, F]` of the regression on some items; its ridge is chosen on a tenth of them."""
    shuffled = items[torch.from_numpy(np.random.default_rng([seed, 13]).permutation(len(items)))]
    count = max(1, len(shuffled) // 10)
    tune, fit = shuffled[:count], shuffled[count:] if len(shuffled) > count else shuffled
    mean_F = target_IF[items].mean(dim=0)
    scale = float(design_IZ[items].square().sum()) / design_IZ.shape[1]

    def solved(rows: Tensor) -> Callable[[float], Tensor]:
        # Eigenvectors once, then every ridge is a product. The constant carries the mean: ridge pulls to it, not to 0.
        design_ZZ = design_IZ[rows].double()
        values, vectors = torch.linalg.eigh(design_ZZ.T @ design_ZZ)
        right_ZF = vectors.T @ (design_ZZ.T @ (target_IF[rows] - mean_F).double())
        return lambda ridge: vectors @ (right_ZF / (values.clamp_min(0) + ridge * scale)[:, None])

    tried = solved(fit)
    errors = [
        float((design_IZ[tune].double() @ tried(ridge) + mean_F - target_IF[tune]).square().sum()) for ridge in RIDGES
    ]
    weight_ZF: Tensor = solved(items)(RIDGES[int(np.argmin(errors))]).float()
    weight_ZF[-1] += mean_F
    return weight_ZF


def mean_weights(num_inputs: int, target_IF: Tensor, items: Tensor) -> Tensor:
    """Return weights that give the mean learned numbers, whatever the content."""
    weight_ZF = torch.zeros(num_inputs, target_IF.shape[1])
    weight_ZF[-1] = target_IF[items].mean(dim=0)
    return weight_ZF


def balancing_shift(ratio_of: Callable[[float], float]) -> float:
    """Return the smallest shift, up or down, that brings an exposure ratio between 1/2 and 2; 0 where it is there.

    New items start as the average of what is learned, and in data where few items get most clicks the average is never
    listed. The shift moves all new items alike, so their order among each other stays.

    Args:
        ratio_of: The exposure ratio with a shift; it rises with it.
    """
    low, high = BALANCED
    start = ratio_of(0.0)
    if low <= start <= high:
        return 0.0
    sign = 1.0 if start < low else -1.0

    def is_enough(size: float) -> bool:
        ratio = ratio_of(sign * size)
        return ratio >= low if sign > 0 else ratio <= high

    size = _FIRST_SHIFT
    for _ in range(_DOUBLINGS):
        if is_enough(size):
            break
        size *= 2
    least, most = 0.0, size
    for _ in range(_BISECTIONS):
        middle = (least + most) / 2
        least, most = (least, middle) if is_enough(middle) else (middle, most)
    return sign * most


def exposure_ratio(
    queries_UD: Tensor,
    items_ID: Tensor,
    imputed_ID: Tensor,
    held_out: Tensor,
    histories: Sequence[NDArray[np.int64]],
) -> float:
    """Return the share of held-out items, as if they were new, among users' top 50, over their share of the catalogue.

    Args:
        queries_UD: Learned users.
        items_ID: The catalogue.
        imputed_ID: The catalogue as if all items were new.
        held_out: Items that the imputer was not fitted on.
        histories: Of the users; what they have is not recommended.
    """
    table_ID = items_ID.clone()
    table_ID[held_out] = imputed_ID[held_out]
    is_held_out_I = torch.zeros(len(items_ID), dtype=torch.bool)
    is_held_out_I[held_out] = True
    depth = min(TOP, len(items_ID))
    found = listed = 0
    for piece in pieces(len(queries_UD), num_items=len(items_ID)):
        scores_BI = queries_UD[piece] @ table_ID.T
        mask_seen(scores_BI, histories[piece])
        top = torch.topk(scores_BI, depth, dim=-1)
        shown_BK = ~torch.isneginf(top.values)
        found += int((is_held_out_I[top.indices] & shown_BK).sum())
        listed += int(shown_BK.sum())
    return (found / max(listed, 1)) / (len(held_out) / len(items_ID))
