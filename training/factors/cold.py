"""Items that the model was not trained on: what stands for their learned numbers, and whether lists stay in balance.

A learned number of zero is no neutral choice: with a pointwise loss all learned parts carry a negative offset, and an
item without it would flood every list. So learned numbers are predicted from content, and the exposure of such items is
measured on items that the prediction was not fitted on.

Legend: `I` items, `Z` inputs of the regression, `F` learned numbers of an item, `P` parts, `S` state width, `D` width,
`U` users, `Q` queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import FactorRun
from training.evaluate import mask_seen, pieces
from training.factors.data import FactorData
from training.factors.fold_in import FoldInMap, ItemTables
from training.factors.gate import ScoreItems
from training.factors.imputers import Imputer, LinearImputer, NearestImputer
from training.factors.network import ContentNetwork
from training.factors.plan import imputer_items
from training.models import GraphModel, IdModel, PopularityConfig

Imputation = Literal["ridge", "knn", "mean", "network"]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried, times the mean of the diagonal of Z'Z."""

TOP = 50
"""Length of the lists in which held-out items are counted."""

MAX_USERS = 1000

MAX_TABLE = 1 << 25
"""Numbers of known items' content and learned parts that the exported graph may hold for `knn`: 134 MB."""

BALANCED = (0.5, 2.0)
"""Exposure ratios that are left alone; a bundle may have 0.3 to 3."""

_FIRST_SHIFT, _DOUBLINGS, _BISECTIONS = 0.25, 12, 6


def design(data: FactorData) -> Tensor:
    """Return what the regression reads of each item `[I, Z]`: content, which modalities it has, a constant."""
    return torch.cat([data.content_IR, data.presence_IM.float(), torch.ones(data.num_items, 1)], dim=-1)


def fit_ridge(design_IZ: Tensor, target_IF: Tensor, items: Tensor, *, seed: int) -> Tensor:
    """Return the weights `[Z, F]` of the regression on some items; its ridge is chosen on a tenth of them."""
    shuffled = items[torch.from_numpy(np.random.default_rng([seed, 13]).permutation(len(items)))]
    count = max(1, len(shuffled) // 10)
    tune, fit = shuffled[:count], shuffled[count:] if len(shuffled) > count else shuffled
    mean_F = target_IF[items].mean(dim=0)
    scale = float(design_IZ[items].square().sum()) / design_IZ.shape[1]

    def solved(rows: Tensor) -> Callable[[float], Tensor]:
        # Eigenvectors once, then every ridge is a product. The constant carries the mean: ridge pulls to it, not to 0.
        design_ZZ = design_IZ[rows].double()
        values, vectors = torch.linalg.eigh(design_ZZ.T @ design_ZZ)
        right_ZF = vectors.T @ (design_ZZ.T @ (target_IF[rows] - mean_F).double())
        return lambda ridge: vectors @ (right_ZF / (values.clamp_min(0) + ridge * scale)[:, None])

    tried = solved(fit)
    errors = [
        float((design_IZ[tune].double() @ tried(ridge) + mean_F - target_IF[tune]).square().sum()) for ridge in RIDGES
    ]
    weight_ZF: Tensor = solved(items)(RIDGES[int(np.argmin(errors))]).float()
    weight_ZF[-1] += mean_F
    return weight_ZF


def mean_weights(num_inputs: int, target_IF: Tensor, items: Tensor) -> Tensor:
    """Return weights that give the mean learned numbers, whatever the content."""
    weight_ZF = torch.zeros(num_inputs, target_IF.shape[1])
    weight_ZF[-1] = target_IF[items].mean(dim=0)
    return weight_ZF


def fit_parts(data: FactorData, model: GraphModel, items: Tensor, *, seed: int) -> Tensor:
    """Return the weights `[Z, F]` that predict all parts of a graph model's items.

    What a modality adds is predicted from that modality alone, and not where an item lacks it: so it stays the
    modality's. `id` is what content as a whole says beyond that; what the family adds to it is the same for all items.
    """
    design_IZ = design(data)
    target_IPS = model.learned().view(data.num_items, model.num_parts, -1)
    width = target_IPS.shape[-1]
    weight_ZPS = design_IZ.new_zeros(design_IZ.shape[1], model.num_parts, width)
    missed_IS = target_IPS[:, : model.num_modalities + 1].sum(dim=1)
    start = 0
    for m, columns in enumerate(data.widths):
        own_Z = torch.tensor([*range(start, start + columns), sum(data.widths) + m])
        start += columns
        having = items[data.presence_IM[items, m]]
        if len(having) < 2:  # nothing to fit on
            continue
        own_IZ = design_IZ[:, own_Z]
        weight_ZPS[own_Z, m] = fit_ridge(own_IZ, target_IPS[:, m], having, seed=seed)
        missed_IS = missed_IS - own_IZ @ weight_ZPS[own_Z, m]
    weight_ZPS[:, model.num_modalities] = fit_ridge(design_IZ, missed_IS, items, seed=seed)
    weight_ZPS[-1, model.num_modalities + 1 :] = target_IPS[items][:, model.num_modalities + 1 :].mean(dim=0)
    return weight_ZPS.flatten(start_dim=1)


def make_imputer(
    model: IdModel, data: FactorData, config: FactorRun, *, network: ContentNetwork | None, raw_width: int
) -> tuple[Imputer | None, Imputation | None]:
    """Return what predicts the learned numbers of items that the model was not trained on; None if it learns none.

    Popularity is not predicted: nobody has a new item, and nothing has to be judged.

    Args:
        model: Trained.
        data: What it was trained on; a part of its items is left out, to judge the imputer on.
        config: The run.
        network: CB2CF's, which is an imputer already.
        raw_width: Of all modalities together, as the exported graph gets them.
    """
    target_IF, kind = model.learned(), config.serving.cold_items
    if target_IF.shape[1] == 0:
        return None, None
    if network is not None:
        return Imputer(network, num_learned=target_IF.shape[1]), "network"
    if isinstance(config.model, PopularityConfig):
        return _linear(data, torch.zeros(design(data).shape[1], target_IF.shape[1])), None
    fitted, _ = imputer_items(data, seed=config.seed)
    if kind == "knn":
        known = nearest_sample(fitted, width=raw_width + target_IF.shape[1], seed=config.seed)
        count = config.serving.neighbours
        nearest = NearestImputer(data.widths, data.content_IR[known], target_IF[known], count=count)
        return Imputer(nearest, num_learned=target_IF.shape[1]), kind
    design_IZ = design(data)
    if kind == "mean":
        return _linear(data, mean_weights(design_IZ.shape[1], target_IF, fitted)), kind
    if isinstance(model, GraphModel):
        return _linear(data, fit_parts(data, model, fitted, seed=config.seed)), kind
    return _linear(data, fit_ridge(design_IZ, target_IF, fitted, seed=config.seed)), kind


def _linear(data: FactorData, weight_ZF: Tensor) -> Imputer:
    return Imputer(LinearImputer(data.widths, weight_ZF), num_learned=weight_ZF.shape[1])


def nearest_sample(items: Tensor, *, width: int, seed: int, most: int = MAX_TABLE) -> Tensor:
    """Return the items, or as many of them at random as a table of this width may hold in the exported graph."""
    count = max(2, most // width)
    if len(items) <= count:
        return items
    chosen = np.sort(np.random.default_rng([seed, 19]).permutation(len(items))[:count])
    return items[torch.from_numpy(chosen)]


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """What is added to the predicted numbers of new items, and how exposed new items are then."""

    shift_F: Tensor
    shifts_unknown: bool
    """Whether items without content are shifted as well: where no item has any."""
    ratio: float
    num_items: int
    num_users: int


def balanced(
    model: IdModel, data: FactorData, new_ID: Tensor, tables: ItemTables, fold_in: FoldInMap, *, seed: int
) -> Balance:
    """Return the smallest shift of new items that brings their exposure into balance.

    New are the items without interactions, whose own learned numbers are what they were initialised with, and items
    kept out of the imputation: the shift is chosen with half of these and judged with the other half, for users read
    from their histories, as they are served. Items without content are left out where others have it (`Imputer`).

    Args:
        model: Trained.
        data: What it was trained on.
        new_ID: The catalogue as if all items were new.
        tables: The catalogue as it is served.
        fold_in: The user encoder that is served.
        seed: The run's.
    """
    users = data.users[:: -(-len(data.users) // MAX_USERS)]
    trained_ID, histories = tables.items_ID, data.histories(users)
    queries_UQD = fold_in.queries(tables, histories)
    direction_F = shift_direction(model, queries_UQD, trained_ID)
    known_I = data.presence_IM.any(dim=-1)
    shifts_unknown = not bool(known_I.any())
    is_fresh_I = data.degree_I == 0
    unknown = torch.nonzero(is_fresh_I & ~known_I).squeeze(-1)
    fresh = torch.nonzero(is_fresh_I & (known_I | shifts_unknown)).squeeze(-1)
    start_ID = trained_ID.clone()
    start_ID[unknown] = new_ID[unknown]

    def ratio_of(shift: float, held_out: Tensor) -> float:
        new = torch.cat([fresh, held_out])
        table_ID = start_ID.clone()
        table_ID[new] = new_ID[new] + model.as_items(direction_F * shift)
        return exposure_ratio(model.score, queries_UQD, table_ID, new, histories)

    _, held = imputer_items(data, seed=seed)
    tune, judge = (held[0::2], held[1::2]) if len(held) > 1 else (held, held)
    shift = balancing_shift(lambda size: ratio_of(size, tune))
    return Balance(direction_F * shift, shifts_unknown, ratio_of(shift, judge), len(fresh) + len(judge), len(users))


def balancing_shift(ratio_of: Callable[[float], float]) -> float:
    """Return the smallest shift, up or down, that brings an exposure ratio between 1/2 and 2; 0 where none is needed.

    New items start as the average of what is learned, and in data where few items get most clicks the average is never
    listed. The shift moves all new items alike, so their order among each other stays. Where no shift is enough, there
    is none: the figure then says how it is.

    Args:
        ratio_of: The exposure ratio with a shift; it rises with it.
    """
    low, high = BALANCED
    start = ratio_of(0.0)
    if low <= start <= high:
        return 0.0
    sign = 1.0 if start < low else -1.0

    def is_enough(size: float) -> bool:
        ratio = ratio_of(sign * size)
        return ratio >= low if sign > 0 else ratio <= high

    sizes = [_FIRST_SHIFT * 2.0**doubling for doubling in range(_DOUBLINGS)]
    most = next((size for size in sizes if is_enough(size)), None)
    if most is None:
        return 0.0
    least = 0.0 if most == _FIRST_SHIFT else most / 2
    for _ in range(_BISECTIONS):
        middle = (least + most) / 2
        least, most = (least, middle) if is_enough(middle) else (middle, most)
    return sign * most


def exposure_ratio(
    score: ScoreItems,
    queries_UQD: Tensor,
    items_ID: Tensor,
    new: Tensor,
    histories: Sequence[NDArray[np.int64]],
) -> float:
    """Return the share of some items among users' top 50, over their share of the catalogue.

    Args:
        score: The model's.
        queries_UQD: Users.
        items_ID: The catalogue, where some items have the vectors of new ones.
        new: These items.
        histories: Of the users; what they have is not recommended.
    """
    is_new_I = torch.zeros(len(items_ID), dtype=torch.bool)
    is_new_I[new] = True
    depth = min(TOP, len(items_ID))
    found = listed = 0
    for piece in pieces(len(queries_UQD), num_items=len(items_ID)):
        scores_BI = score(queries_UQD[piece], items_ID)
        mask_seen(scores_BI, histories[piece])
        top = torch.topk(scores_BI, depth, dim=-1)
        shown_BK = ~torch.isneginf(top.values)
        found += int((is_new_I[top.indices] & shown_BK).sum())
        listed += int(shown_BK.sum())
    return (found / max(listed, 1)) / (len(new) / len(items_ID))


def shift_direction(model: IdModel, queries_UQD: Tensor, items_ID: Tensor) -> Tensor:
    """Return learned numbers `[F]` that raise the mean user's score by one deviation of a score, and are shortest."""
    return model.lift(queries_UQD) * model.score(queries_UQD, items_ID).std()
