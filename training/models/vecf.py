"""VECF (Chen et al. 2019): an item's content is a set of regions, and each user looks at those that matter to them.

    s_ui = u . (e_i + sum_r a_r x_r) + b_i,   a = softmax_r( (A u) . x_r / sqrt(E) )

A region x_r is a piece of a modality's vector, projected: where a picture's vector holds its grid cells one after
another, `regions` says how many there are; a modality without is one region. Regions of all modalities are weighed
against each other. So the item's vector depends on the user, and no index holds it.

The paper's text side is a recurrent network that writes the user's review, trained beside the score. Data sets here
have no reviews. In its place the item's text takes part as a region of its own; and where `reconstructed` names a
modality, its vector is predicted from what a user sees of the other parts, which makes these say what the text says.

Legend: as in `training.models.regions`, with `E` = `dim`.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import ModalityName
from training.models.ranker import RankerModel, RankerSettings, ScoredPairs
from training.models.regions import RegionRanker
from training.models.servable import FeatureSpec


class VecfConfig(RankerSettings):
    """VECF."""

    kind: Literal["vecf"] = "vecf"
    modalities: tuple[ModalityName, ...] | None = Field(
        None, min_length=1, description="Modalities that enter the score. Unset: all."
    )
    regions: dict[ModalityName, Annotated[int, Field(ge=1, le=256)]] = Field(
        {}, description="Equal pieces that a modality's vector is cut into; 1 where it is not named."
    )
    reconstructed: ModalityName | None = Field(
        None, description="Modality that is predicted from the others, as the paper predicts reviews. Unset: none."
    )
    reconstruction_weight: float = Field(
        0.1, ge=0, description="Of that loss: 1 minus the cosine of the predicted vector and the modality's."
    )

    def build(self, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> "Vecf":
        """Return a freshly initialised model.

        Raises:
            ValueError: A modality that is named is not there, or does not fall into so many regions.
        """
        return Vecf(self, features, presence_IM, num_users=num_users)

    def regions_of(self, features: FeatureSpec) -> list[int]:
        """Return the regions of each modality; 0 of one that does not enter the score."""
        used = [features.modalities[m].name for m in features.used(self.modalities)]
        for field, names in (("regions", self.regions), ("reconstructed", [self.reconstructed])):
            for name in names:
                if name is not None and name not in used:
                    raise ValueError(f"model.{field}: {name!r} is not among the modalities of the score, {used}")
        counts = [self.regions.get(one.name, 1) if one.name in used else 0 for one in features.modalities]
        for modality, count in zip(features.modalities, counts, strict=True):
            if count and modality.dim % count:
                raise ValueError(
                    f"model.regions.{modality.name}: {modality.dim} numbers do not fall into {count} equal pieces"
                )
        return counts


class VecfRanker(RegionRanker):
    """Users look at regions through a matrix A."""

    def __init__(self, regions: Sequence[int], *, dim: int) -> None:
        super().__init__(regions, dim=dim)
        self.attention_EE = nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, dim)))

    def logits(self, queries_B1Q: Tensor, regions_KTE: Tensor) -> Tensor:
        """Return (A u) . x / sqrt(E)."""
        return self.products(queries_B1Q @ self.attention_EE, regions_KTE) / math.sqrt(len(self.attention_EE))


class Vecf(RankerModel):
    """Users, ids, a projection of each modality's regions, and attention."""

    ranker: VecfRanker

    def __init__(self, config: VecfConfig, features: FeatureSpec, presence_IM: Tensor, *, num_users: int) -> None:
        regions = config.regions_of(features)
        super().__init__(
            config,
            features,
            presence_IM,
            ranker=VecfRanker(regions, dim=config.dim),
            num_users=num_users,
            user_dim=config.dim,
            item_dim=config.dim,
        )
        self.region_weights = nn.ParameterList(
            [torch.randn(config.dim, features.modalities[m].dim // regions[m]) * config.init_std for m in self.columns]
        )
        names = [modality.name for modality in features.modalities]
        self._reconstructed = None if config.reconstructed is None else names.index(config.reconstructed)
        self._weight = config.reconstruction_weight
        self.decoder: nn.Linear | None = None
        if self._reconstructed is not None:
            self.decoder = nn.Linear(config.dim, features.modalities[self._reconstructed].dim)

    def content_weight(self, m: int) -> Tensor:
        """Return the projection `[S, R_m]`: the same for each region, and nothing where a state has no number."""
        each_II = torch.eye(self.ranker.regions[m])
        weight_ZR = torch.kron(each_II, self.region_weights[self.columns.index(m)])
        return F.pad(weight_ZR, (0, 0, 0, self.ranker.state_dim - len(weight_ZR)))

    def auxiliary(self, pairs: ScoredPairs) -> Tensor | None:
        """Return how far the modality is from what is predicted of it, over the pairs whose item has it."""
        m = self._reconstructed
        if m is None or self.decoder is None:
            return None
        seen_BE = self.seen_without(m, pairs.queries_BQ, pairs.candidates_BD)
        wanted_BR = torch.split(pairs.content_BR, self._widths, dim=-1)[m]
        missed_B = 1 - F.cosine_similarity(self.decoder(seen_BE), wanted_BR, dim=-1)
        has_B = self.presence_IM[pairs.items_B, m].to(missed_B.dtype)
        return self._weight * (missed_B * has_B).sum() / has_B.sum().clamp_min(1)

    def seen_without(self, m: int, queries_BQ: Tensor, candidates_BD: Tensor) -> Tensor:
        """Return the vector `[B, E]` of one item for each user, without the regions of a modality."""
        start = sum(self.ranker.regions[:m])
        regions_BTE, flags_BT, id_BE = self.ranker.taken_apart(candidates_BD)
        kept_T = torch.ones_like(flags_BT[0])
        kept_T[start : start + self.ranker.regions[m]] = 0
        lacking_BD = torch.cat([regions_BTE.flatten(-2), flags_BT * kept_T, id_BE, candidates_BD[:, -1:]], dim=-1)
        weights_B1T = self.ranker.attention(queries_BQ.unsqueeze(1), lacking_BD.unsqueeze(1))
        return id_BE + (weights_B1T @ regions_BTE).squeeze(1)
