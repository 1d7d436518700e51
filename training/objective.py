"""What a step minimises: the softmax over next items, and Demure's losses on augmented views (Eq. 15).

Legend: `B` batch, `V` users of it with views, `L` history length, `D` vector width, `Q` queries of a user, `X` queries
with a target, `J` views, `U` encoded items, `M` their parts (modalities, and `id` where it is learned), `N` negatives,
`P` pool items, or places of a history in line.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.augment import AugmentConfig, Polarity
from training.blocks import places as places_of
from training.data.batches import Batch
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions
from training.data.negatives import NegativeSampler, NegativesConfig, SampledSoftmaxConfig
from training.losses import contrastive, full_softmax, sampled_softmax, view_similarity
from training.models import ContentModel, SasRec
from training.views import EncodedItems, Histories, Pool, Replacer, interest_scores, make_view

_ENCODE_WHOLE_BELOW = 8192
"""Catalogues up to this size are encoded whole in every step; of larger ones, the items that the step touches."""

Places = Callable[[Tensor], Tensor]
"""From item rows to places in `EncodedItems`."""


class Objective:
    """The losses of a batch, by name."""

    def __init__(
        self,
        model: ContentModel,
        catalogue: Catalogue,
        interactions: Interactions,
        *,
        train_users: NDArray[np.int64],
        negatives: NegativesConfig,
        augment: AugmentConfig | None,
        device: torch.device,
    ) -> None:
        self._model = model
        self._catalogue = catalogue
        self._interactions = interactions
        self._augment = augment
        self._device = device
        self._sampler = (
            NegativeSampler(negatives, interactions.popularity(train_users), device=device)
            if isinstance(negatives, SampledSoftmaxConfig)
            else None
        )

    def __call__(self, batch: Batch, *, generator: torch.Generator, with_views: bool) -> dict[str, Tensor]:
        """Return scalar losses: `total`, which is minimised, and its parts, detached.

        Parts are `softmax` (Eq. 6), `default` (of the query for an empty history), with views `view_softmax` and
        `contrast` (Eq. 14), all before their weights, and `query_norm`, the mean length of a user vector, which an
        unscaled contrastive loss can blow up.

        Args:
            batch: Pairs.
            generator: All chance of the step.
            with_views: False during the warm-up; no effect on a family without views.
        """
        augment = self._augment if with_views else None
        history_BL, mask_BL, target_B = (
            torch.from_numpy(array).to(self._device) for array in (batch.history_BL, batch.mask_BL, batch.target_B)
        )
        age_BL = None if batch.age_BL is None else torch.from_numpy(batch.age_BL).to(self._device)
        negative_N = None if self._sampler is None else self._sampler.draw(generator)
        pool_P = None if augment is None else self._draw_pool(augment.pool_size, generator)
        items, places = self._encode(history_BL, target_B, negative_N, pool_P, chance=generator)
        num_viewed = 0 if augment is None else math.ceil(len(target_B) * augment.share)

        # The users with views are encoded apart, so that their interest scores cost a backward pass over them alone.
        parts = [slice(0, num_viewed), slice(num_viewed, None)] if 0 < num_viewed < len(target_B) else [slice(None)]
        histories = [
            self._histories(
                items, places(history_BL[part]), mask_BL[part], age_BL=None if age_BL is None else age_BL[part]
            )
            for part in parts
        ]
        aims = [
            self._aims(one, history_BL[part], target_B[part], items=items, places=places)
            for one, part in zip(histories, parts, strict=True)
        ]
        query_BD, aimed_B = (torch.cat(pieces) for pieces in zip(*aims, strict=True))

        size = len(aimed_B)
        if augment is None or pool_P is None:
            total, softmax_B = self._softmax(
                query_BD,
                aimed_B,
                query_BD.new_full((size,), 1 / size),
                items=items,
                places=places,
                negative_N=negative_N,
            )
            losses = {"softmax": softmax_B.mean()}
        else:
            target_V = target_B[:num_viewed]
            own_VP = self._interactions.holds(batch.users_B[:num_viewed], pool_P.cpu().numpy())
            positive_JVD, negative_JVD = self._views(
                items,
                histories[0],
                Pool(places(pool_P), torch.from_numpy(own_VP).to(self._device)),
                query_BD=query_BD[:num_viewed],
                target_BD=items.vectors_UD[places(target_V)],
                augment=augment,
                generator=generator,
            )
            # One softmax for users and positive views; each kind's weights sum to its factor in Eq. 15.
            num_views = num_viewed * augment.views
            weights = (
                query_BD.new_full((size,), 1 / size),
                query_BD.new_full((num_views,), augment.lambda_softmax / num_views),
            )
            total, softmax_X = self._softmax(
                torch.cat([query_BD, positive_JVD.flatten(end_dim=1)]),
                torch.cat([target_B, target_V.repeat(augment.views)]),
                torch.cat(weights),
                items=items,
                places=places,
                negative_N=negative_N,
            )
            phi = [
                view_similarity(
                    views_JVD.transpose(0, 1),
                    query_BD[:num_viewed],
                    kind=augment.similarity,
                    temperature=augment.contrast_temperature,
                )
                for views_JVD in (positive_JVD, negative_JVD)
            ]
            losses = {
                "softmax": softmax_X[:size].mean(),
                "view_softmax": softmax_X[size:].mean(),
                "contrast": contrastive(*phi).mean(),
            }
            total = total + augment.lambda_contrast * losses["contrast"]
        losses["default"] = self._default_loss(target_B, items, places, negative_N)
        detached = {name: loss.detach() for name, loss in losses.items()}
        return {
            "total": total + losses["default"],
            **detached,
            "query_norm": query_BD.detach().norm(dim=-1).mean(),
        }

    def _encode(self, *rows: Tensor | None, chance: torch.Generator) -> tuple[EncodedItems, Places]:
        """Encode what the step needs, once: everything else gathers from it."""
        needed: Tensor | None = None
        if self._sampler is not None and self._catalogue.num_items > _ENCODE_WHOLE_BELOW:
            needed = torch.unique(torch.cat([part.flatten() for part in rows if part is not None]))
        features, presence_UM = self._catalogue.inputs(needed)
        states_UMS, presence_UM = self._model.parts_of(features, presence_UM, needed, chance=chance)
        items = EncodedItems(states_UMS, presence_UM, self._model.fuse(states_UMS, presence_UM))
        if needed is None:
            return items, lambda item_rows: item_rows
        sorted_rows = needed
        return items, lambda item_rows: torch.searchsorted(sorted_rows, item_rows)

    @staticmethod
    def _histories(items: EncodedItems, history_BL: Tensor, mask_BL: Tensor, *, age_BL: Tensor | None) -> Histories:
        # F.embedding: its backward is a plain scatter-add, several times faster on a CPU than that of indexing.
        return Histories(history_BL, mask_BL, F.embedding(history_BL, items.vectors_UD), age_BL)

    def _query(self, vectors_BLD: Tensor, histories: Histories) -> Tensor:
        """Return the queries of views of histories: other items at the same times."""
        return self._model.encode_users(vectors_BLD, histories.mask_BL, histories.ages_BL).squeeze(-2)

    def _aims(
        self, histories: Histories, history_BL: Tensor, target_B: Tensor, *, items: EncodedItems, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Return queries `[X, D]` and the row of the item that each is to find `[X]`.

        A user of several queries learns by the one that scores the target best. A model that reads every place at once
        learns from all of them: each is to find the next item of the history, the last one the target.
        """
        if isinstance(self._model, SasRec):
            state_BPD, mask_BP = self._model.read_all(histories.vectors_BLD, histories.mask_BL)
            return state_BPD[mask_BP], next_items(history_BL, histories.mask_BL, target_B)[mask_BP]
        query_BQD = self._model.encode_users(histories.vectors_BLD, histories.mask_BL, histories.ages_BL)
        if self._model.num_queries == 1:
            return query_BQD.squeeze(-2), target_B
        target_BD1 = F.embedding(places(target_B), items.vectors_UD).unsqueeze(-1)
        best_B11 = (query_BQD @ target_BD1).argmax(dim=1, keepdim=True)
        return query_BQD.take_along_dim(best_B11, dim=1).squeeze(1), target_B

    def _softmax(
        self,
        query_BD: Tensor,
        target_B: Tensor,
        weight_B: Tensor,
        *,
        items: EncodedItems,
        places: Places,
        negative_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of Eq. 6 and its value for each user."""
        if self._sampler is None or negative_N is None:
            return full_softmax(query_BD, items.vectors_UD, places(target_B), weight_B)
        loss_B = sampled_softmax(
            (query_BD * F.embedding(places(target_B), items.vectors_UD)).sum(dim=-1).float(),
            (query_BD @ F.embedding(places(negative_N), items.vectors_UD).T).float(),
            hit_BN=negative_N == target_B.unsqueeze(-1),
            **self._log_expected(target_B, negative_N),
        )
        return (loss_B * weight_B).sum(), loss_B.detach()

    def _default_loss(self, target_B: Tensor, items: EncodedItems, places: Places, negative_N: Tensor | None) -> Tensor:
        """Return the softmax loss of the queries that stand for an empty history, against the batch's targets.

        Item vectors count as constants: the query learns popularity in their space and nothing else changes. It costs
        one row of scores, where empty histories in the batch would cost a share of it.
        """
        no_item_1LD = torch.zeros((1, 1, items.vectors_UD.shape[-1]), device=self._device)
        no_mask_1L = torch.zeros((1, 1), dtype=torch.bool, device=self._device)
        query_QD = self._model.encode_users(no_item_1LD, no_mask_1L).squeeze(0)
        score_U = (items.vectors_UD.detach() @ query_QD.to(items.vectors_UD.dtype).T).amax(dim=-1).float()
        target_score_B = score_U[places(target_B)]
        if self._sampler is None or negative_N is None:
            return torch.logsumexp(score_U, dim=-1) - target_score_B.mean()
        negative_1N = score_U[places(negative_N)].unsqueeze(0)
        return sampled_softmax(target_score_B, negative_1N, **self._log_expected(target_B, negative_N)).mean()

    def _log_expected(self, target_B: Tensor, negative_N: Tensor) -> dict[str, Tensor]:
        if self._sampler is None or not self._sampler.config.log_q:
            return {}
        return {
            "log_expected_positive_B": self._sampler.log_expected(target_B),
            "log_expected_negative_N": self._sampler.log_expected(negative_N),
        }

    def _draw_pool(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.randperm(self._catalogue.num_items, generator=generator, device=self._device)[:size]

    def _views(
        self,
        items: EncodedItems,
        histories: Histories,
        pool: Pool,
        *,
        query_BD: Tensor,
        target_BD: Tensor,
        augment: AugmentConfig,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return the user vectors of the J positive and J negative views, `[J, V, D]` each."""
        item_score_VL, slot_score_VLM = interest_scores(
            self._model,
            items,
            histories,
            query_BD=query_BD,
            target_BD=target_BD,
            config=augment,
            generator=generator,
        )
        replacer = Replacer(items, pool, config=augment, generator=generator)

        def users(polarity: Polarity) -> Tensor:
            views = [
                make_view(
                    self._model,
                    items,
                    histories,
                    replacer,
                    item_score_BL=item_score_VL,
                    slot_score_BLM=slot_score_VLM,
                    polarity=polarity,
                    config=augment,
                )
                for _ in range(augment.views)
            ]
            return torch.stack([self._query(view_VLD, histories) for view_VLD in views])

        return users("positive"), users("negative")


def next_items(history_BL: Tensor, mask_BL: Tensor, target_B: Tensor) -> Tensor:
    """Return the row of the item that follows each place of histories in line `[B, L]`; the target follows all."""
    length = history_BL.shape[1]
    place_BL = places_of(mask_BL, length=length)
    # What stands nowhere goes to a place of its own, behind.
    place_BL = torch.where(place_BL >= 0, place_BL, length)
    rows_BL1 = place_BL.new_zeros(len(target_B), length + 1).scatter(1, place_BL, history_BL)
    return torch.cat([rows_BL1[:, 1:length], target_B.unsqueeze(-1)], dim=1)
