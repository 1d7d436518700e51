"""VECF (Chen et al. 2019): an item's content is a set of regions, and each user looks at those that matter to them.

    s_ui = u . (e_i + sum_r a_r x_r) + b_i,   a = softmax_r( (A u) . x_r / sqrt(E) )

A region x_r is a piece of a modality's vector, projected: where a picture's vector holds its grid cells one after
another, `regions` says how many there are; a modality without is one region. Regions of all modalities are weighed
against each other. So the item's vector depends on the user, and no index holds it.

The paper's text side is a recurrent network that writes the user's review, trained beside the score. Data sets here
have no reviews. In its place the item's text takes part as a region of its own; and where `reconstructed` names a
modality, its vector is predicted from what a user sees of the other parts, which makes these say what the text says.

Legend: as in `training.models.ranker`, with `E` = `dim`, `T` regions of an item, Q = E, H = 2 E + 1 and D = T E + T + E
+ 1.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import ModalityName
from training.models.ranker import Ranker, RankerModel, RankerSettings, ScoredPairs, present
from training.models.servable import FeatureSpec

_NOWHERE = -1e30
"""Attention's logit of a region that is not there."""


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


class VecfRanker(Ranker):
    """A modality's state is its regions side by side; a candidate is all regions, which are there, the id, the bias."""

    def __init__(self, regions: Sequence[int], *, dim: int) -> None:
        """Take the regions of each modality, 0 of one that does not enter the score."""
        total, most = sum(regions), max(regions)
        super().__init__(
            state_dim=most * dim + 1,
            dim=total * (dim + 1) + dim + 1,
            query_dim=dim,
            row_dim=2 * dim + 1,
            pair_dim=total,
        )
        self.regions, self._region, self._padding = tuple(regions), dim, (most - 1) * dim
        self._widths = [total * dim, total, dim, 1]
        self.attention_EE = nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, dim)))

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the regions of the modalities that are there, which regions are, id and bias `[..., D]`."""
        states_PS = present(states_PS, presence_P)
        flags_P1 = presence_P.unsqueeze(-1).to(states_PS.dtype)
        used = [(m, count) for m, count in enumerate(self.regions) if count]
        regions = [states_PS[..., m, : count * self._region] for m, count in used]
        flags = [flags_P1[..., m, :].expand(*flags_P1.shape[:-2], count) for m, count in used]
        return torch.cat([*regions, *flags, states_PS[..., -1, : self._region], states_PS[..., -1, -1:]], dim=-1)

    def rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return id, the sum of the modalities' mean regions, and bias `[..., H]`."""
        states_PS = present(states_PS, presence_P)
        id_E, bias_1 = states_PS[..., -1, : self._region], states_PS[..., -1, -1:]
        content_E = torch.zeros_like(id_E)
        for m, count in enumerate(self.regions):
            if count:
                regions_Z = states_PS[..., m, : count * self._region]
                content_E = content_E + regions_Z.reshape(*id_E.shape[:-1], count, self._region).mean(dim=-2)
        return torch.cat([id_E, content_E, bias_1], dim=-1)

    def id_state(self, learned_F: Tensor) -> Tensor:
        """Return id and bias at the ends of a state."""
        id_E, bias_1 = torch.split(learned_F, [self._region, 1], dim=-1)
        return torch.cat([F.pad(id_E, (0, self._padding)), bias_1], dim=-1)

    def attention(self, queries_B1Q: Tensor, candidates_KD: Tensor) -> Tensor:
        """Return how much each user looks at each region `[B, K, T]`: 1 in all, nothing at what is not there."""
        regions_KTE, flags_KT, _ = self.taken_apart(candidates_KD)
        logits_BKT = self._products(queries_B1Q @ self.attention_EE, regions_KTE) * self._region**-0.5
        logits_BKT = torch.where(flags_KT > 0, logits_BKT, torch.full((), _NOWHERE, dtype=logits_BKT.dtype))
        return torch.softmax(logits_BKT, dim=-1) * flags_KT

    def pair_scores(self, queries_B1Q: Tensor, candidates_KD: Tensor, chance: torch.Generator | None) -> Tensor:  # noqa: ARG002  # nothing is drawn
        """Return the user's product with the id and with what they look at."""
        regions_KTE, _, id_KE = self.taken_apart(candidates_KD)
        seen_BKT = self.attention(queries_B1Q, candidates_KD) * self._products(queries_B1Q, regions_KTE)
        return seen_BKT.sum(dim=-1) + (queries_B1Q @ id_KE.transpose(-1, -2)).squeeze(-2)

    def taken_apart(self, candidates_KD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return regions `[..., K, T, E]`, which of them are there `[..., K, T]`, and ids `[..., K, E]`."""
        regions_KZ, flags_KT, id_KE, _ = torch.split(candidates_KD, self._widths, dim=-1)
        regions_KTE = regions_KZ.reshape(*regions_KZ.shape[:-1], self._widths[1], self._region)
        return regions_KTE, flags_KT, id_KE

    def _products(self, queries_B1E: Tensor, regions_KTE: Tensor) -> Tensor:
        """Return the inner products `[B, K, T]` of users with all regions, as one product of matrices."""
        products_B1Z = queries_B1E @ regions_KTE.flatten(-3, -2).transpose(-1, -2)
        return products_B1Z.reshape(products_B1Z.shape[0], *regions_KTE.shape[-3:-1])


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
