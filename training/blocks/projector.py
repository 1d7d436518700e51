"""From raw modality vectors to states of one width.

Legend: `B` items, `M` modalities, `D_m` raw width of modality m, `S` state width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ModalityProjector(nn.Module):
    """One affine map per modality: x^m = A_m raw^m + a_m, and exactly zero where the modality is absent.

    Demure's paper lists raw widths that differ and then multiplies modalities with each other (its Eq. 13), so an
    input projection must exist; the paper does not print it.

    Initialised for inputs whose numbers have a mean square of 1, which `training.data.conditioning` sees to.
    """

    def __init__(self, dims: Sequence[int], *, state_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(dim, state_dim, bias=bias) for dim in dims])
        self._has_bias = bias

    @torch.no_grad()
    def assign(self, m: int, *, weight_SD: Tensor, bias_S: Tensor) -> None:
        """Give one modality's map these weights."""
        linear = self.linears[m]
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(weight_SD)
        linear.bias.copy_(bias_S)

    @torch.no_grad()
    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take x instead of (x - mean) basis from now on: the maps become part of the weights.

        Args:
            maps: Per modality mean `[D_m]` and basis `[D_m, R_m]`, where R_m is the width so far.
        """
        for m, (mean_D, basis_DR) in enumerate(maps):
            old = self.linears[m]
            assert isinstance(old, nn.Linear)
            weight_SD = old.weight.double() @ basis_DR.double().T
            # Without an initialisation, which would draw from the caller's random numbers.
            new = nn.Linear(basis_DR.shape[0], old.out_features, device="meta").to_empty(device=old.weight.device)
            new.weight.copy_(weight_SD)
            moved_S = weight_SD @ mean_D.double()
            new.bias.copy_(old.bias - moved_S if self._has_bias else -moved_S)
            self.linears[m] = new
        self._has_bias = True

    def weights(self) -> list[nn.Parameter]:
        """Return each modality's A_m `[S, D_m]`."""
        return [linear.get_parameter("weight") for linear in self.linears]

    def forward(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return the states `[B, M, S]`.

        Args:
            features: Per modality `[B, D_m]` float, rows normalised.
            presence_BM: `[B, M]` bool. An absent modality gives a zero state: its bias does not leak.
        """
        states_BMS = torch.stack(
            [linear(raw_BD) for linear, raw_BD in zip(self.linears, features, strict=True)], dim=-2
        )
        return states_BMS * presence_BM.unsqueeze(-1).to(states_BMS.dtype)
