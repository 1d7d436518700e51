"""MacridVAE's users, from the rows of a live history: the encoder that is trained, as it is exported.

Legend: `B` users, `L` history length, `Q` concepts, `H` hidden width, `D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.factors.encoders import HistoryEncoder
from training.models import Concepts
from training.models.macridvae import share_weights


class ConceptEncoder(HistoryEncoder):
    """A row is an item's row of the first layer, then its shares of the concepts. Nothing is drawn: it is the mean."""

    reads_history_rows = True

    def __init__(self, concepts: Concepts) -> None:
        """Take what all users are read by; it is shared, not copied."""
        super().__init__()
        self.concepts = concepts

    def queries(self, rows_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """Return queries `[B, Q, D]`; of no history, what the encoder makes of nothing."""
        rows_BLH = torch.where(mask_BL.unsqueeze(-1), rows_BLH, torch.zeros((), dtype=rows_BLH.dtype))
        # Padded by less than nothing, as the derivative of slicing would fix the batch when traced (torch 2.13).
        hidden, num_queries = self.concepts.row_widths
        first_BLH, shares_BLQ = F.pad(rows_BLH, (0, -num_queries)), F.pad(rows_BLH, (-hidden, 0))
        weights_BLQ = share_weights(shares_BLQ, shares_BLQ.square().sum(dim=1, keepdim=True))
        return self.concepts.queries(self.concepts.read(weights_BLQ.mT @ first_BLH)[0])


def beside(first_H: Tensor, shares_Q: Tensor) -> Tensor:
    """Return a history row `[..., H + Q]`; that of `torch.cat` could not be traced, see `ConceptEncoder.queries`."""
    return F.pad(first_H, (0, shares_Q.shape[-1])) + F.pad(shares_Q, (first_H.shape[-1], 0))
