"""UltraGCN's loss (Eq. 18) with its weights, over a catalogue, over a shared sample, or over samples of each pair.

All return sums over pairs: of everything, and of the positives' share, which is there to be told.

Legend: `B` users, `X` pairs, `I` items, `N` negatives shared by a step, `n` negatives of a pair, `D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.factors.data import FactorData
from training.factors.losses import Positives, item_factor, user_factor, weighted_cross_entropy
from training.models import UltraGcnSettings

FULL_UP_TO = 10_000
"""Items of a catalogue that `negatives = auto` compares with whole."""


def negatives_of(family: UltraGcnSettings, num_items: int) -> str:
    """Return what `auto` means for a catalogue of this size."""
    if family.negatives == "auto":
        return "full" if num_items <= FULL_UP_TO else "shared"
    return family.negatives


class UltraGcnLoss:
    """The weights of a family on some data."""

    def __init__(self, family: UltraGcnSettings, data: FactorData) -> None:
        self._family = family
        self._factor_U, self._factor_I = user_factor(data.degree_U), item_factor(data.degree_I)

    def positive_weights(self, users_X: Tensor, items_X: Tensor) -> Tensor:
        """Return w1 + w2 beta of some pairs `[X]`."""
        beta_X = self._factor_U[users_X] * self._factor_I[items_X]
        return self._family.positive_weight + self._family.positive_beta * beta_X

    def negative_weights(self, users_B: Tensor, items_N: Tensor) -> Tensor:
        """Return w3 + w4 beta of each user with each item `[B, N]`."""
        beta_BN = torch.outer(self._factor_U[users_B], self._factor_I[items_N])
        return self._family.negative_weight + self._family.negative_beta * beta_BN

    def over_catalogue(
        self, users_B: Tensor, users_BD: Tensor, items_ID: Tensor, *, place_X: Tensor, items_X: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sums with all items as negatives; pairs come in the order of their users."""
        positives = Positives(place_X, items_X, self.positive_weights(users_B[place_X], items_X))
        return self._summed(
            users_B, users_BD, items_ID, item_factor_N=self._factor_I, place_X=place_X, positives=positives
        )

    def over_sample(
        self,
        users_B: Tensor,
        users_BD: Tensor,
        *,
        place_X: Tensor,
        items_X: Tensor,
        positives_XD: Tensor,
        rows: Tensor,
        negatives: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums with negatives that all users of the step share: rows `[N]`, vectors `[N, D]`."""
        positive = self._positive(users_B, users_BD, place_X, items_X, positives_XD)
        negative, _ = self._summed(users_B, users_BD, negatives, item_factor_N=self._factor_I[rows], place_X=place_X)
        return positive + negative, positive.detach()

    def over_samples_of_pairs(
        self,
        users_B: Tensor,
        users_BD: Tensor,
        *,
        place_X: Tensor,
        items_X: Tensor,
        positives_XD: Tensor,
        rows: Tensor,
        negatives: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums with negatives of each pair's own, as published: rows `[X, n]`, vectors `[X, n, D]`."""
        family = self._family
        positive = self._positive(users_B, users_BD, place_X, items_X, positives_XD)
        score_Xn = (negatives @ F.embedding(place_X, users_BD).unsqueeze(-1)).squeeze(-1)
        beta_Xn = self._factor_U[users_B[place_X], None] * self._factor_I[rows]
        weight_Xn = family.negative_weight + family.negative_beta * beta_Xn
        negative = (weight_Xn * F.softplus(score_Xn)).mean(dim=-1).sum()
        return positive + family.negative_factor * negative, positive.detach()

    def _positive(
        self, users_B: Tensor, users_BD: Tensor, place_X: Tensor, items_X: Tensor, positives_XD: Tensor
    ) -> Tensor:
        score_X = (F.embedding(place_X, users_BD) * positives_XD).sum(dim=-1)
        return (self.positive_weights(users_B[place_X], items_X) * F.softplus(-score_X)).sum()

    def _summed(
        self,
        users_B: Tensor,
        users_BD: Tensor,
        items_ND: Tensor,
        *,
        item_factor_N: Tensor,
        place_X: Tensor,
        positives: Positives | None = None,
    ) -> tuple[Tensor, Tensor]:
        family = self._family
        pairs_B = torch.bincount(place_X, minlength=len(users_B)).to(users_BD.dtype)
        return weighted_cross_entropy(
            users_BD,
            items_ND,
            weight_B=pairs_B * family.negative_factor,
            user_factor_B=self._factor_U[users_B],
            item_factor_N=item_factor_N,
            w3=family.negative_weight,
            w4=family.negative_beta,
            positives=positives,
        )
