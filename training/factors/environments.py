"""InvRL's environments (Eq. 5-7): interactions are parted by which model of their variant content scores them best.

Everything but the projection of content is held at its pretrained values. Each environment then differs from the others
by its data alone: all start from the same numbers and take the same steps.

Legend: `E` environments (`e` one of them), `Y` training interactions, `R` width of all modalities together, `C` width
of the content piece, `I` items, `B` users of a step, `X` pairs of a step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.factors.data import FactorBatch, FactorData
from training.factors.stages import Carry, Facts, Stage
from training.factors.ultragcn import UltraGcnLoss, negatives_of
from training.models import FactorModel, InvrlConfig

_PAIRS_AT_ONCE = 1 << 16


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
        self._settings, self._seed = settings, seed
        self._loss = UltraGcnLoss(config, data)
        full = negatives_of(config, data.num_items) == "full"
        self._num_negatives = None if full else config.num_negatives
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
        self._mask_R = carry["mask_R"]
        self._content_IR = data.content_IR * pretrained.mask_R
        if settings.content == "variant":
            self._content_IR *= 1 - self._mask_R
        steps = settings.epochs * data.steps(len(data.users), settings.batch_size)
        self.total_steps = 0 if self.is_settled else steps

    def groups(self) -> list[dict[str, object]]:
        """Return W and b of all environments."""
        return [{"params": list(self._nets.parameters()), "lr": self._settings.lr}]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the mean over environments that are not empty of UltraGCN's loss on their own pairs."""
        batch = self._data.user_batch(
            self._number, step, size=self._settings.batch_size, num_negatives=self._num_negatives
        )
        users_BD = self._model.users(batch.users_B).detach()
        environment_X = self._before_Y[batch.pairs_X]
        losses = []
        for e in range(self._settings.environments):
            own = (environment_X == e).nonzero().squeeze(-1)
            if len(own) == 0:
                continue
            loss = self._of_pairs(e, own, batch, users_BD) / len(own)
            if self._settings.content == "soft":
                loss = loss + self._settings.soft_weight * (self._nets.weight_ECR[e] * self._mask_R).abs().mean()
            losses.append(loss)
        return {"total": torch.stack(losses).mean()}

    def _of_pairs(self, e: int, own: Tensor, batch: FactorBatch, users_BD: Tensor) -> Tensor:
        """Return the loss of an environment's pairs, summed; users without any among them cost nothing."""
        assert self._model.ids_IF is not None
        content_IC = F.linear(self._content_IR, self._nets.weight_ECR[e], self._nets.bias_EC[e])
        items_ID = torch.cat([self._model.ids_IF.detach(), content_IC], dim=-1)
        there, place_X = torch.unique(batch.place_X[own], return_inverse=True)
        users_B, users_BD, items_X = batch.users_B[there], users_BD[there], batch.items_X[own]
        if batch.negatives is None:
            return self._loss.over_catalogue(users_B, users_BD, items_ID, place_X=place_X, items_X=items_X)[0]
        return self._loss.over_sample(
            users_B,
            users_BD,
            place_X=place_X,
            items_X=items_X,
            positives_XD=F.embedding(items_X, items_ID),
            rows=batch.negatives,
            negatives=F.embedding(batch.negatives, items_ID),
        )[0]

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
