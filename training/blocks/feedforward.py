"""The network behind the pooled history."""

from typing import Literal

from torch import Tensor, nn

FeedForwardKind = Literal["relu", "linear"]


class FeedForward(nn.Module):
    """D -> expansion x D -> D with ReLU (Demure, Eq. 4), or one affine map.

    The affine map keeps a user vector linear in the values of the history, so that its decomposition over history
    items is exact too.
    """

    def __init__(self, dim: int, *, kind: FeedForwardKind = "relu", expansion: int = 4) -> None:
        super().__init__()
        self.layers = (
            nn.Sequential(nn.Linear(dim, expansion * dim), nn.ReLU(), nn.Linear(expansion * dim, dim))
            if kind == "relu"
            else nn.Sequential(nn.Linear(dim, dim))
        )

    def forward(self, x_D: Tensor) -> Tensor:
        """Return `[..., D]` of `[..., D]`."""
        output_D: Tensor = self.layers(x_D)
        return output_D
