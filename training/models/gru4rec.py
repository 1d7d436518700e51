"""GRU4Rec (Hidasi et al. 2016): a user is the last hidden state of a recurrent network over the history.

Legend: `B` batch, `L` history length, `D` width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from training.blocks import Gru, in_line
from training.models.servable import FeatureSpec
from training.models.tower import SequenceTower, TowerSettings


class Gru4RecConfig(TowerSettings):
    """What GRU4Rec can be told."""

    kind: Literal["gru4rec"] = "gru4rec"

    def build(self, features: FeatureSpec) -> "Gru4Rec":
        """Return a freshly initialised network for these modalities."""
        return Gru4Rec(self, features)


class Gru4Rec(SequenceTower):
    """One layer, as wide as items."""

    def __init__(self, config: Gru4RecConfig, features: FeatureSpec) -> None:
        super().__init__(config, features)
        self.gru = Gru(config.dim)
        self.default_query = nn.Parameter(torch.zeros(1, config.dim))

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the query `[B, 1, D]`."""
        state_BD: Tensor = self.gru(*in_line(items_BLD, mask_BL, length=self.history_length))
        return state_BD.unsqueeze(1)
