"""Several interests of one history: dynamic routing (MIND, ComiRec-DR, MTIN) and attention with heads (ComiRec-SA).

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
    logits_BPQ = agree(votes_BPQD, logits_BPQ, mask_BP, rounds=iterations - 1)
    return gather(votes_BPQD, shares(logits_BPQ, mask_BP))


def agree(votes_BPQD: Tensor, logits_BPQ: Tensor, mask_BP: Tensor, *, rounds: int) -> Tensor:
    """Return the logits `[B, P, Q]` of how each item splits itself, after some rounds; votes count as constants."""
    fixed_BPQD = votes_BPQD.detach()
    for _ in range(rounds):
        found_BQD = gather(fixed_BPQD, shares(logits_BPQ, mask_BP))
        logits_BPQ = logits_BPQ + (fixed_BPQD * found_BQD.unsqueeze(1)).sum(dim=-1)
    return logits_BPQ


def shares(logits_BPQ: Tensor, mask_BP: Tensor) -> Tensor:
    """Return the share that each interest has of each item `[B, P, Q]`; nothing where no item is."""
    return torch.softmax(logits_BPQ, dim=-1) * mask_BP.unsqueeze(-1).to(logits_BPQ.dtype)


def gather(votes_BPQD: Tensor, shares_BPQ: Tensor) -> Tensor:
    """Return the interests `[B, Q, D]` that votes make by their shares, shorter than 1."""
    return squash((shares_BPQ.unsqueeze(-1) * votes_BPQD).sum(dim=1))


def squash(vectors_D: Tensor) -> Tensor:
    """Return vectors `[..., D]` of the same direction, shorter than 1."""
    squares_1 = vectors_D.square().sum(dim=-1, keepdim=True)
    return vectors_D * (squares_1 / (1 + squares_1) * (squares_1 + _LEAST).rsqrt())


def over_places(logits_BPQ: Tensor, mask_BP: Tensor) -> Tensor:
    """Return how much each interest reads of each item `[B, P, Q]`: a softmax over the places, 0 where no item is."""
    real_BP1 = mask_BP.unsqueeze(-1)
    logits_BPQ = torch.where(real_BP1, logits_BPQ, torch.full((), MASKED, dtype=logits_BPQ.dtype))
    return torch.softmax(logits_BPQ, dim=1) * real_BP1.to(logits_BPQ.dtype)


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
        return over_places(logits_BPQ, mask_BP).mT

    def forward(self, rows_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        """Return interests `[B, Q, D]`."""
        return self.weights(rows_BPD, mask_BP) @ rows_BPD
