"""Rankers whose users look at the regions of an item: vectors that are weighed against each other for each user.

    s_ui = u . (e_i + sum_r a_r x_r) + b_i,   a = softmax_r(logit_r(u, x_r))

Legend: as in `training.models.ranker`, with `E` width of a region, `T` regions of an item, Q = E, H = 2 E + 1 and D =
T E + T + E + 1.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.ranker import Ranker, present

_NOWHERE = -1e30
"""Attention's logit of a region that is not there."""


class RegionRanker(Ranker):
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

    @abstractmethod
    def logits(self, queries_B1Q: Tensor, regions_KTE: Tensor) -> Tensor:
        """Return how much each user looks at each region `[B, K, T]`, before the softmax."""

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
        logits_BKT = self.logits(queries_B1Q, regions_KTE)
        logits_BKT = torch.where(flags_KT > 0, logits_BKT, torch.full((), _NOWHERE, dtype=logits_BKT.dtype))
        return torch.softmax(logits_BKT, dim=-1) * flags_KT

    def pair_scores(self, queries_B1Q: Tensor, candidates_KD: Tensor, chance: torch.Generator | None) -> Tensor:  # noqa: ARG002  # nothing is drawn
        """Return the user's product with the id and with what they look at."""
        regions_KTE, _, id_KE = self.taken_apart(candidates_KD)
        seen_BKT = self.attention(queries_B1Q, candidates_KD) * self.products(queries_B1Q, regions_KTE)
        return seen_BKT.sum(dim=-1) + (queries_B1Q @ id_KE.transpose(-1, -2)).squeeze(-2)

    def taken_apart(self, candidates_KD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return regions `[..., K, T, E]`, which of them are there `[..., K, T]`, and ids `[..., K, E]`."""
        regions_KZ, flags_KT, id_KE, _ = torch.split(candidates_KD, self._widths, dim=-1)
        regions_KTE = regions_KZ.reshape(*regions_KZ.shape[:-1], self._widths[1], self._region)
        return regions_KTE, flags_KT, id_KE

    def products(self, queries_B1E: Tensor, regions_KTE: Tensor) -> Tensor:
        """Return the inner products `[B, K, T]` of users with all regions, as one product of matrices."""
        products_B1Z = queries_B1E @ regions_KTE.flatten(-3, -2).transpose(-1, -2)
        return products_B1Z.reshape(products_B1Z.shape[0], *regions_KTE.shape[-3:-1])
