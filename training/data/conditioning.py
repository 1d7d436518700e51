"""An affine map of raw vectors that makes training easy, and that the trained model absorbs.

Raw vectors of length 1 in a thousand dimensions are bad input for Adam: each number is tiny, most of the variance lies
in a few directions, and the rest is learned late or never. Whitened input needs a fraction of the steps (see
docs/results.md). As the first layer of every model is affine, the map is folded into it after training: the exported
model takes raw vectors and knows nothing of this.

Legend: `N` items, `D` raw width, `R` width after the map.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from training.settings import Settings

_SMALLEST = 1e-4
"""Directions whose deviation is below this share of the largest are noise, and would be blown up by whitening."""

_MAX_ITEMS = 200_000
"""Enough to know a covariance of a few thousand dimensions."""


class ConditioningConfig(Settings):
    """What happens to raw vectors before training."""

    kind: Literal["whiten", "scale", "raw"] = Field(
        "whiten",
        description="whiten: centred, rotated to the principal directions, each scaled to deviation 1. scale: times "
        "the square root of the width, so that a number's mean square is 1. raw: as they are, of length 1.",
    )
    power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Of whitening: deviation s becomes s^(1-power). 1 is complete, and blows up small data's noise.",
    )
    rank: int | None = Field(None, ge=1, description="Keep at most so many directions of each modality.")


@dataclass(frozen=True, slots=True)
class InputMap:
    """One modality's map: z = (raw - mean) basis."""

    mean_D: Tensor
    basis_DR: Tensor

    def __call__(self, raw_ND: Tensor) -> Tensor:
        """Return `[N, R]` of raw vectors `[N, D]`."""
        return (raw_ND - self.mean_D) @ self.basis_DR

    @property
    def width(self) -> int:
        """Return R."""
        return self.basis_DR.shape[1]


def fit(
    config: ConditioningConfig, chunks: Iterable[tuple[Sequence[Tensor], Tensor]], *, dims: Sequence[int]
) -> list[InputMap]:
    """Fit one map per modality on the items that have it; the same data gives the same map.

    Args:
        config: Which map.
        chunks: Raw vectors per modality `[N, D_m]` and presence `[N, M]`, in pieces; read until enough items are seen.
        dims: D of each modality.
    """
    if config.kind != "whiten":
        first, _ = next(iter(chunks))
        return [
            InputMap(
                torch.zeros(dim, device=raw.device),
                torch.eye(dim, device=raw.device) * (dim**0.5 if config.kind == "scale" else 1.0),
            )
            for dim, raw in zip(dims, first, strict=True)
        ]
    sums = [torch.zeros(dim, dtype=torch.float64) for dim in dims]
    squares = [torch.zeros((dim, dim), dtype=torch.float64) for dim in dims]
    counts = [0 for _ in dims]
    seen = 0
    device = torch.device("cpu")
    for features, presence_NM in chunks:
        for m, raw_ND in enumerate(features):
            present_ND = raw_ND[presence_NM[:, m]].double()
            device = raw_ND.device
            sums[m] += present_ND.sum(dim=0).cpu()
            squares[m] += (present_ND.T @ present_ND).cpu()
            counts[m] += len(present_ND)
        seen += len(presence_NM)
        if seen >= _MAX_ITEMS:
            break
    return [
        _whitening(config, total_D, square_DD, count, device=device)
        for total_D, square_DD, count in zip(sums, squares, counts, strict=True)
    ]


def _whitening(
    config: ConditioningConfig, total_D: Tensor, square_DD: Tensor, count: int, *, device: torch.device
) -> InputMap:
    mean_D = total_D / max(count, 1)
    variance_D, directions_DD = torch.linalg.eigh(square_DD / max(count, 1) - torch.outer(mean_D, mean_D))
    variance_D, directions_DD = variance_D.flip(0), directions_DD.flip(1)  # largest first
    kept = int((variance_D > max(float(variance_D[0]), 1e-12) * _SMALLEST**2).sum())
    kept = max(1, min(kept, config.rank or kept))
    deviation_R = variance_D[:kept].clamp_min(1e-12).sqrt()
    # Scaled so that the mean variance is 1 whatever the power.
    scale_R = deviation_R**-config.power
    scale_R = scale_R / (deviation_R * scale_R).square().mean().sqrt()
    return InputMap(mean_D.float().to(device), (directions_DD[:, :kept] * scale_R).float().to(device))
