"""Dropout that draws from the generator of a step, so that a run resumes exactly."""

import torch
from torch import Tensor


def dropout(values: Tensor, *, share: float, chance: torch.Generator) -> Tensor:
    """Return the values with a share of them at zero and the others larger, so that the mean stays."""
    return values * (torch.rand(values.shape, generator=chance) >= share) / (1 - share)
