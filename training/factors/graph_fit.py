"""The stages that train graph models: pairs against random items (BPR), and SLMRec's contrast with the batch.

Legend: `B` pairs of a step, `n` negatives of a pair, `V` distinct users, `Y` distinct items, `D` width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from training.factors.contrast import View, agreement, among_batch, comparable, fac, masked_views
from training.factors.data import FactorBatch
from training.factors.fit import Fit, FitStage
from training.factors.losses import bpr
from training.models import Channels, GraphModel, GraphSettings, Slmrec, SlmrecConfig


class GraphFit(FitStage):
    """BPR on what propagation makes of users and items, and what a family adds of its own."""

    _model: GraphModel

    def __init__(self, fit: Fit, family: GraphSettings) -> None:
        super().__init__(fit, rows=fit.data.num_pairs)
        self._num_negatives = family.negatives

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        size = self._optim.batch_size
        batch = self._data.pair_batch(self._number, step, size=size, num_negatives=self._num_negatives)
        assert batch.negatives is not None
        count = len(batch.items_X)
        chance = self._data.chance(self._number, step)
        items_X = torch.cat([batch.items_X, batch.negatives.flatten()])
        users_BD, items_XD = self._model.rows(batch.users_B, items_X, chance)
        positive_B = (users_BD * items_XD[:count]).sum(dim=-1)
        negatives_BnD = items_XD[count:].view(*batch.negatives.shape, -1)
        negative_Bn = (negatives_BnD * users_BD.unsqueeze(1)).sum(dim=-1)
        loss = bpr(positive_B, negative_Bn).mean()
        told = {"bpr": loss.detach()}
        auxiliary = self._model.auxiliary(batch.users_B, items_X)
        if auxiliary is not None:
            told["auxiliary"] = auxiliary.detach()
            loss = loss + auxiliary
        return loss, batch, told


class SlmrecFit(FitStage):
    """SLMRec: in-batch InfoNCE, and self-supervised tasks beside it (Eq. 13-14)."""

    _model: Slmrec

    def __init__(self, fit: Fit, family: SlmrecConfig) -> None:
        super().__init__(fit, rows=fit.data.num_pairs)
        self._family = family

    def _step(self, step: int) -> tuple[Tensor, FactorBatch, dict[str, Tensor]]:
        family, model, data = self._family, self._model, self._data
        batch = data.pair_batch(self._number, step, size=self._optim.batch_size, num_negatives=0)
        chance = data.chance(self._number, step)
        users_V, place_V = torch.unique(batch.users_B, return_inverse=True)
        drawn = torch.randint(data.num_items, (family.negatives,), generator=chance)
        items_Y, place_X = torch.unique(torch.cat([batch.items_X, drawn]), return_inverse=True)
        place_B = place_X[: len(batch.items_X)]
        users, items = model.channels(users_V, items_Y)
        told: dict[str, Tensor] = {}
        loss = users.shared_ND.new_zeros(())
        if family.main_weight > 0:
            users_VD, items_YD = comparable(
                model.fused(users.all(), "users"), model.fused(items.all(), "items"), kind=family.scorer, tau=family.tau
            )
            main = among_batch(
                users_VD,
                items_YD,
                place_V_B=place_V,
                place_Y_B=place_B,
                weight_Y=self._weights(items_Y, torch.bincount(place_X), num_pairs=len(batch.items_X)),
                held_VY=data.holds(users_V, items_Y) if family.mask_positives else None,
            )
            told["main"] = main.detach()
            loss = loss + family.main_weight * main
        if family.negatives > 0:  # the tasks are about items of the batch
            of_batch = torch.unique(place_B)
            items, items_Y = items.some(of_batch), items_Y[of_batch]
        tasks: list[tuple[str, float, Callable[[], Tensor]]] = [
            ("fac", family.fac_weight, lambda: self._fac(items)),
            ("fm", family.fm_weight, lambda: self._fm(users, items, chance)),
            ("fd", family.fd_weight, lambda: self._fd(users, items, (users_V, items_Y), chance)),
        ]
        for name, weight, task in tasks:
            if weight > 0:
                term = task()
                told[name] = term.detach()
                loss = loss + weight * term
        return loss, batch, told

    def _weights(self, items_Y: Tensor, count_Y: Tensor, *, num_pairs: int) -> Tensor:
        """Return what items count as negatives that are so often among a batch's pairs and what is drawn beside it."""
        family, data = self._family, self._data
        if not family.correct_popularity:
            return count_Y.float()
        expected_Y = data.degree_I[items_Y] * (num_pairs / data.num_pairs) + family.negatives / data.num_items
        return count_Y / expected_Y

    def _fac(self, items: Channels) -> Tensor:
        return fac(self._model, items.all(), kind=self._family.fac_similarity, tau=self._family.tau_ssl)

    def _fm(self, users: Channels, items: Channels, chance: torch.Generator) -> Tensor:
        first, second = torch.randperm(self._model.num_channels, generator=chance)[:2].tolist()
        return agreement(self._model, masked_views(users, items, (first, second)), tau=self._family.tau_ssl)

    def _fd(self, users: Channels, items: Channels, rows: tuple[Tensor, Tensor], chance: torch.Generator) -> Tensor:
        family, model = self._family, self._model

        def view() -> View:
            if family.dropped == "messages":
                return model.without_messages(*rows, share=family.dropout, chance=chance)
            return model.without_features(users, items, *rows, share=family.dropout, chance=chance)

        return agreement(model, (view(), view()), tau=family.tau_ssl)
