"""How a run's users are read from their histories: fitted, trained, chosen and judged.

Legend: `U` users, `I` items, `D` width.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from api_schemas.manifest import FoldIn
from training.config import FactorRun
from training.data.split import HeldOut
from training.factors.concept_encoder import ConceptEncoder
from training.factors.data import FactorData
from training.factors.encoders import AttentionEncoder, DecayedSumEncoder, MeanEncoder, RowEncoder, SumEncoder
from training.factors.fold_in import FoldInMap, ItemTables, exact_map, fit_affine, mean_map, pool
from training.factors.gate import GATE_CUTOFF, ServingError, gate_recall
from training.factors.learned import learn
from training.models import (
    GraphModel,
    IdModel,
    ItemItem,
    LearnedUsers,
    MacridVae,
    PopularityConfig,
    RankerModel,
    SlitConfig,
)


def item_tables(model: IdModel, data: FactorData) -> ItemTables:
    """Return the catalogue as it was trained."""
    return ItemTables(model.items(data.content_IR), model.history_rows(data.content_IR))


def fit_fold_in(model: IdModel, data: FactorData, config: FactorRun, tables: ItemTables, *, gate: HeldOut) -> FoldInMap:
    """Fit the user encoder in closed form on all trained users but those of the gate; some models bring their own."""
    length = config.model.history_length
    if isinstance(model, MacridVae):
        return FoldInMap("exact", length, ConceptEncoder(model.concepts), None, None)
    if isinstance(config.model, PopularityConfig):
        alike = MeanEncoder(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
        return FoldInMap("exact", length, alike, None, None)
    if isinstance(model, ItemItem) and isinstance(config.model, SlitConfig):
        return FoldInMap("exact", length, DecayedSumEncoder(model.dim, half_life=config.model.past), None, None)
    if isinstance(model, ItemItem):
        return FoldInMap("exact", length, SumEncoder(model.dim), None, None)
    assert isinstance(model, LearnedUsers)
    users = _fitted_users(data, gate)
    target_UD = model.users(torch.from_numpy(users))
    if config.serving.fold_in == "mean":
        return mean_map(target_UD, bias_dim=model.bias_dim, history_length=length)
    encoder = RowEncoder if isinstance(model, RankerModel) else MeanEncoder
    pooled_UH = pool(tables.read_by(encoder), data.histories(users), length=length)
    return fit_affine(pooled_UH, target_UD, history_length=length, seed=config.seed, encoder=encoder)


def _fitted_users(data: FactorData, gate: HeldOut) -> NDArray[np.int64]:
    users = np.setdiff1d(data.users, gate.users_B)
    if len(users) == 0:
        raise ServingError("no user is left to fit the user encoder on: the data set is too small")
    return users


def choose_fold_in(
    affine: FoldInMap, model: IdModel, data: FactorData, config: FactorRun, tables: ItemTables, *, gate: HeldOut
) -> tuple[FoldInMap, dict[str, float]]:
    """Return the user encoder that the run asks for, and the gate's recall by each kind that was tried.

    What is fitted has to find more than what propagation gives exactly, where it gives something, and what is trained
    more than either. A model that learns no users has but its own encoder, and nothing is tried.
    """
    kind = config.serving.fold_in
    if not isinstance(model, LearnedUsers) or kind == "affine" or kind == "mean":  # noqa: PLR1714  # mypy narrows this form alone
        return affine, {}
    found: dict[str, float] = {}
    closed = [affine]
    if isinstance(model, GraphModel) and tables.rows_IH is not None:
        users = torch.from_numpy(_fitted_users(data, gate))
        length = config.model.history_length
        closed.insert(0, exact_map(model.fold_in_offset(), model.users(users), history_length=length))
    for one in closed:
        found[one.kind] = _gate_recall(model, one, tables, gate, config)
    best = max(closed, key=lambda one: found[one.kind])  # of equal ones the first
    if kind != "exact":
        start = affine if kind == "attention" else best
        learned = learn_fold_in(kind, start, data, config, tables, gate=gate)
        found[learned.kind] = _gate_recall(model, learned, tables, gate, config)
        best = learned if found[learned.kind] > found[best.kind] else best
    return best, found


def _gate_recall(model: IdModel, fold_in: FoldInMap, tables: ItemTables, gate: HeldOut, config: FactorRun) -> float:
    queries_BQD = fold_in.queries(tables, gate.histories)
    return gate_recall(model.score, queries_BQD, tables.items_ID, gate, config)


def learn_fold_in(
    kind: Literal["softmax", "attention"],
    closed: FoldInMap,
    data: FactorData,
    config: FactorRun,
    tables: ItemTables,
    *,
    gate: HeldOut,
) -> FoldInMap:
    """Train a user encoder from the closed form on, on all trained users but those of the gate."""
    histories = data.histories(_fitted_users(data, gate))
    # Results are made in inference mode, where nothing can be differentiated. The caller's random numbers stay his.
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        start = closed.encoder
        assert isinstance(start, MeanEncoder)
        if kind == "attention":
            encoder: MeanEncoder = AttentionEncoder(start, item_scale=float(tables.items_ID.std().clamp_min(1e-12)))
        else:
            encoder = type(start)(start.map_DD.data, start.offset_D.data, start.default_D.data)
        learn(
            encoder,
            tables,
            histories,
            history_length=closed.history_length,
            config=config.serving.learned,
            seed=config.seed,
        )
    return FoldInMap(kind, closed.history_length, encoder, closed.ridge, closed.r2)


def judge_fold_in(model: IdModel, fold_in: FoldInMap, tables: ItemTables, gate: HeldOut, config: FactorRun) -> FoldIn:
    """Return how users read from their histories do beside their learned vectors, if they have any: else alike."""
    recall = recall_of_known = _gate_recall(model, fold_in, tables, gate, config)
    if isinstance(model, LearnedUsers):
        known_BQD = model.users(torch.from_numpy(gate.users_B)).unsqueeze(1)
        recall_of_known = gate_recall(model.score, known_BQD, tables.items_ID, gate, config)
    return FoldIn(
        kind=fold_in.kind,
        r2=fold_in.r2,
        recall=recall,
        recall_of_known=recall_of_known,
        cutoff=GATE_CUTOFF,
        num_users=len(gate),
    )
