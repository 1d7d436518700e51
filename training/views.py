"""Augmented views of histories: interest scores (Demure, Eq. 7-8), then views whose touched items are encoded anew.

Legend: `B` users, `L` history, `M` modalities (a learned `id` is one of them here), `S` state width, `D` vector width,
`U` encoded items, `P` pool items, `X` touched slots or items.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment import (
    AugmentConfig,
    Polarity,
    draw_replacements,
    replaced_parts,
    replacement_weights,
)
from training.models.content import ContentModel


@dataclass(frozen=True, slots=True)
class EncodedItems:
    """The items that a step works with, encoded with the current parameters; everything else indexes into them."""

    states_UMS: Tensor
    presence_UM: Tensor
    vectors_UD: Tensor


@dataclass(frozen=True, slots=True)
class Histories:
    """Histories of the part of a batch that gets views; items are places in `EncodedItems`."""

    items_BL: Tensor
    mask_BL: Tensor
    vectors_BLD: Tensor
    """In the graph of the users' queries: gradients with respect to it are the interest scores."""
    ages_BL: Tensor | None = None
    """As `ServableModel.encode_users` takes them."""


def interest_gradients(query_BD: Tensor, target_BD: Tensor, vectors_BLD: Tensor) -> Tensor:
    """Return d psi(u, i+) / d v_t for every history item: `[B, L, D]`, detached.

    The gradient of the score before the softmax, with the target a constant. One backward pass of the summed scores:
    rows do not interact.
    """
    psi = (query_BD * target_BD.detach()).sum()
    (gradient_BLD,) = torch.autograd.grad(psi, vectors_BLD, retain_graph=True)
    return gradient_BLD.detach()


def interest_scores(
    model: ContentModel,
    items: EncodedItems,
    histories: Histories,
    *,
    query_BD: Tensor,
    target_BD: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return what ranks items `[B, L]` and modality slots `[B, L, M]` (Eq. 7 and 8), detached.

    The sum over k of d psi / d x^m_k that Eq. 8 asks for is d psi / d v times d v / d x^m times (1, .., 1). The last
    two factors depend on the item alone: one derivative per item and modality replaces a backward pass through the
    fusion of every history item of every user. For gradient x input the direction is the state itself.
    """
    num_modalities = items.presence_UM.shape[1]
    if config.selector == "random":
        shape = (*histories.items_BL.shape, num_modalities + 1)
        chance = torch.rand(shape, generator=generator, device=histories.items_BL.device)
        return chance[..., 0], chance[..., 1:]
    gradient_BLD = interest_gradients(query_BD, target_BD, histories.vectors_BLD)
    is_gradient = config.selector == "interest_gradient"
    item_score_BL = (
        gradient_BLD.mean(dim=-1) if is_gradient else (gradient_BLD * histories.vectors_BLD.detach()).sum(dim=-1)
    )
    if config.gamma_modalities == 0:  # no slot will be replaced, so none needs a score
        return item_score_BL, torch.zeros((*item_score_BL.shape, num_modalities), device=item_score_BL.device)
    states_UMS = items.states_UMS.detach()
    directions_UMS = torch.ones_like(states_UMS) if is_gradient else states_UMS
    slopes_UMD = model.fusion_slopes(states_UMS, items.presence_UM, directions_UMS)
    slots_BLM = torch.stack(
        [(F.embedding(histories.items_BL, slopes_UMD[:, m]) * gradient_BLD).sum(dim=-1) for m in range(num_modalities)],
        dim=-1,
    )
    return item_score_BL, slots_BLM / items.states_UMS.shape[-1] if is_gradient else slots_BLM


@dataclass(frozen=True, slots=True)
class Pool:
    """The items that replacements of one step are drawn from."""

    items_P: Tensor
    """Places in `EncodedItems`."""
    own_BP: Tensor
    """True where a pool item is one of the user's own, which never replaces anything."""


class Replacer:
    """Draws the replacements of one step."""

    def __init__(self, items: EncodedItems, pool: Pool, *, config: AugmentConfig, generator: torch.Generator) -> None:
        self._pool = pool
        self._config = config
        self._generator = generator
        self._num_modalities = items.presence_UM.shape[1]
        self._vectors_UD = items.vectors_UD.detach()
        self._states_UMS = items.states_UMS.detach()
        self._present_PM = items.presence_UM[pool.items_P]

    def items(self, item_X: Tensor, user_X: Tensor, *, polarity: Polarity) -> Tensor:
        """Return what replaces each item `[X]`, a place in `EncodedItems`; the item itself where no other is left."""
        pool_PD = self._vectors_UD[self._pool.items_P]
        chosen_X = self._draw(
            self._vectors_UD,
            item_X,
            user_X,
            pool_PD=pool_PD,
            own_BP=self._pool.own_BP,
            available_P=None,
            polarity=polarity,
        )
        return torch.where(chosen_X >= 0, self._pool.items_P[chosen_X], item_X)

    def slots(self, modality: int, item_X: Tensor, user_X: Tensor, *, polarity: Polarity) -> Tensor:
        """Return the state that replaces each slot of one modality `[X]`, as item x M + modality.

        The slot's own state where no other is left.
        """
        states_US = self._states_UMS[:, modality]
        own_BP, pool_P = self._pool.own_BP, self._pool.items_P * self._num_modalities
        if self._config.replacement == "same":
            source_P, available_P = pool_P + modality, self._present_PM[:, modality]
        else:
            every_M = torch.arange(self._num_modalities, device=pool_P.device)
            source_P, available_P = (pool_P.unsqueeze(-1) + every_M).flatten(), self._present_PM.flatten()
            own_BP = own_BP.repeat_interleave(self._num_modalities, dim=-1)
        pool_PS = self._states_UMS.flatten(end_dim=1)[source_P]
        chosen_X = self._draw(
            states_US, item_X, user_X, pool_PD=pool_PS, own_BP=own_BP, available_P=available_P, polarity=polarity
        )
        return torch.where(chosen_X >= 0, source_P[chosen_X], item_X * self._num_modalities + modality)

    def _draw(
        self,
        vectors_UD: Tensor,
        item_X: Tensor,
        user_X: Tensor,
        *,
        pool_PD: Tensor,
        own_BP: Tensor,
        available_P: Tensor | None,
        polarity: Polarity,
    ) -> Tensor:
        """Draw a pool place for each of the slots; likeness is measured once per distinct item."""
        distinct_R, row_X = torch.unique(item_X, return_inverse=True)
        if available_P is not None and bool(available_P.all()):
            available_P = None  # most often nothing is missing, and masking costs as much as the rest
        weights_RP = replacement_weights(
            vectors_UD[distinct_R].float() @ pool_PD.float().T,
            law=self._config.law,
            polarity=polarity,
            temperature=self._config.law_temperature,
            available_P=available_P,
        )
        return draw_replacements(weights_RP, row_X, forbidden_BP=own_BP, user_S=user_X, generator=self._generator)


def make_view(
    model: ContentModel,
    items: EncodedItems,
    histories: Histories,
    replacer: Replacer,
    *,
    item_score_BL: Tensor,
    slot_score_BLM: Tensor,
    polarity: Polarity,
    config: AugmentConfig,
) -> Tensor:
    """Return the item vectors `[B, L, D]` of one view; gradients flow through everything but the choices.

    Replaced items are pool vectors and are not encoded again; items with replaced modalities are, and only those.
    """
    whole_BL, slots_BLM = replaced_parts(
        item_score_BL,
        slot_score_BLM,
        mask_BL=histories.mask_BL,
        present_BLM=items.presence_UM[histories.items_BL],
        polarity=polarity,
        config=config,
    )
    view_BL = histories.items_BL.clone()
    user_X, place_X = torch.nonzero(whole_BL, as_tuple=True)
    view_BL[user_X, place_X] = replacer.items(view_BL[user_X, place_X], user_X, polarity=polarity)
    vectors_BLD = F.embedding(view_BL, items.vectors_UD)

    user_X, place_X = torch.nonzero(slots_BLM.any(dim=-1), as_tuple=True)
    if len(user_X) == 0:
        return vectors_BLD
    item_X, slots_XM = histories.items_BL[user_X, place_X], slots_BLM[user_X, place_X]
    num_modalities = items.presence_UM.shape[1]
    source_XM = item_X.unsqueeze(-1) * num_modalities + torch.arange(num_modalities, device=item_X.device)
    for modality in range(num_modalities):
        (slot_Y,) = torch.nonzero(slots_XM[:, modality], as_tuple=True)
        source_XM[slot_Y, modality] = replacer.slots(modality, item_X[slot_Y], user_X[slot_Y], polarity=polarity)
    states_XMS = F.embedding(source_XM, items.states_UMS.flatten(end_dim=1))
    touched_XD = model.fuse(states_XMS, items.presence_UM[item_X])
    return vectors_BLD.index_put((user_X, place_X), touched_XD.to(vectors_BLD.dtype))
