"""A gated recurrent unit that is exported with its gradients: one layer, written out step by step.

Legend: `B` batch, `P` places, `D` width.
"""

import math

import torch
from torch import Tensor, nn


class Gru(nn.Module):
    """The last hidden state of a sequence, as wide as its rows.

    Biases and gates apart: a fused bias, or a piece of a wider product, would fix the batch when gradients are traced
    (torch 2.13).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_input, self.of_state = (_Gates(dim) for _ in range(2))

    def forward(self, rows_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        """Return `[B, D]`: where no row is, the state stays; of nothing it is zero."""
        steps = [gate_BPD.unbind(dim=1) for gate_BPD in self.of_input(rows_BPD)]
        state_BD = torch.zeros_like(steps[0][0])
        for reset_BD, update_BD, new_BD, real_B1 in zip(*steps, mask_BP.unsqueeze(-1).unbind(dim=1), strict=True):
            own_reset_BD, own_update_BD, own_new_BD = self.of_state(state_BD)
            share_BD = torch.sigmoid(update_BD + own_update_BD)
            found_BD = torch.tanh(new_BD + torch.sigmoid(reset_BD + own_reset_BD) * own_new_BD)
            state_BD = torch.where(real_B1, found_BD + share_BD * (state_BD - found_BD), state_BD)
        return state_BD


class _Gates(nn.Module):
    """Reset, update and candidate of some rows, before anything is squeezed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(dim, dim, bias=False) for _ in range(3)])
        self.biases = nn.ParameterList([torch.empty(dim) for _ in range(3)])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, rows_D: Tensor) -> list[Tensor]:
        """Return three tensors `[..., D]`."""
        return [linear(rows_D) + bias_D for linear, bias_D in zip(self.maps, self.biases, strict=True)]
