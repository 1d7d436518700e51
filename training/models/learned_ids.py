"""A pseudo-modality of content models: a state that is learned for each item, and one that stands for all others.

Legend: `I` items of the catalogue, `B` items asked for, `S` state width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ID = "id"
"""The part's name, as in models that are made of ids."""


class LearnedIds(nn.Module):
    """What is known of an item as such: a state of its own where users of the training have it, else `unknown_S`.

    New items stand on the unknown state, so training has to see it among what users like: in each step it takes the
    place of a share of all learned states. An item that no training user has could only learn to be avoided.
    """

    trained_I1: Tensor

    def __init__(self, trained_I: Tensor, *, state_dim: int, dropout: float) -> None:
        super().__init__()
        self.ids_IS = nn.Parameter(torch.randn(len(trained_I), state_dim))
        self.unknown_S = nn.Parameter(torch.zeros(state_dim))
        self.register_buffer("trained_I1", trained_I.unsqueeze(-1), persistent=False)
        self._dropout = dropout

    def forward(self, rows_B: Tensor | None, *, chance: torch.Generator | None) -> Tensor:
        """Return the states `[B, S]` of these rows of the catalogue, or of all.

        Args:
            rows_B: Items; None: the catalogue in order.
            chance: Of a training step. None: every item has its own.
        """
        states_BS: Tensor = self.ids_IS
        own_B1 = self.trained_I1
        if chance is not None:  # drawn for all, so that a step does not depend on which items it encodes
            own_B1 = own_B1 & (torch.rand(own_B1.shape, generator=chance, device=own_B1.device) >= self._dropout)
        if rows_B is not None:
            states_BS, own_B1 = F.embedding(rows_B, states_BS), own_B1[rows_B]
        return torch.where(own_B1, states_BS, self.unknown_S)

    def table(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the items that have a state of their own, and these states `[X, S]`."""
        (rows_X,) = torch.nonzero(self.trained_I1.squeeze(-1), as_tuple=True)
        return rows_X, self.ids_IS.detach()[rows_X]
