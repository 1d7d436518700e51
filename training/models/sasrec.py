"""SASRec (Kang & McAuley 2018) on content: self-attention over the history, trained to find the next item everywhere.

Legend: `B` batch, `L` history length, `P` places (as many as L), `D` width.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.blocks import CausalBlock, RowNorm, in_line
from training.models.servable import FeatureSpec
from training.models.tower import SequenceTower, TowerSettings


class SasRecConfig(TowerSettings):
    """What SASRec can be told."""

    kind: Literal["sasrec"] = "sasrec"
    blocks: int = Field(2, ge=1, le=16, description="Of attention and network.")
    heads: int = Field(1, ge=1, le=64, description="Of the attention; they share the width.")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} do not divide dim = {self.dim}")
        return self

    def build(self, features: FeatureSpec) -> "SasRec":
        """Return a freshly initialised network for these modalities."""
        return SasRec(self, features)


class SasRec(SequenceTower):
    """The user is the state of the last place."""

    def __init__(self, config: SasRecConfig, features: FeatureSpec) -> None:
        super().__init__(config, features)
        self.position_PD = nn.Parameter(torch.randn(config.history_length, config.dim) * 0.02)
        self.blocks = nn.ModuleList([CausalBlock(config.dim, heads=config.heads) for _ in range(config.blocks)])
        self.norm = RowNorm(config.dim)
        self.default_query = nn.Parameter(torch.zeros(1, config.dim))

    def read_all(self, items_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return a query for what comes after each place `[B, P, D]`, and where there is one `[B, P]`."""
        rows_BPD, mask_BP = in_line(items_BLD, mask_BL, length=self.history_length)
        rows_BPD = rows_BPD + self.position_PD
        for block in self.blocks:
            rows_BPD = block(rows_BPD, mask_BP)
        return self.norm(rows_BPD), mask_BP

    def read(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the query `[B, 1, D]`."""
        last_BD = self.read_all(items_BLD, mask_BL)[0].unbind(dim=1)[-1]
        return last_BD.unsqueeze(1)
