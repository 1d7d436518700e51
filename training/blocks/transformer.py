"""Self-attention that sees nothing later: the blocks of SASRec.

Legend: `B` batch, `P` places, `D` width, `N` heads, `W` width of a head.
"""

import math

import torch
from torch import Tensor, nn

from training.blocks.attention import MASKED


class CausalBlock(nn.Module):
    """Attention to what is not later, then a network for each place; each on normalised rows and added to them."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = RowNorm(dim), RowNorm(dim)
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.first, self.second = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.first_D, self.second_D = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, rows_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        """Return rows `[B, P, D]`; those of places without an item mean nothing."""
        rows_BPD = rows_BPD + self._attended(self.attention_norm(rows_BPD), mask_BP)
        hidden_BPD = torch.relu(self.first(self.network_norm(rows_BPD)) + self.first_D)
        output_BPD: Tensor = rows_BPD + self.second(hidden_BPD) + self.second_D
        return output_BPD

    def _attended(self, rows_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        query_BNPW, key_BNPW, value_BNPW = (
            linear(rows_BPD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores_BNPP = query_BNPW @ key_BNPW.mT / math.sqrt(query_BNPW.shape[-1])
        length = rows_BPD.shape[1]
        earlier_PP = torch.ones(length, length, dtype=torch.bool, device=mask_BP.device).tril()
        seen_BPP = earlier_PP & mask_BP.unsqueeze(1)
        scores_BNPP = scores_BNPP + torch.where(seen_BPP, 0.0, MASKED).unsqueeze(1).to(scores_BNPP.dtype)
        found_BNPW = torch.softmax(scores_BNPP, dim=-1) @ value_BNPW
        output_BPD: Tensor = self.output(found_BNPW.transpose(1, 2).flatten(start_dim=2))
        return output_BPD


class RowNorm(nn.Module):
    """Layer normalisation, in operations whose gradients can be traced."""

    def __init__(self, dim: int, *, least: float = 1e-6) -> None:
        super().__init__()
        self.scale_D, self.shift_D = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self._least = least

    def forward(self, rows_D: Tensor) -> Tensor:
        """Return rows `[..., D]` of mean 0 and variance 1, scaled and shifted."""
        centred_D = rows_D - rows_D.mean(dim=-1, keepdim=True)
        variance_1 = centred_D.square().mean(dim=-1, keepdim=True)
        return centred_D * (variance_1 + self._least).rsqrt() * self.scale_D + self.shift_D
