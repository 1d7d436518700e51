"""The stage that trains MacridVAE: users with all their items, against the whole catalogue.

Legend: `B` users of a step, `X` their pairs, `I` items, `Q` concepts, `F` width of items, `H` hidden width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.factors.data import FactorBatch
from training.factors.fit import Fit, FitStage
from training.factors.losses import Positives
from training.factors.multinomial import multinomial
from training.models import MacridVae, MacridVaeConfig
from training.models.macridvae import share_weights, unit


class ConceptFit(FitStage):
    """The lower bound of the paper: multinomial cross-entropy of the users' items, and the distance from the prior."""

    _model: MacridVae

    def __init__(self, fit: Fit, family: MacridVaeConfig) -> None:
        super().__init__(fit, rows=len(fit.data.users))
        self._family = family

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        family, model = self._family, self._model
        batch = self._data.user_batch(self._number, step, size=self._optim.batch_size, num_negatives=None)
        chance = self._data.chance(self._number, step)
        unit_IF = unit(model.ids_IF)
        items_ID = model.concepts.items(unit_IF)
        shares_XQ = F.embedding(batch.items_X, items_ID[:, unit_IF.shape[1] :]).exp()
        pooled_BQH = pooled(batch, shares_XQ, model.first_IH, dropout=family.dropout, chance=chance)
        mean_BQF, log_ratio_BQF = model.concepts.read(pooled_BQH)
        noise_BQF = torch.randn(mean_BQF.shape, generator=chance) * family.prior_std
        queries_BQD = model.concepts.queries(mean_BQF + noise_BQF * torch.exp(0.5 * log_ratio_BQF))
        # Means over the pairs, as with all families; of the two terms as published, users times the mean over users.
        count = len(batch.items_X)
        positives = Positives(batch.place_X, batch.items_X, items_ID.new_ones(count))
        likelihood = multinomial(queries_BQD, items_ID, positives) / count
        kl = prior_distance(log_ratio_BQF).sum() / count
        told = {"likelihood": likelihood.detach(), "kl": kl.detach()}
        return likelihood + self._beta(step) * kl, batch, told

    def _beta(self, step: int) -> float:
        """Return the weight of the distance: it rises for some epochs."""
        steps = self._family.kl_epochs * self._steps_per_epoch
        return self._family.kl_weight * (min(1.0, step / steps) if steps > 0 else 1.0)


def pooled(
    batch: FactorBatch, shares_XQ: Tensor, first_IH: Tensor, *, dropout: float, chance: torch.Generator
) -> Tensor:
    """Return the first layer's sum over each user's items, for each concept `[B, Q, H]`.

    Items are weighted as `ConceptEncoder` does; a share of them, another one for each concept, is left out, and the
    others count for more.
    """
    num_users, num_queries = len(batch.users_B), shares_XQ.shape[1]
    squares_BQ = shares_XQ.new_zeros(num_users, num_queries).index_add(0, batch.place_X, shares_XQ.square())
    weights_XQ = share_weights(shares_XQ, F.embedding(batch.place_X, squares_BQ))
    if dropout > 0:
        kept_XQ = torch.rand(weights_XQ.shape, generator=chance) >= dropout
        weights_XQ = weights_XQ * kept_XQ.to(weights_XQ.dtype) / (1 - dropout)
    starts_B = torch.searchsorted(batch.place_X, torch.arange(num_users))
    sums_BH = [
        F.embedding_bag(batch.items_X, first_IH, starts_B, mode="sum", per_sample_weights=weights_X)
        for weights_X in weights_XQ.T.contiguous()
    ]
    return torch.stack(sums_BH, dim=1)


def prior_distance(log_ratio_BQF: Tensor) -> Tensor:
    """Return KL(q || prior) of each number; means lie on a sphere, where all are as far from the prior's."""
    return 0.5 * (log_ratio_BQF.exp() - log_ratio_BQF - 1)
