"""Which parts of a history an augmented view replaces, and by what (Demure, Eq. 9-13).

Everything here is discrete and carries no gradient: scores and similarities come in detached, choices go out.

Legend: `B` users, `L` history, `M` modalities, `P` pool items, `R` distinct things to replace, `S` slots to fill.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from training.losses import ViewSimilarity
from training.settings import Settings

Selector = Literal["interest_gradient", "grad_x_input", "random"]
Law = Literal["minmax", "minmax_softmax", "softmax", "uniform"]
Polarity = Literal["positive", "negative"]
ReplacementType = Literal["same", "cross"]

_TRIES = 3
"""Draws per slot before the users' own items are masked exactly: of one own item in 10, 1 slot in 1,000 is left."""


class AugmentConfig(Settings):
    """Interest-guided views of a history (Demure, section 3.5) and the losses on them (Eq. 14-15)."""

    gamma_items: float = Field(0.4, ge=0, le=1, description="Share of the history's items that a view replaces.")
    gamma_modalities: float = Field(0.2, ge=0, le=1, description="Share of the other items' modality slots replaced.")
    views: int = Field(1, ge=1, le=8, description="J: views of each polarity.")
    lambda_softmax: float = Field(0.1, ge=0, description="Weight of the softmax loss of positive views (lambda 1).")
    lambda_contrast: float = Field(0.1, ge=0, description="Weight of the contrastive loss (lambda 2).")
    warmup_epochs: float = Field(
        1.0, ge=0, description="Epochs without views: gradients of an untrained net are noise."
    )
    share: float = Field(1.0, gt=0, le=1, description="Share of each batch that gets views.")
    selector: Selector = Field(
        "interest_gradient",
        description="What ranks parts: Eq. 7-8 (signed mean gradient), gradient x input, or chance (ablation).",
    )
    law: Law = Field(
        "minmax",
        description="Replacement law: min-max similarity P (Eq. 10-11), softmax(+-P/T), softmax(+-D/T) of the inner "
        "products, or uniform (ablation).",
    )
    law_temperature: float = Field(1.0, gt=0, description="T of the softmax laws.")
    pool_size: int = Field(1024, ge=1, description="Random items per step that replacements are drawn from.")
    replacement: ReplacementType = Field(
        "same", description="A modality gives way to its own kind, or to any (`cross`)."
    )
    similarity: ViewSimilarity = Field("dot", description="phi of Eq. 14: inner product, or cosine over a temperature.")
    contrast_temperature: float = Field(1.0, gt=0, description="Divides phi.")


def num_replaced(size_B: Tensor, gamma: float) -> Tensor:
    """Return floor(size x gamma) `[B]`; the small addend keeps 0.29 x 100 at 29."""
    return torch.floor(size_B.to(torch.float64) * gamma + 1e-9).to(torch.int64)


def select_highest(scores_BX: Tensor, eligible_BX: Tensor, count_B: Tensor) -> Tensor:
    """Return `[B, X]` bool: per row the `count_B` eligible places of highest score, or all eligible ones if fewer.

    Equal scores are taken from the left, so the choice is reproducible.
    """
    masked_BX = scores_BX.masked_fill(~eligible_BX, -torch.inf)
    order_BX = torch.argsort(masked_BX, dim=-1, descending=True, stable=True)
    taken_BX = torch.arange(scores_BX.shape[-1], device=scores_BX.device) < count_B.unsqueeze(-1)
    return torch.zeros_like(eligible_BX).scatter(-1, order_BX, taken_BX) & eligible_BX


def replaced_parts(
    item_score_BL: Tensor,
    slot_score_BLM: Tensor,
    *,
    mask_BL: Tensor,
    present_BLM: Tensor,
    polarity: Polarity,
    config: AugmentConfig,
) -> tuple[Tensor, Tensor]:
    """Return which items `[B, L]` and which modality slots `[B, L, M]` a view replaces, both bool (Eq. 9 and 12).

    Items first: floor(length x gamma_items) of the highest scores for a negative view, of the lowest for a positive
    one, where length counts real items, not padding. Then floor(slots x gamma_modalities) among the modality slots
    that the remaining items have.
    """
    sign = 1.0 if polarity == "negative" else -1.0
    items_BL = select_highest(sign * item_score_BL, mask_BL, num_replaced(mask_BL.sum(dim=-1), config.gamma_items))
    if config.gamma_modalities == 0:
        return items_BL, torch.zeros_like(present_BLM)
    eligible_BX = ((mask_BL & ~items_BL).unsqueeze(-1) & present_BLM).flatten(start_dim=1)
    slots_BX = select_highest(
        sign * slot_score_BLM.flatten(start_dim=1),
        eligible_BX,
        num_replaced(eligible_BX.sum(dim=-1), config.gamma_modalities),
    )
    return items_BL, slots_BX.view_as(slot_score_BLM)


def replacement_weights(
    similarity_RP: Tensor, *, law: Law, polarity: Polarity, temperature: float = 1.0, available_P: Tensor | None = None
) -> Tensor:
    """Return the weights `[R, P]`, not normalised, by which each pool item replaces each thing (Eq. 10-11, 13).

    * minmax: P = (D - min) / (max - min) for a positive view (replaced by what is alike), 1 - P for a negative one.
      A constant row says nothing about likeness and becomes uniform.
    * minmax_softmax: exp(+-P / T), sharper, and still without a scale.
    * softmax: exp(+-D / T).
    * uniform: chance (ablation).

    Args:
        similarity_RP: D, raw inner products.
        law: See above.
        polarity: Of the view.
        temperature: T of the softmax laws.
        available_P: False where the pool item can not replace anything (it lacks the modality): weight 0, and no part
            in minimum and maximum. None: all can.
    """
    low_RP = high_RP = similarity_RP
    if available_P is not None:
        low_RP = similarity_RP.masked_fill(~available_P, torch.inf)
        high_RP = similarity_RP.masked_fill(~available_P, -torch.inf)
    low_R1, high_R1 = low_RP.amin(dim=-1, keepdim=True), high_RP.amax(dim=-1, keepdim=True)
    span_R1 = high_R1 - low_R1
    if law in ("minmax", "minmax_softmax"):
        # max - D is 1 - P before the division, and exactly 0 at the maximum.
        weights_RP = similarity_RP - low_R1 if polarity == "positive" else high_R1 - similarity_RP
        weights_RP.mul_(torch.where(span_R1 > 0, 1 / span_R1, 0)).add_((span_R1 == 0).to(weights_RP.dtype))
        if law == "minmax_softmax":
            weights_RP.sub_(1).div_(temperature).exp_()
    elif law == "softmax":
        weights_RP = similarity_RP - high_R1 if polarity == "positive" else low_R1 - similarity_RP
        weights_RP.div_(temperature).exp_()
    else:
        weights_RP = torch.ones_like(similarity_RP)
    return weights_RP if available_P is None else torch.where(available_P, weights_RP, 0.0)


def draw_replacements(
    weights_RP: Tensor, row_S: Tensor, *, forbidden_BP: Tensor, user_S: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw one pool item for each slot, all slots at once: `[S]` int64, -1 where no pool item is left.

    Weights depend on the thing replaced and not on the user, so one table of cumulated weights serves every user
    whose history holds it. A user's own items are rejected, and after a few
    rejections masked exactly, so the law is that of the pool without them.

    Args:
        weights_RP: From `replacement_weights`.
        row_S: Which row of the weights a slot uses.
        forbidden_BP: True where a pool item is the user's own.
        user_S: Which row of `forbidden_BP` a slot uses.
        generator: Source of chance, on the same device.
    """
    cumulated_RP = weights_RP.cumsum(dim=-1)
    uniform_ST = 1 - torch.rand(
        (len(row_S), _TRIES), generator=generator, device=weights_RP.device, dtype=torch.float64
    )
    draws_ST = _search(cumulated_RP, row_S.unsqueeze(-1), uniform_ST)
    row_has_weight_S1 = cumulated_RP[row_S, -1:] > 0
    fine_ST = ~forbidden_BP[user_S.unsqueeze(-1), draws_ST] & row_has_weight_S1
    first_S1 = fine_ST.to(torch.int8).argmax(dim=-1, keepdim=True)
    chosen_S = draws_ST.gather(-1, first_S1).squeeze(-1)
    left_X = torch.nonzero(~fine_ST.any(dim=-1)).squeeze(-1)
    if len(left_X) > 0:
        masked_XP = weights_RP[row_S[left_X]] * ~forbidden_BP[user_S[left_X]]
        cumulated_XP = masked_XP.cumsum(dim=-1)
        row_X1 = torch.arange(len(left_X), device=left_X.device).unsqueeze(-1)
        # Fresh chance: the first draws of these slots are known to have met what is masked now.
        fresh_X1 = 1 - torch.rand(row_X1.shape, generator=generator, device=row_X1.device, dtype=torch.float64)
        found_X = _search(cumulated_XP, row_X1, fresh_X1)
        chosen_S[left_X] = torch.where(cumulated_XP[:, -1] > 0, found_X.squeeze(-1), -1)
    return chosen_S


def _search(cumulated_RP: Tensor, row_ST: Tensor, uniform_ST: Tensor) -> Tensor:
    """Return the first place where a row's cumulated weight reaches that share of its total.

    Shares in (0, 1] never meet a place of weight 0. All rows are searched at once, as one increasing sequence: row r
    runs from r to r + 1, in double precision.
    """
    rows, size = cumulated_RP.shape
    total_R1 = cumulated_RP[:, -1:].clamp_min(torch.finfo(cumulated_RP.dtype).tiny)
    row_R1 = torch.arange(rows, dtype=torch.float64, device=cumulated_RP.device).unsqueeze(-1)
    sequence_RP = cumulated_RP.double().div_(total_R1).add_(row_R1)
    found_ST = torch.searchsorted(sequence_RP.flatten(), uniform_ST + row_ST)
    return (found_ST - row_ST * size).clamp_(0, size - 1)
