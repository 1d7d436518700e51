"""How a run's users are read from their histories: fitted, trained, chosen and judged.

Legend: `U` users, `I` items, `D` width.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from api_schemas.manifest import FoldIn
from training.config import FactorRun
from training.data.split import HeldOut
from training.factors.data import FactorData
from training.factors.encoders import AttentionEncoder, MeanEncoder
from training.factors.fold_in import FoldInMap, fit_affine, mean_map, pool
from training.factors.gate import GATE_CUTOFF, ServingError, gate_recall
from training.factors.learned import learn
from training.models import FactorModel


def fit_fold_in(
    model: FactorModel, data: FactorData, config: FactorRun, items_ID: Tensor, *, gate: HeldOut
) -> FoldInMap:
    """Fit the user encoder in closed form on all trained users but those of the gate."""
    users = _fitted_users(data, gate)
    length = config.model.history_length
    target_UD = model.users(torch.from_numpy(users))
    if config.serving.fold_in == "mean":
        return mean_map(target_UD, bias_dim=model.bias_dim, history_length=length)
    pooled_UD = pool(items_ID, data.histories(users), length=length)
    return fit_affine(pooled_UD, target_UD, history_length=length, seed=config.seed)


def _fitted_users(data: FactorData, gate: HeldOut) -> NDArray[np.int64]:
    users = np.setdiff1d(data.users, gate.users_B)
    if len(users) == 0:
        raise ServingError("no user is left to fit the user encoder on: the data set is too small")
    return users


def choose_fold_in(
    closed: FoldInMap, data: FactorData, config: FactorRun, items_ID: Tensor, *, gate: HeldOut
) -> tuple[FoldInMap, dict[str, float]]:
    """Return the user encoder that the run asks for, and the gate's recall by each kind that was tried.

    A trained encoder has to find more of the gate's users than the closed form that it started as; else that stays.
    """
    kind = config.serving.fold_in
    if kind == "affine" or kind == "mean":  # noqa: PLR1714  # mypy narrows this form alone
        return closed, {}
    learned = learn_fold_in(kind, closed, data, config, items_ID, gate=gate)
    tried: dict[str, float] = {}
    for one in (closed, learned):
        tried[one.kind] = gate_recall(one.queries(items_ID, gate.histories), items_ID, gate, config)
    return (learned if tried[learned.kind] > tried[closed.kind] else closed), tried


def learn_fold_in(
    kind: Literal["softmax", "attention"],
    closed: FoldInMap,
    data: FactorData,
    config: FactorRun,
    items_ID: Tensor,
    *,
    gate: HeldOut,
) -> FoldInMap:
    """Train a user encoder from the closed form on, on all trained users but those of the gate."""
    histories = data.histories(_fitted_users(data, gate))
    # Results are made in inference mode, where nothing can be differentiated. The caller's random numbers stay his.
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        start = closed.encoder
        if kind == "attention":
            encoder: MeanEncoder = AttentionEncoder(start, item_scale=float(items_ID.std().clamp_min(1e-12)))
        else:
            encoder = MeanEncoder(start.map_DD.data, start.offset_D.data, start.default_D.data)
        learn(
            encoder,
            items_ID,
            histories,
            history_length=closed.history_length,
            config=config.serving.learned,
            seed=config.seed,
        )
    return FoldInMap(kind, closed.history_length, encoder, closed.ridge, closed.r2)


def judge_fold_in(model: FactorModel, fold_in: FoldInMap, items_ID: Tensor, gate: HeldOut, config: FactorRun) -> FoldIn:
    """Return how users read from their histories do beside their learned vectors."""
    return FoldIn(
        kind=fold_in.kind,
        r2=fold_in.r2,
        recall=gate_recall(fold_in.queries(items_ID, gate.histories), items_ID, gate, config),
        recall_of_known=gate_recall(model.users(torch.from_numpy(gate.users_B)), items_ID, gate, config),
        cutoff=GATE_CUTOFF,
        num_users=len(gate),
    )
