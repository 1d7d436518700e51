"""PAMD's encoder: each modality's vector in two parts, what it shares with the others and what it has alone.

Legend: `B` items, `M` modalities, `R_m` width of a modality, `D` width of a representation, `K` representations of an
item: of each modality in turn the common one, then the specific one.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from training.blocks.attention import MASKED
from training.blocks.projector import ModalityProjector

Representations = Literal["both", "common", "specific"]


class Disentangled(NamedTuple):
    """Representations `[B, M, D]` of items, zero where a modality is absent, or whatever is linear as they are."""

    primitive_BMD: Tensor
    """e = P r: all that is kept of the modality."""
    common_BMD: Tensor
    """c = e C (Eq. 1)."""
    specific_BMD: Tensor
    """s = e - c (Eq. 2)."""


class DisentangledEncoder(nn.Module):
    """e_m = P_m r_m, c_m = e_m C_m, s_m = e_m - c_m (PAMD, Eq. 1-2; the published code has them linear, too).

    Without a constant: the vectors that come in are centred, and a representation that all items share tells none of
    them from another.
    """

    def __init__(self, widths: Sequence[int], *, dim: int) -> None:
        super().__init__()
        self.primitive = ModalityProjector(widths, state_dim=dim, bias=False)
        self.common_MDD = nn.Parameter((torch.rand(len(widths), dim, dim) * 2 - 1) / math.sqrt(dim))

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on; see `ModalityProjector.absorb`."""
        self.primitive.absorb(maps)

    def forward(self, features: Sequence[Tensor], presence_BM: Tensor) -> Disentangled:
        """Return the representations of vectors per modality `[B, R_m]` and presence `[B, M]`."""
        primitive_BMD = self.primitive(features, presence_BM)
        common_BMD = torch.einsum("bmd,mde->bme", primitive_BMD, self.common_MDD)
        return Disentangled(primitive_BMD, common_BMD, primitive_BMD - common_BMD)

    def matrix(self, m: int, which: Representations = "both") -> Tensor:
        """Return the map `[R_m, D or 2D]` from a modality's vector to the parts that are asked for, side by side."""
        primitive_RD = self.primitive.weights()[m].T
        common_RD = primitive_RD @ self.common_MDD[m]
        return chosen(Disentangled(primitive_RD, common_RD, primitive_RD - common_RD), which)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Make all representations so many times as long."""
        for weight_DR in self.primitive.weights():
            weight_DR.mul_(factor)


def chosen(disentangled: Disentangled, which: Representations) -> Tensor:
    """Return the parts that are asked for, `[..., D]` or `[..., 2D]`: common before specific."""
    if which == "common":
        return disentangled.common_BMD
    if which == "specific":
        return disentangled.specific_BMD
    return torch.cat([disentangled.common_BMD, disentangled.specific_BMD], dim=-1)


def attention(query_D: Tensor, kinds: Sequence[Tensor], present_M: Tensor, *, scale: float) -> list[Tensor]:
    """Return the weights `[..., M]` of each kind of representation by a query (Eq. 12).

    They sum to 1 over modalities and kinds, and are 0 where a modality is absent. Of nothing present all are 0.

    Args:
        query_D: `[..., D]`: the item's own vector, or the user's.
        kinds: Of one kind or of two, each `[..., M, D]`.
        present_M: `[..., M]` bool.
        scale: Of the products: 1 / sqrt(D) in the paper, 1 in the published code.
    """
    absent_M = torch.where(present_M, 0.0, MASKED)
    kept_M = present_M.to(query_D.dtype)
    scores = [(kind_MD * query_D.unsqueeze(-2)).sum(dim=-1) * scale + absent_M for kind_MD in kinds]
    weights = [torch.softmax(scores_M, dim=-1) * kept_M for scores_M in scores]
    if len(kinds) == 1:
        return weights
    first_1, second_1 = (torch.logsumexp(scores_M, dim=-1, keepdim=True) for scores_M in scores)
    share_1 = torch.sigmoid(first_1 - second_1)
    return [weights[0] * share_1, weights[1] * (1 - share_1)]
