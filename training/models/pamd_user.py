"""PAMD as its published code has it: the user is the query of the attention over an item's representations.

    s_ui = u . e_i + sum_k a_k (u . rep_k) + b_i,   a = softmax_k(u . rep_k)

So an item is another vector for each user, and no index holds it: a ranker. The score is never more than u . e + max_k
u . rep_k (+ b). The bias is not PAMD's; every ranker has one, as its loss is by default of each item by itself.

Legend: as in `training.models.regions`: a modality's regions are its common and its specific part.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from api_schemas.manifest import ModalityName
from training.blocks.disentangled import DisentangledEncoder, Representations
from training.models.ranker import RankerModel, RankerSettings
from training.models.regions import RegionRanker
from training.models.servable import FeatureSpec
from training.pretraining.settings import DisentanglingConfig


class PamdUserConfig(RankerSettings):
    """PAMD with the user as query."""

    kind: Literal["pamd_user"] = "pamd_user"
    modalities: tuple[ModalityName, ...] | None = Field(
        None, min_length=1, description="Modalities that enter the score. Unset: all."
    )
    representations: Representations = Field("both", description="Which parts of a modality enter the item.")
    content_length: float = Field(
        1.0, gt=0, description="Length of the representations when users and ids start to be learned, over that of ids."
    )
    encoder_lr: float = Field(1e-4, ge=0, description="Of the pretrained encoder while users and ids are learned.")
    pretraining: DisentanglingConfig = Field(
        DisentanglingConfig(), description="The stage before; its `dim` is that of the model."
    )

    def build(self, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> "PamdUser":
        """Return a freshly initialised model."""
        return PamdUser(self, features, presence_IM, num_users=num_users)


class PamdUserRanker(RegionRanker):
    """Users look at representations by their products with them, unscaled."""

    def logits(self, queries_B1Q: Tensor, regions_KTE: Tensor) -> Tensor:
        """Return u . rep."""
        return self.products(queries_B1Q, regions_KTE)


class PamdUser(RankerModel):
    """Users, ids, and the encoder of content."""

    ranker: PamdUserRanker

    def __init__(self, config: PamdUserConfig, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> None:
        used = features.used(config.modalities)
        super().__init__(
            config,
            features,
            presence_IM,
            ranker=PamdUserRanker(_regions(config, used, len(features.modalities)), dim=config.dim),
            num_users=num_users,
            user_dim=config.dim,
            item_dim=config.dim,
        )
        self._representations: Representations = config.representations
        self.encoder = DisentangledEncoder([modality.dim for modality in features.modalities], dim=config.dim)

    def content_weight(self, m: int) -> Tensor:
        """Return the projection `[S, R_m]` to the parts, and nothing where a state has the bias."""
        weight_ZR = self.encoder.matrix(m, self._representations).T
        return F.pad(weight_ZR, (0, 0, 0, self.ranker.state_dim - len(weight_ZR)))


def _regions(config: PamdUserConfig, used: Sequence[int], num_modalities: int) -> list[int]:
    count = 2 if config.representations == "both" else 1
    return [count if m in used else 0 for m in range(num_modalities)]
