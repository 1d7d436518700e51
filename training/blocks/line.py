"""Histories in line: the real items one after the other, so that a place means the same whatever lies between.

Legend: `B` batch, `L` history length as it comes, `P` places, `D` width.
"""

import torch
from torch import Tensor


def places(mask_BL: Tensor, *, length: int) -> Tensor:
    """Return where each real item stands `[B, L]`: the last one at P - 1; below 0, or for padding -1, nowhere.

    Counted from the end, as a history that is cut keeps its end: the newest item stands at the same place in all.
    """
    rank_BL = mask_BL.cumsum(dim=-1)
    place_BL = rank_BL - mask_BL.sum(dim=-1, keepdim=True) + (length - 1)
    return torch.where(mask_BL, place_BL, -1)


def in_line(rows_BLD: Tensor, mask_BL: Tensor, *, length: int) -> tuple[Tensor, Tensor]:
    """Return the last P real rows `[B, P, D]`, at the end, and where any is `[B, P]`; padding may hold anything finite.

    A product with zeros and ones, as the derivative of picking would fix the batch when traced (torch 2.13).
    """
    place_BL = places(mask_BL, length=length)
    moves_BPL = place_BL.unsqueeze(-2) == torch.arange(length, device=mask_BL.device).unsqueeze(-1)
    kept_BLD = torch.where(mask_BL.unsqueeze(-1), rows_BLD, torch.zeros((), dtype=rows_BLD.dtype))
    return moves_BPL.to(rows_BLD.dtype) @ kept_BLD, moves_BPL.any(dim=-1)
