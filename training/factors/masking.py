"""InvRL's mask (Eq. 8-12): dimensions of content whose pull on the projection is alike in all environments stay on.

The penalty is on the gradient of each environment's loss with respect to W, or to W diag(mu). As the score is linear in
either, the gradient is an expression of the scores, A' (C mu) or A' C, with A the items' summed residuals times users:
no derivative has to be taken of a derivative.

Legend: `E` environments (`e` one of them), `R` width of all modalities together, `C` width of the content piece, `Y`
items of a step, `B` users of a step, `X` pairs of a step, `N` shared negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.factors.data import FactorBatch, FactorData
from training.factors.stages import Carry, Facts, Stage
from training.factors.ultragcn import UltraGcnLoss
from training.models import FactorModel, InvrlConfig

Penalty = Literal["direct", "hrm", "paper", "code"]


class MaskNet(nn.Module):
    """The mask, and a projection that is learned with it and thrown away."""

    def __init__(self, mask_R: Tensor, weight_CR: Tensor) -> None:
        super().__init__()
        self.mask_R = nn.Parameter(mask_R)
        self.weight_CR = nn.Parameter(weight_CR)


@dataclass(frozen=True, slots=True)
class _Step:
    """What does not depend on mask and projection: users, and the items that the step touches."""

    batch: FactorBatch
    users_BC: Tensor
    ids_BF: Tensor
    """The users' side of the ids."""
    ids_YF: Tensor
    content_YR: Tensor
    column_X: Tensor
    column_N: Tensor


class MaskStage(Stage):
    """Learn the mask on the environments found (Eq. 8-12)."""

    def __init__(
        self,
        name: str,
        number: int,
        pretrained: FactorModel,
        data: FactorData,
        *,
        config: InvrlConfig,
        carry: Carry,
        iteration: int,
        seed: int,
    ) -> None:
        settings = config.masking
        self.name, self._number, self._model, self._data = name, number, pretrained, data
        self._family, self._settings, self._seed = config, settings, seed
        self._loss = UltraGcnLoss(config, data)
        self._num_environments = config.partition.environments
        self._environment_Z = carry["partition.environment_Y"]
        self._growth = settings.growth**iteration
        assert pretrained.weight_CR is not None
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        weight_CR = torch.randn(pretrained.weight_CR.shape, generator=generator) * config.init_std
        mask_R = torch.full(carry["mask_R"].shape, settings.prior)
        self.module = self._net = MaskNet(mask_R, weight_CR)
        self._content_IR = data.content_IR * pretrained.mask_R
        self.total_steps = settings.epochs * data.steps(len(data.users), settings.batch_size)

    def groups(self) -> list[dict[str, object]]:
        """Return mask and W apart."""
        return [
            {"params": [self._net.mask_R], "lr": self._settings.lr},
            {"params": [self._net.weight_CR], "lr": self._settings.lr_weight},
        ]

    def stepped(self) -> None:
        """Project the mask back to [0, 1] (Eq. 12)."""
        self._net.mask_R.data.clamp_(0, 1)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the mean loss over environments, the penalty and the pull to the prior."""
        settings, mask_R = self._settings, self._net.mask_R
        work = self._work(step)
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._number) * 1_000_003 + step)
        environment_X = self._environment_Z[work.batch.pairs_X]
        losses, gradients, masks = [], [], []
        for e in range(self._num_environments):
            own = (environment_X == e).nonzero().squeeze(-1)
            if len(own) == 0:  # the mean is over the environments that have pairs
                continue
            noise_R = torch.randn(mask_R.shape, generator=generator) * settings.noise
            mu_R = (mask_R + noise_R).clamp(0, 1)
            loss, gradient_CR = self._of_environment(work, own, mu_R)
            losses.append(loss)
            gradients.append(gradient_CR)
            masks.append(mu_R)
        loss = torch.stack(losses).mean()
        penalty = gradient_penalty(
            torch.stack(gradients),
            torch.stack(masks).mean(dim=0),
            form=settings.penalty,
            normalised=settings.normalised,
        )
        prior = (mask_R - settings.prior).square().sum()
        total = loss + self._growth * (settings.alpha * penalty + settings.prior_weight * prior)
        return {"total": total, "masked": loss.detach(), "variance": penalty.detach()}

    def _work(self, step: int) -> _Step:
        model, data, settings = self._model, self._data, self._settings
        assert model.ids_IF is not None
        batch = data.user_batch(
            self._number, step, size=settings.batch_size, num_negatives=min(settings.num_negatives, data.num_items)
        )
        assert batch.negatives is not None
        rows_Y, columns = torch.unique(torch.cat([batch.items_X, batch.negatives]), return_inverse=True)
        users_BD = model.users(batch.users_B).detach()
        return _Step(
            batch,
            users_BC=users_BD[:, model.ids_dim :],
            ids_BF=users_BD[:, : model.ids_dim],
            ids_YF=model.ids_IF.detach()[rows_Y],
            content_YR=self._content_IR[rows_Y],
            column_X=columns[: len(batch.items_X)],
            column_N=columns[len(batch.items_X) :],
        )

    def _of_environment(self, work: _Step, own: Tensor, mu_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of an environment's pairs, and its gradient `[C, R]`: see `gradient_penalty`."""
        batch, users_BC, count = work.batch, work.users_BC, len(own)
        assert batch.negatives is not None
        # W (mu * x) = (W diag(mu)) x, here and in the gradient: masks the small matrix instead of the items.
        content_YC = F.linear(work.content_YR, self._net.weight_CR * mu_R)
        place_X, column_X = batch.place_X[own], work.column_X[own]
        users_XC = users_BC[place_X]
        ids_X = (work.ids_BF[place_X] * work.ids_YF[column_X]).sum(dim=-1)
        score_X = (users_XC * F.embedding(column_X, content_YC)).sum(dim=-1) + ids_X
        negatives_NC = F.embedding(work.column_N, content_YC)
        score_BN = users_BC @ negatives_NC.T + work.ids_BF @ work.ids_YF[work.column_N].T
        weight_X = self._loss.positive_weights(batch.users_B[place_X], batch.items_X[own])
        pairs_B = torch.bincount(place_X, minlength=len(batch.users_B)).float()
        weight_BN = self._loss.negative_weights(batch.users_B, batch.negatives)
        weight_BN *= (pairs_B * self._family.negative_factor / len(batch.negatives))[:, None]
        loss = (weight_X * F.softplus(-score_X)).sum() + (weight_BN * F.softplus(score_BN)).sum()
        residual_X = -weight_X * torch.sigmoid(-score_X)
        residual_BN = weight_BN * torch.sigmoid(score_BN)
        pull_YC = torch.zeros_like(content_YC).index_add(0, column_X, residual_X[:, None] * users_XC)
        pull_YC = pull_YC.index_add(0, work.column_N, residual_BN.T @ users_BC)
        gradient_CR = pull_YC.T @ work.content_YR / count
        return loss / count, gradient_CR if self._settings.penalty == "direct" else gradient_CR * mu_R

    def finish(self) -> tuple[Carry, Facts]:
        """Hand on the mask and begin the next partition anew."""
        mask_R = self._net.mask_R.detach().clone()
        facts: Facts = {"mask_mean": float(mask_R.mean()), "off": float((mask_R < 0.01).float().mean())}
        facts["mask_by_modality"] = [float(one.mean()) for one in torch.split(mask_R, self._data.widths)]
        return {"mask_R": mask_R, "partition.started": torch.tensor(0)}, facts


def gradient_penalty(gradient_ECR: Tensor, mu_R: Tensor, *, form: Penalty, normalised: bool) -> Tensor:
    """Return how much the environments' gradients of W differ, weighted by the mask (Eq. 9-10).

    With S the sum over environments of squared differences from the mean gradient: `hrm` is sum(S mu), linear in the
    mask, as InvRL's parent has it; `paper` is sum((S/E mu)^2); `code` is sum((S mu)^2). `direct` is sum(S mu) of other
    gradients, see below. One environment, or equal ones, give exactly 0.

    Args:
        gradient_ECR: Of each environment's loss, a differentiable expression; with respect to W, but to W diag(mu) for
            `direct`. The first has a factor mu in itself, so S fades with the square of the mask, and a mask that has
            begun to close stops closing (docs/adr/0019).
        mu_R: The noisy mask.
        form: See above.
        normalised: Divide S by the gradients' summed squared length, a constant for the derivative: no scale of losses
            or batches is left in it.
    """
    spread_CR = (gradient_ECR - gradient_ECR.mean(dim=0)).square().sum(dim=0)
    if normalised:
        spread_CR = spread_CR / gradient_ECR.detach().square().sum().clamp_min(1e-30)
    if form in {"direct", "hrm"}:
        return (spread_CR * mu_R).sum()
    if form == "paper":
        spread_CR = spread_CR / len(gradient_ECR)
    return (spread_CR * mu_R).square().sum()


def summary(mask_R: Tensor, widths: Sequence[int]) -> list[dict[str, float]]:
    """Return mean and quantiles of the mask's values, by modality."""
    found = []
    for one in torch.split(mask_R, list(widths)):
        low, middle, high = torch.quantile(one, torch.tensor([0.1, 0.5, 0.9])).tolist()
        found.append({"mean": float(one.mean()), "q10": low, "median": middle, "q90": high})
    return found
