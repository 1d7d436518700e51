"""In-batch contrast, and SLMRec's self-supervised tasks on its channels.

Legend: `B` anchors or pairs, `V` distinct users, `Y` candidates, `D` width, `C` channels (ids, then modalities), `d`
width of a channel.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from training.factors.log_sum import log_sum_exp
from training.models.slmrec import Channels, Slmrec

Similarity = Literal["cosine", "dot"]


def comparable(anchors_BD: Tensor, candidates_YD: Tensor, *, kind: Similarity, tau: float) -> tuple[Tensor, Tensor]:
    """Return both so that their inner products are cosines or inner products over the temperature."""
    if kind == "cosine":
        anchors_BD, candidates_YD = F.normalize(anchors_BD, dim=-1), F.normalize(candidates_YD, dim=-1)
    return anchors_BD / tau, candidates_YD


def info_nce(anchors_ND: Tensor, candidates_ND: Tensor, *, kind: Similarity, tau: float) -> Tensor:
    """Return -log of the softmax of each anchor's own candidate among all, on average."""
    anchors_ND, candidates_ND = comparable(anchors_ND, candidates_ND, kind=kind, tau=tau)
    all_alike_N = anchors_ND.new_zeros(len(anchors_ND))
    sums_N = log_sum_exp(anchors_ND, candidates_ND, log_weight_Y=all_alike_N, left_out_VY=None)
    return (sums_N - (anchors_ND * candidates_ND).sum(dim=-1)).mean()


def among_batch(
    users_VD: Tensor,
    items_YD: Tensor,
    *,
    place_V_B: Tensor,
    place_Y_B: Tensor,
    weight_Y: Tensor,
    held_VY: Tensor | None,
) -> Tensor:
    """Return the cross-entropy of each pair's item among the items of the batch (Eq. 13 as it is computed).

    A user's sum over negatives is the same for all of its pairs, and is made once.

    Args:
        users_VD: Distinct users, scaled so that scores are inner products.
        items_YD: Distinct items.
        place_V_B: Of each pair's user.
        place_Y_B: Of its item.
        weight_Y: What each item counts as a negative: its pairs in the batch, as published.
        held_VY: Which of the items each user has: with it these are no negatives.
    """
    own_B = (F.embedding(place_V_B, users_VD) * F.embedding(place_Y_B, items_YD)).sum(dim=-1)
    sum_V = log_sum_exp(users_VD, items_YD, log_weight_Y=weight_Y.to(items_YD.dtype).log(), left_out_VY=held_VY)
    sum_B = sum_V[place_V_B]
    # Without the mask the sum has the own item in it already.
    return (sum_B - own_B if held_VY is None else F.softplus(sum_B - own_B)).mean()


def fac(model: Slmrec, channels_Yd: Sequence[Tensor], *, kind: Similarity, tau: float) -> Tensor:
    """Return FAC (Eq. 10-11): the ids of items, moved from space to space, find their own modalities; summed."""
    anchors_Yd, *modalities = channels_Yd
    total = anchors_Yd.new_zeros(())
    for onward, space, modality_Yd in zip(model.onward, model.spaces, modalities, strict=True):
        anchors_Yd = onward(anchors_Yd)
        total = total + info_nce(anchors_Yd, space(modality_Yd), kind=kind, tau=tau)
    return total


View = tuple[list[Tensor], list[Tensor]]
"""Some users and some items in all channels."""


def masked_views(users: Channels, items: Channels, lacking: tuple[int, int]) -> tuple[View, View]:
    """Return FM's two views: in each, one channel lacks what its items have."""
    first, second = lacking
    return (users.all(without=first), items.all(without=first)), (users.all(without=second), items.all(without=second))


def agreement(model: Slmrec, views: tuple[View, View], *, tau: float) -> Tensor:
    """Return the contrast of two views, of users and of items, each fused from its channels; summed (Eq. 9)."""
    users = [model.fused(view[0], "users") for view in views]
    items = [model.fused(view[1], "items") for view in views]
    return info_nce(*users, kind="cosine", tau=tau) + info_nce(*items, kind="cosine", tau=tau)
