"""YoutubeDNN as a matching model (Covington et al. 2016): a user is an affine map of the mean of the history.

Legend: `B` batch, `L` history length, `D` width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from training.models.servable import FeatureSpec
from training.models.tower import ItemTower, TowerSettings


class YoutubeDnnConfig(TowerSettings):
    """What YoutubeDNN can be told."""

    kind: Literal["youtube_dnn"] = "youtube_dnn"

    def build(self, features: FeatureSpec) -> "YoutubeDnn":
        """Return a freshly initialised network for these modalities."""
        return YoutubeDnn(self, features)


class YoutubeDnn(ItemTower):
    """The mean of what is no padding, and no activation behind it: users lie where items do."""

    def __init__(self, config: YoutubeDnnConfig, features: FeatureSpec) -> None:
        super().__init__(config, features)
        self.user = nn.Linear(config.dim, config.dim)
        self.default_query = nn.Parameter(torch.zeros(1, config.dim))

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the query `[B, 1, D]`."""
        weights_BL = (mask_BL / mask_BL.sum(dim=-1, keepdim=True).clamp_min(1)).to(items_BLD.dtype)
        mean_BD = (weights_BL.unsqueeze(1) @ items_BLD).squeeze(1)
        query_BD: Tensor = self.user(mean_BD)
        return query_BD.unsqueeze(1)
