"""From a trained id-based model to what is served: the graphs' model, its tables, and the figures that gate it.

What is measured is what is served: the map and the imputer are those fitted without the users and items they are judged
on. A bundle whose new users or new items would be badly served is refused.

Legend: `U` users, `I` items, `P` parts, `D` width, `F` learned numbers of an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from api_schemas.manifest import MAX_EXPOSURE, MIN_EXPOSURE, ColdItems, FoldIn, ModalityMask
from training.checkpoint import StageReport
from training.config import FactorRun
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions
from training.data.split import HISTORY_SHARE, HeldOut, Seen, Split, held_out
from training.evaluate import Judged, judge_scores, means
from training.factors.cold import MAX_USERS, balancing_shift, design, exposure_ratio, fit_ridge, mean_weights
from training.factors.data import FactorData
from training.factors.fold_in import FoldInMap, fit_affine, mean_map, pool
from training.factors.mask_figures import mask_figures
from training.factors.network import ContentNetwork
from training.factors.plan import Plan, imputer_items, learned_part
from training.factors.served import LinearImputer, ServedFactors
from training.factors.stages import Carry
from training.models import Cb2cfConfig, FactorModel, InvrlConfig

Imputation = Literal["ridge", "mean", "network"]

GATE_SHARE = 0.1
"""Of the training users: no map is fitted on them."""

GATE_CUTOFF = 20


class ServingError(ValueError):
    """The model is trained, but users or items that it was not trained on would be badly served."""


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a bundle of an id-based model is made of."""

    model: ServedFactors
    fold_in: FoldInMap
    fold_in_figures: FoldIn
    imputation: Imputation | None
    exposure_ratio: float | None
    cold: ColdItems | None
    warm_ids: list[str]
    warm_states_IPD: NDArray[np.float32]
    user_ids: list[str]
    queries_UD: NDArray[np.float32]
    mask: list[ModalityMask]
    reports: list[StageReport]
    items_ID: Tensor
    """The catalogue as it is served: trained items with what they learned, others with what is predicted."""


def gate_users(split: Split, *, seed: int, seen: Seen) -> tuple[Interactions, HeldOut]:
    """Return what is trained on, and training users with targets of which nothing is learned.

    Under a split of interactions these are a tenth of the validation users. Under a split of users no training user has
    a target, so a tenth of them give their last interactions: their learned vectors know as much as their histories.
    """
    rng = np.random.default_rng([seed, 17])
    train, valid = split.train, split.valid
    known = np.flatnonzero(np.isin(valid.users_B, split.train_users) & (train.lengths[valid.users_B] > 0))
    if len(known) > 0:
        chosen = np.sort(rng.permutation(known)[: max(1, round(len(known) * GATE_SHARE))])
        histories = tuple(valid.histories[place] for place in chosen)
        return train, HeldOut(valid.users_B[chosen], histories, valid.targets_BT[chosen])
    long = split.train_users[train.lengths[split.train_users] >= 2]
    users = np.sort(rng.permutation(long)[: max(1, round(len(long) * GATE_SHARE))])
    gate = held_out(train, users, seen=seen)
    keep_E = np.ones(len(train.item_E), np.bool_)
    for user in users:
        start, stop = train.start_U1[user], train.start_U1[user + 1]
        keep_E[start + int((stop - start) * HISTORY_SHARE + 1e-9) : stop] = False
    return train.select(keep_E), gate


def rank(queries_BD: Tensor, items_ID: Tensor, users: HeldOut, *, cutoffs: Sequence[int], seen: Seen) -> Judged:
    """Return the metrics of each user with these queries."""
    return judge_scores(
        lambda piece: queries_BD[piece] @ items_ID.T, users, num_items=len(items_ID), cutoffs=cutoffs, seen=seen
    )


def fit_fold_in(
    model: FactorModel, data: FactorData, config: FactorRun, items_ID: Tensor, *, gate: HeldOut
) -> FoldInMap:
    """Fit the user encoder on all trained users but those of the gate."""
    users = np.setdiff1d(data.users, gate.users_B)
    if len(users) == 0:
        raise ServingError("no user is left to fit the user encoder on: the data set is too small")
    length = config.model.history_length
    target_UD = model.users(torch.from_numpy(users))
    if config.serving.fold_in == "mean":
        return mean_map(target_UD, bias_dim=model.bias_dim, history_length=length)
    pooled_UD = pool(items_ID, data.histories(users), length=length)
    return fit_affine(pooled_UD, target_UD, history_length=length, seed=config.seed)


def make_served(
    model: FactorModel,
    data: FactorData,
    config: FactorRun,
    interactions: Interactions,
    catalogue: Catalogue,
    *,
    item_ids: Sequence[str],
    plan: Plan,
    carry: Carry,
    gate: HeldOut,
    reports: list[StageReport],
) -> Served:
    """Fit what new users and new items need, measure it, and put the served model together."""
    imputer, imputation = _imputer(model, data, config, plan, carry)
    widths = data.widths
    has_learned = model.ids_IF is not None or model.item_bias_I is not None
    learned_IF = learned_part(model) if has_learned else None
    warm = torch.nonzero(data.degree_I > 0).squeeze(-1)
    features = torch.split(data.content_IR, widths, dim=-1)

    # The items first: the map is fitted on them as they are served.
    trained_ID = model.items(data.content_IR)
    fold_in = fit_fold_in(model, data, config, trained_ID, gate=gate)
    served = ServedFactors(
        model,
        catalogue.features.modalities,
        history_length=config.model.history_length,
        imputer=imputer,
        map_DD=fold_in.map_DD,
        offset_D=fold_in.offset_D,
        default_D=fold_in.default_D,
    ).eval()
    imputed_ID = served.encode_items(features, data.presence_IM)
    ratio, cold = None, None
    if imputation is not None and imputer is not None:
        _, held = imputer_items(data, seed=config.seed)
        users = data.users[:: max(1, len(data.users) // MAX_USERS)]
        queries_UD, histories = model.users(torch.from_numpy(users)), data.histories(users)
        direction_F = _learned_of(model, queries_UD.mean(dim=0))
        direction_F = direction_F / direction_F.square().sum().clamp_min(1e-12)
        spread = float((queries_UD @ trained_ID.T).std())

        def ratio_of(shift: float, held_out: torch.Tensor) -> float:
            # Raises the mean user's score of every new item by `shift` deviations of a score.
            moved_ID = imputed_ID + _as_item(model, direction_F * shift * spread)
            return exposure_ratio(queries_UD, trained_ID, moved_ID, held_out, histories)

        # Chosen on half of the items held out, measured on the other half.
        tune, judge = (held[0::2], held[1::2]) if len(held) > 1 else (held, held)
        shift = balancing_shift(lambda size: ratio_of(size, tune))
        ratio = ratio_of(shift, judge)
        if shift != 0:
            imputer.shift(direction_F * shift * spread)
            imputed_ID = served.encode_items(features, data.presence_IM)
        if MIN_EXPOSURE <= ratio <= MAX_EXPOSURE:
            cold = ColdItems(imputation=imputation, exposure_ratio=ratio, num_items=len(judge), num_users=len(users))
    items_ID = trained_ID.clone() if has_learned else imputed_ID
    if has_learned:
        fresh = data.degree_I == 0
        items_ID[fresh] = imputed_ID[fresh]

    figures = _judge_fold_in(model, fold_in, items_ID, gate, config)
    masks: list[ModalityMask] = []
    if isinstance(config.model, InvrlConfig):
        names = [modality.name for modality in catalogue.features.modalities]
        masks = [
            ModalityMask(modality=name, **values)
            for name, values in zip(names, mask_figures(plan, carry, data, seed=config.seed), strict=True)
        ]
    served.absorb([(one.mean_D, one.basis_DR) for one in catalogue.maps])
    warm_states = [
        state[warm]
        for name, state in zip(
            served.extra_parts, served.extra_states(learned_IF, num_items=data.num_items), strict=True
        )
        if name in served.warm_parts
    ]
    return Served(
        model=served,
        fold_in=fold_in,
        fold_in_figures=figures,
        imputation=imputation,
        exposure_ratio=ratio,
        cold=cold,
        warm_ids=[item_ids[row] for row in warm.tolist()] if warm_states else [],
        warm_states_IPD=(
            torch.stack(warm_states, dim=1) if warm_states else torch.zeros(0, 0, model.dim)
        ).numpy().astype(np.float32),
        user_ids=[interactions.user_ids[user] for user in data.users],
        queries_UD=model.users(torch.from_numpy(data.users)).numpy().astype(np.float32),
        mask=masks,
        reports=reports,
        items_ID=items_ID,
    )  # fmt: skip


def _learned_of(model: FactorModel, vector_D: Tensor) -> Tensor:
    """Return the numbers `[F]` of a vector that stand where items have learned ones."""
    pieces = [vector_D[: model.ids_dim]]
    if model.item_bias_I is not None:
        pieces.append(vector_D[-1:])
    return torch.cat(pieces)


def _as_item(model: FactorModel, learned_F: Tensor) -> Tensor:
    """Return learned numbers `[F]` where an item's vector `[D]` has them, and zero elsewhere."""
    vector_D = torch.zeros(model.dim)
    vector_D[: model.ids_dim] = learned_F[: model.ids_dim]
    if model.item_bias_I is not None:
        vector_D[-1] = learned_F[-1]
    return vector_D


def _imputer(
    model: FactorModel, data: FactorData, config: FactorRun, plan: Plan, carry: Carry
) -> tuple[LinearImputer | ContentNetwork | None, Imputation | None]:
    if model.ids_IF is None and model.item_bias_I is None:
        return None, None
    if isinstance(config.model, Cb2cfConfig):
        return plan.network(carry, config.model), "network"
    fitted, _ = imputer_items(data, seed=config.seed)
    design_IZ, target_IF = design(data), learned_part(model)
    if config.serving.cold_items == "mean":
        return LinearImputer(data.widths, mean_weights(design_IZ.shape[1], target_IF, fitted)), "mean"
    return LinearImputer(data.widths, fit_ridge(design_IZ, target_IF, fitted, seed=config.seed)), "ridge"


def _judge_fold_in(
    model: FactorModel, fold_in: FoldInMap, items_ID: Tensor, gate: HeldOut, config: FactorRun
) -> FoldIn:
    name = f"recall@{GATE_CUTOFF}"

    def recall(queries_BD: Tensor) -> float:
        return means(rank(queries_BD, items_ID, gate, cutoffs=(GATE_CUTOFF,), seen=config.eval.seen))[name]

    return FoldIn(
        kind=fold_in.kind,
        r2=fold_in.r2,
        recall=recall(fold_in.queries(items_ID, gate.histories)),
        recall_of_known=recall(model.users(torch.from_numpy(gate.users_B))),
        cutoff=GATE_CUTOFF,
        num_users=len(gate),
    )


def check_servable(served: Served, config: FactorRun) -> None:
    """Refuse a model that new users or new items would be badly served by.

    Raises:
        ServingError: Says which figure, what it is and what it has to be.
    """
    figures = served.fold_in_figures
    least = config.serving.min_fold_in * figures.recall_of_known
    if figures.recall < least:
        raise ServingError(
            f"users read from their history have recall@{figures.cutoff} {figures.recall:.4f}, from their learned "
            f"vectors {figures.recall_of_known:.4f}: less than serving.min_fold_in {config.serving.min_fold_in:g} of it"
        )
    if served.exposure_ratio is not None and served.cold is None:
        raise ServingError(
            f"items held out of the imputation ({served.imputation}) have {served.exposure_ratio:.2f} times their "
            f"share of users' lists; what may be published is {MIN_EXPOSURE:g} to {MAX_EXPOSURE:g} (serving.cold_items)"
        )
