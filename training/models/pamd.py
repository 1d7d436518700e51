"""PAMD (Han et al. 2022): items fused from their own vector and the disentangled parts of their modalities.

item = e + sum_k a_k rep_k with a = softmax(e . rep_k / sqrt(D)) over the common and specific parts of the modalities
that are there (Eq. 12-13); a user is a vector of a table. The published code takes the user for the query of the
attention: then the item depends on the user, and such a model can only order what others retrieve.

Legend: `U` users, `I` items, `R` width of all modalities together, `M` modalities, `X` items asked for, `K`
representations of an item, `D` width.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.blocks.disentangled import DisentangledEncoder, Representations, attention, chosen
from training.models.id_model import IdsAndBias
from training.models.pairwise import PairwiseSettings
from training.models.servable import FeatureSpec
from training.pretraining.settings import DisentanglingConfig


class PamdConfig(PairwiseSettings):
    """PAMD: items from ids and disentangled content, by inner product."""

    kind: Literal["pamd"] = "pamd"
    loss: Literal["bpr", "bce"] = Field(
        "bpr", description="bpr: a pair before random items, as the paper. bce: each by itself, as the published code."
    )
    representations: Representations = Field("both", description="Which parts of a modality enter the item.")
    content_length: float = Field(
        1.0, gt=0, description="Length of the representations when users and ids start to be learned, over that of ids."
    )
    encoder_lr: float = Field(1e-4, ge=0, description="Of the pretrained encoder while users and ids are learned.")
    item_bias: bool = Field(False, description="Whether each item has a bias beside its vector; the paper's has none.")
    pretraining: DisentanglingConfig = Field(
        DisentanglingConfig(), description="The stage before; its `dim` is that of the model."
    )

    def build(self, features: FeatureSpec, *, num_users: int, num_items: int) -> "PamdModel":
        """Return freshly initialised tables and encoder."""
        return PamdModel(self, features, num_users=num_users, num_items=num_items)


class ContentParts(nn.Module):
    """The parts of modalities that enter items."""

    used_M: Tensor

    def __init__(
        self, widths: Sequence[int], *, dim: int, used: Sequence[int], representations: Representations
    ) -> None:
        super().__init__()
        self.encoder = DisentangledEncoder(widths, dim=dim)
        self.width = dim * (2 if representations == "both" else 1)
        self._representations: Representations = representations
        self.register_buffer("used_M", torch.tensor([m in used for m in range(len(widths))]), persistent=False)

    def forward(self, features: Sequence[Tensor], presence_XM: Tensor) -> Tensor:
        """Return them side by side `[X, M, D or 2D]`: zero where a modality is absent or not used."""
        return chosen(self.encoder(features, presence_XM & self.used_M), self._representations)


class PamdModel(IdsAndBias):
    """Tables of users and items, and the encoder of content."""

    ids_IF: nn.Parameter

    def __init__(self, config: PamdConfig, features: FeatureSpec, *, num_users: int, num_items: int) -> None:
        super().__init__()
        self.widths = [modality.dim for modality in features.modalities]
        self.num_items, self.ids_dim = num_items, config.dim
        self.users_UD = nn.Parameter(torch.randn(num_users, config.dim) * config.init_std)
        self.ids_IF = nn.Parameter(torch.randn(num_items, config.dim) * config.init_std)
        self.item_bias_I = nn.Parameter(torch.zeros(num_items)) if config.item_bias else None
        used = features.used(config.modalities)
        self.content = ContentParts(self.widths, dim=config.dim, used=used, representations=config.representations)

    @property
    def dim(self) -> int:
        """Return D."""
        return self.ids_dim + self.bias_dim

    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:
        """Return the vectors `[X, D]` of items with this content; `rows_X` is None for the whole catalogue in order.

        A modality is absent where its vector is zero.
        """
        ids_XF = self.ids_IF if rows_X is None else F.embedding(rows_X, self.ids_IF)
        features = torch.split(content_XR, self.widths, dim=-1)
        presence_XM = torch.stack([(one != 0).any(dim=-1) for one in features], dim=-1)
        representations_XMS = self.content(features, presence_XM)
        vectors_XF = ids_XF + fused(ids_XF, representations_XMS, presence_XM).sum(dim=-2)
        if self.item_bias_I is None:
            return vectors_XF
        bias_X = self.item_bias_I if rows_X is None else self.item_bias_I[rows_X]
        return torch.cat([vectors_XF, bias_X.unsqueeze(-1)], dim=-1)


def fused(ids_XD: Tensor, representations_XMS: Tensor, presence_XM: Tensor) -> Tensor:
    """Return what each modality adds to items by attention of their own vectors `[..., M, D]` (Eq. 12-13).

    Args:
        ids_XD: e, `[..., D]`. Where it is zero, all representations count alike.
        representations_XMS: Of each modality the parts side by side, `[..., M, D or 2D]`.
        presence_XM: `[..., M]` bool.
    """
    kinds = torch.split(representations_XMS, ids_XD.shape[-1], dim=-1)
    weights = attention(ids_XD, kinds, presence_XM, scale=1 / math.sqrt(ids_XD.shape[-1]))
    added = [weights_XM.unsqueeze(-1) * kind_XMD for weights_XM, kind_XMD in zip(weights, kinds, strict=True)]
    return added[0] if len(added) == 1 else added[0] + added[1]
