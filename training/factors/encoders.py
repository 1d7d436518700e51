"""Users from live histories: the modules that the exported user encoder runs, and that are measured before.

Legend: `B` users, `L` history length, `H` history row, `Q` queries, `D` width.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

_MASKED = -1e30


class HistoryEncoder(nn.Module, ABC):
    """What reads users from the rows of their history."""

    reads_history_rows: ClassVar[bool] = False
    """Whether it reads the model's own rows of a history in place of the items' vectors."""

    @abstractmethod
    def queries(self, rows_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """Return queries `[B, Q, D]`; padding may hold anything finite."""

    @property
    def pooled_map(self) -> Tensor | None:
        """Return A `[H, D]` where users are `weights_of` their items times A plus a constant; else None."""
        return None

    def weights_of(self, mask_BL: Tensor) -> Tensor:
        """Return how much each item counts by where items are `[B, L]`: 1 in all, nothing in padding."""
        return mask_BL / mask_BL.sum(dim=-1, keepdim=True).clamp_min(1)


class MeanEncoder(HistoryEncoder):
    """A user is the mean of the history's items times `map_DD`, plus `offset_D`."""

    def __init__(self, map_DD: Tensor, offset_D: Tensor, default_D: Tensor) -> None:
        """Take the affine map, and what an empty history gives."""
        super().__init__()
        # Parameters, as the tracer of gradients takes no buffers.
        self.map_DD = nn.Parameter(map_DD.clone(), requires_grad=False)
        self.offset_D = nn.Parameter(offset_D.clone(), requires_grad=False)
        self.default_D = nn.Parameter(default_D.clone(), requires_grad=False)

    @property
    def pooled_map(self) -> Tensor | None:
        """Return A."""
        return self.map_DD

    def weights(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return how much each item counts `[B, L]`."""
        return self.weights_of(mask_BL).to(items_BLD.dtype)

    def queries(self, rows_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """Return users as one query each `[B, 1, D]`."""
        users_BD: Tensor = self(rows_BLH, mask_BL)
        return users_BD.unsqueeze(1)

    def forward(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return users `[B, D]`; padding may hold anything."""
        kept_BLD = torch.where(mask_BL.unsqueeze(-1), items_BLD, torch.zeros((), dtype=items_BLD.dtype))
        pooled_BD = (self.weights(kept_BLD, mask_BL).unsqueeze(-1) * kept_BLD).sum(dim=1)
        query_BD = pooled_BD @ self.map_DD + self.offset_D
        return torch.where(mask_BL.any(dim=-1, keepdim=True), query_BD, self.default_D)


class RowEncoder(MeanEncoder):
    """The same of the model's own rows."""

    reads_history_rows = True


class ExactEncoder(RowEncoder):
    """A new node of the graph whose neighbours are held fixed: the sum of their rows over the root of their number.

    As propagation gives it the map is the identity (`training.models.graph.GraphModel.history_parts`).
    """

    def weights_of(self, mask_BL: Tensor) -> Tensor:
        """Return 1 / sqrt(n), nothing in padding."""
        return mask_BL * mask_BL.sum(dim=-1, keepdim=True).clamp_min(1).rsqrt()


class SumEncoder(RowEncoder):
    """The sum of the history's rows as they are; of no history, nothing."""

    def __init__(self, dim: int) -> None:
        """Read rows of this width."""
        super().__init__(torch.eye(dim), torch.zeros(dim), torch.zeros(dim))

    def weights_of(self, mask_BL: Tensor) -> Tensor:
        """Return 1, nothing in padding."""
        return mask_BL.float()


class DecayedSumEncoder(SumEncoder):
    """The sum of the history's rows, each halved with every `half_life` items that came after it (SLIT)."""

    def __init__(self, dim: int, *, half_life: float) -> None:
        """Read rows of this width."""
        super().__init__(dim)
        self._rate = math.log(2) / half_life

    def weights_of(self, mask_BL: Tensor) -> Tensor:
        """Return 2^(-k / half-life) for the item that k others follow, nothing in padding."""
        later_BL = mask_BL.sum(dim=-1, keepdim=True) - mask_BL.cumsum(dim=-1)
        return mask_BL * torch.exp(-self._rate * later_BL)


class AttentionEncoder(MeanEncoder):
    """The same with a weighted mean: an item's weight is softmax(w . tanh(W x + b)) over the history.

    Without training w is zero and all weights are equal: it starts as the mean.
    """

    def __init__(self, start: MeanEncoder, *, item_scale: float) -> None:
        """Start as another encoder. Items are divided by `item_scale`, so that W is of usual size."""
        super().__init__(start.map_DD.data, start.offset_D.data, start.default_D.data)
        dim = len(start.offset_D)
        # Its bias apart: a fused one would fix the batch when gradients are traced (torch 2.13).
        self.hidden = nn.Linear(dim, dim, bias=False)
        self.bias_D = nn.Parameter(torch.zeros(dim))
        self.attention_D = nn.Parameter(torch.zeros(dim))
        self.item_scale = item_scale

    @property
    def pooled_map(self) -> Tensor | None:
        """Return None: weights depend on the history."""
        return None

    def weights(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the softmax over what is no padding."""
        hidden_BLD = torch.tanh(self.hidden(items_BLD / self.item_scale) + self.bias_D)
        scores_BL = (hidden_BLD * self.attention_D).sum(dim=-1)
        scores_BL = torch.where(mask_BL, scores_BL, torch.full((), _MASKED, dtype=scores_BL.dtype))
        return torch.softmax(scores_BL, dim=-1) * mask_BL.to(items_BLD.dtype)
