"""InvRL's two stages: environments that tell interactions apart, and the mask that is alike in all of them.

User and item tables are frozen at the pretrained model's. What is trained is the projection of content, W, in which the
score is linear: so the gradient of an environment's loss has a closed form, the variance of these gradients is an
ordinary expression, and one backward pass gives its derivative.

Legend: `E` environments, `X` positives of a step, `Y` all observed pairs, `I` items, `R` width of all modalities, `C`
content's piece, `B` users of a step, `N` shared negatives.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.factors.data import FactorData
from training.factors.losses import item_factor, user_factor, weighted_negatives
from training.factors.stages import Carry, Facts, Stage, negatives_of
from training.models import FactorModel, InvrlConfig

_PAIRS_AT_ONCE = 1 << 16

Penalty = Literal["hrm", "paper", "code"]


class EnvironmentNets(nn.Module):
    """One projection of content for each environment."""

    def __init__(self, weight_ECR: Tensor, bias_EC: Tensor) -> None:
        super().__init__()
        self.weight_ECR = nn.Parameter(weight_ECR.clone())
        self.bias_EC = nn.Parameter(bias_EC.clone())


class PartitionStage(Stage):
    """One round: fit each environment's model on its interactions, then give each interaction to the best (Eq. 6-7)."""

    def __init__(
        self,
        name: str,
        number: int,
        pretrained: FactorModel,
        data: FactorData,
        *,
        config: InvrlConfig,
        carry: Carry,
        seed: int,
    ) -> None:
        settings = config.partition
        self.name, self._number, self._model, self._data = name, number, pretrained, data
        self._config, self._settings, self._seed = config, settings, seed
        assert pretrained.weight_CR is not None
        assert pretrained.bias_C is not None
        count = settings.environments
        begins = carry["partition.started"].item() == 0
        if begins:
            rng = np.random.default_rng([seed, number])
            self._before_Y = torch.from_numpy(rng.integers(0, count, data.num_pairs))
        else:
            self._before_Y = carry["partition.environment_Y"]
        self.is_settled = not begins and bool(carry["partition.moved"].item() <= settings.stop_moved)
        weight_ECR = pretrained.weight_CR.detach().expand(count, -1, -1)
        bias_EC = pretrained.bias_C.detach().expand(count, -1)
        if settings.warm and not begins:
            weight_ECR, bias_EC = carry["partition.weight_ECR"], carry["partition.bias_EC"]
        self.module = self._nets = EnvironmentNets(weight_ECR, bias_EC)
        mask_R = carry["mask_R"]
        self._mask_R = mask_R
        self._content_IR = data.content_IR * pretrained.mask_R
        if settings.content == "variant":
            self._content_IR = self._content_IR * (1 - mask_R)
        steps = settings.epochs * data.steps(len(data.users), settings.batch_size)
        self.total_steps = 0 if self.is_settled else steps

    def groups(self) -> list[dict[str, object]]:
        """Return W and b of all environments."""
        return [{"params": list(self._nets.parameters()), "lr": self._settings.lr}]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the mean over environments that are not empty of UltraGCN's loss on their own pairs."""
        data, family, model = self._data, self._config, self._model
        full = negatives_of(family, data.num_items) == "full"
        batch = data.user_batch(
            self._number, step, size=self._settings.batch_size, num_negatives=None if full else family.num_negatives
        )
        with torch.no_grad():
            users_BD = model.users(batch.users_B)
            factor_B, factor_I = user_factor(data.degree_U[batch.users_B]), item_factor(data.degree_I)
        ids_IF = model.ids_IF
        assert ids_IF is not None
        environment_X = self._before_Y[batch.pairs_X]
        losses = []
        for e in range(self._settings.environments):
            own = (environment_X == e).nonzero().squeeze(-1)
            if len(own) == 0:
                continue
            content_IC = F.linear(self._content_IR, self._nets.weight_ECR[e], self._nets.bias_EC[e])
            items_ID = torch.cat([ids_IF.detach(), content_IC], dim=-1)
            place_X, item_X = batch.place_X[own], batch.items_X[own]
            score_X = (F.embedding(place_X, users_BD) * F.embedding(item_X, items_ID)).sum(dim=-1)
            weight_X = family.positive_weight + family.positive_beta * factor_B[place_X] * factor_I[item_X]
            pairs_B = torch.bincount(place_X, minlength=len(batch.users_B)).float()
            there = pairs_B > 0
            rows = batch.negatives
            negative = weighted_negatives(
                users_BD[there],
                items_ID if rows is None else F.embedding(rows, items_ID),
                weight_B=pairs_B[there],
                user_factor_B=factor_B[there],
                item_factor_N=factor_I if rows is None else factor_I[rows],
                w3=family.negative_weight,
                w4=family.negative_beta,
            )
            loss = ((weight_X * F.softplus(-score_X)).sum() + family.negative_factor * negative) / len(own)
            if self._settings.content == "soft":
                loss = loss + self._settings.soft_weight * (self._nets.weight_ECR[e] * self._mask_R).abs().mean()
            losses.append(loss)
        return {"total": torch.stack(losses).mean()}

    @torch.no_grad()
    def finish(self) -> tuple[Carry, Facts]:
        """Assign, refill what is empty, and tell how many moved."""
        if self.is_settled:
            return {}, {"skipped": 1.0}
        content_EIC = torch.einsum("ir,ecr->eic", self._content_IR, self._nets.weight_ECR)
        content_EIC += self._nets.bias_EC[:, None]
        users_UC = self._model.users_UD[:, self._model.ids_dim :]
        scores = []
        for start in range(0, self._data.num_pairs, _PAIRS_AT_ONCE):
            piece = slice(start, start + _PAIRS_AT_ONCE)
            users_YC = users_UC[self._data.user_E[piece]]
            score_EY = torch.einsum("yc,eyc->ey", users_YC, content_EIC[:, self._data.item_E[piece]])
            if self._settings.score == "centred":
                score_EY -= torch.einsum("yc,ec->ey", users_YC, content_EIC.mean(dim=1))
            scores.append(score_EY.numpy())
        assigned_Y = assign(np.concatenate(scores, axis=1))
        moved = float((assigned_Y != self._before_Y.numpy()).mean())
        assigned_Y = refill(assigned_Y, num_environments=self._settings.environments, seed=self._seed)
        sizes = np.bincount(assigned_Y, minlength=self._settings.environments)
        carry = {
            "partition.started": torch.tensor(1),
            "partition.moved": torch.tensor(moved),
            "partition.environment_Y": torch.from_numpy(assigned_Y),
            "partition.weight_ECR": self._nets.weight_ECR.detach().clone(),
            "partition.bias_EC": self._nets.bias_EC.detach().clone(),
        }
        return carry, {"moved": moved, "sizes": [float(size) for size in sizes]}


def assign(score_EY: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the environment of each pair: the one that scores it best, of equal ones the first."""
    best_Y: NDArray[np.int64] = np.argmax(score_EY, axis=0)
    return best_Y


def refill(environment_Y: NDArray[np.int64], *, num_environments: int, seed: int) -> NDArray[np.int64]:
    """Return the assignment with every empty environment given half of the largest one's pairs, at random."""
    filled_Y = environment_Y.copy()
    rng = np.random.default_rng(seed)
    for e in range(num_environments):
        if (filled_Y == e).any():
            continue
        largest = np.flatnonzero(filled_Y == np.bincount(filled_Y, minlength=num_environments).argmax())
        filled_Y[rng.permutation(largest)[: len(largest) // 2]] = e
    return filled_Y


class MaskNet(nn.Module):
    """The mask, and a projection that is learned with it and thrown away."""

    def __init__(self, mask_R: Tensor, weight_CR: Tensor) -> None:
        super().__init__()
        self.mask_R = nn.Parameter(mask_R)
        self.weight_CR = nn.Parameter(weight_CR)


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
        self._config, self._settings = config, settings
        self._environment_Y = carry["partition.environment_Y"]
        self._growth = settings.growth**iteration
        assert pretrained.weight_CR is not None
        self._generator = torch.Generator()
        self._seed = seed
        self._generator.manual_seed(seed * 1_000_003 + number)
        weight_CR = torch.randn(pretrained.weight_CR.shape, generator=self._generator) * config.init_std
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
        data, settings, net = self._data, self._settings, self._net
        batch = data.user_batch(
            self._number, step, size=settings.batch_size, num_negatives=min(settings.num_negatives, data.num_items)
        )
        assert batch.negatives is not None
        self._generator.manual_seed((self._seed * 1_000_003 + self._number) * 1_000_003 + step)
        environment_X = self._environment_Y[batch.pairs_X]
        users_BC, ids_BD, ids_ID = self._frozen(batch.users_B)
        factor_B, factor_I = user_factor(data.degree_U[batch.users_B]), item_factor(data.degree_I)
        family = self._config
        losses, gradients, masks = [], [], []
        for e in range(self._config.partition.environments):
            own = (environment_X == e).nonzero().squeeze(-1)
            if len(own) == 0:  # the mean is over the environments that have pairs
                continue
            noise_R = torch.randn(net.mask_R.shape, generator=self._generator) * settings.noise
            mu_R = (net.mask_R + noise_R).clamp(0, 1)
            masked_IR = self._content_IR * mu_R
            content_IC = masked_IR @ net.weight_CR.T
            place_X, item_X = batch.place_X[own], batch.items_X[own]
            pairs_B = torch.bincount(place_X, minlength=len(batch.users_B)).float()
            score_X = (users_BC[place_X] * content_IC[item_X]).sum(dim=-1) + (ids_BD[place_X] * ids_ID[item_X]).sum(
                dim=-1
            )
            score_BN = users_BC @ content_IC[batch.negatives].T + ids_BD @ ids_ID[batch.negatives].T
            weight_X = family.positive_weight + family.positive_beta * factor_B[place_X] * factor_I[item_X]
            weight_BN = family.negative_weight + family.negative_beta * torch.outer(factor_B, factor_I[batch.negatives])
            weight_BN = weight_BN * (pairs_B * family.negative_factor / len(batch.negatives))[:, None]
            count = len(own)
            loss = (weight_X * F.softplus(-score_X)).sum() + (weight_BN * F.softplus(score_BN)).sum()
            residual_X = -weight_X * torch.sigmoid(-score_X) / count
            residual_BN = weight_BN * torch.sigmoid(score_BN) / count
            pull_IC = torch.zeros_like(content_IC)
            pull_IC = pull_IC.index_add(0, item_X, residual_X[:, None] * users_BC[place_X])
            pull_IC = pull_IC.index_add(0, batch.negatives, residual_BN.T @ users_BC)
            losses.append(loss / count)
            gradients.append(pull_IC.T @ masked_IR)
            masks.append(mu_R)
        loss = torch.stack(losses).mean()
        penalty = gradient_penalty(
            torch.stack(gradients),
            torch.stack(masks).mean(dim=0),
            form=settings.penalty,
            normalised=settings.normalised,
        )
        prior = (net.mask_R - settings.prior).square().sum()
        total = loss + self._growth * (settings.alpha * penalty + settings.prior_weight * prior)
        return {"total": total, "masked": loss.detach(), "variance": penalty.detach()}

    def _frozen(self, users_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self._model
        assert model.ids_IF is not None
        users_BD = model.users(users_B).detach()
        return users_BD[:, model.ids_dim :], users_BD[:, : model.ids_dim], model.ids_IF.detach()

    def finish(self) -> tuple[Carry, Facts]:
        """Hand on the mask and begin the next partition anew."""
        mask_R = self._net.mask_R.detach().clone()
        facts: Facts = {"mask_mean": float(mask_R.mean()), "off": float((mask_R < 0.01).float().mean())}
        facts["mask_by_modality"] = [float(one.mean()) for one in torch.split(mask_R, self._data.widths)]
        return {"mask_R": mask_R, "partition.started": torch.tensor(0)}, facts


def gradient_penalty(gradient_ECR: Tensor, mu_R: Tensor, *, form: Penalty, normalised: bool) -> Tensor:
    """Return how much the environments' gradients of W differ, weighted by the mask (Eq. 9-10).

    With S the sum over environments of squared differences from the mean gradient: `hrm` is sum(S mu), linear in the
    mask, as InvRL's parent has it; `paper` is sum((S/E mu)^2); `code` is sum((S mu)^2). One environment, or equal
    ones, give exactly 0.

    Args:
        gradient_ECR: Of each environment's loss, a differentiable expression.
        mu_R: The noisy mask.
        form: See above.
        normalised: Divide S by the gradients' summed squared length, a constant for the derivative: no scale of losses
            or batches is left in it.
    """
    spread_CR = (gradient_ECR - gradient_ECR.mean(dim=0)).square().sum(dim=0)
    if normalised:
        spread_CR = spread_CR / gradient_ECR.detach().square().sum().clamp_min(1e-30)
    if form == "hrm":
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
