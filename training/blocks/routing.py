"""Several interests of one history: dynamic routing (MIND, ComiRec-DR) and attention with several heads (ComiRec-SA).

Legend: `B` batch, `P` places, `Q` interests, `D` width, `A` width of the attention.
"""

import torch
from torch import Tensor, nn

from training.blocks.attention import MASKED

_LEAST = 1e-9
"""Of a squared length, before its root."""


def route(votes_BPQD: Tensor, logits_BPQ: Tensor, mask_BP: Tensor, *, iterations: int) -> Tensor:
    """Return interests `[B, Q, D]` by dynamic routing.

    Every item splits itself over the interests: the softmax is over these, not over time. All iterations but the last
    take the votes as constants, so what is learned is learned through the last one.

    Args:
        votes_BPQD: What each item says of each interest; may be the same for all, `[B, P, 1, D]`.
        logits_BPQ: To start from.
        mask_BP: Where items are; others have no vote.
        iterations: At least 1.
    """
    real_BP1 = mask_BP.unsqueeze(-1).to(votes_BPQD.dtype)
    fixed_BPQD = votes_BPQD.detach()
    for _ in range(iterations - 1):
        found_BQD = _gather(fixed_BPQD, torch.softmax(logits_BPQ, dim=-1) * real_BP1)
        logits_BPQ = logits_BPQ + (fixed_BPQD * found_BQD.unsqueeze(1)).sum(dim=-1)
    return _gather(votes_BPQD, torch.softmax(logits_BPQ, dim=-1) * real_BP1)


def _gather(votes_BPQD: Tensor, shares_BPQ: Tensor) -> Tensor:
    return squash((shares_BPQ.unsqueeze(-1) * votes_BPQD).sum(dim=1))


def squash(vectors_D: Tensor) -> Tensor:
    """Return vectors `[..., D]` of the same direction, shorter than 1."""
    squares_1 = vectors_D.square().sum(dim=-1, keepdim=True)
    return vectors_D * (squares_1 / (1 + squares_1) * (squares_1 + _LEAST).rsqrt())


class HeadsPool(nn.Module):
    """Softmax over time of W2 tanh(W1 (h + position)), for each head its own; values are without position."""

    def __init__(self, dim: int, *, hidden: int, heads: int, length: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden, bias=False)
        self.second = nn.Linear(hidden, heads, bias=False)
        self.position_PD = nn.Parameter(torch.randn(length, dim) * 0.1)

    def weights(self, rows_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        """Return how much each head looks at each item `[B, Q, P]`; 0 where none is."""
        logits_BPQ = self.second(torch.tanh(self.first(rows_BPD + self.position_PD)))
        real_BP1 = mask_BP.unsqueeze(-1)
        logits_BPQ = torch.where(real_BP1, logits_BPQ, torch.full((), MASKED, dtype=logits_BPQ.dtype))
        return (torch.softmax(logits_BPQ, dim=1) * real_BP1.to(logits_BPQ.dtype)).mT

    def forward(self, rows_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        """Return interests `[B, Q, D]`."""
        return self.weights(rows_BPD, mask_BP) @ rows_BPD
