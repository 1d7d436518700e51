"""From a trained id-based model to what is served: the graphs' model, its tables, and the figures that gate it.

What is measured is what is served: the map and the imputer are those fitted without the users and items they are judged
on. A bundle whose new users or new items would be badly served is refused.

Legend: `U` users, `I` items, `P` parts, `W` parts that are learned for each item, `S` state width, `D` width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from api_schemas.manifest import MAX_EXPOSURE, MIN_EXPOSURE, ColdItems, FoldIn, ModalityMask
from training.checkpoint import StageReport
from training.config import FactorRun
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions
from training.data.split import HeldOut
from training.factors.cold import Imputation, balanced, make_imputer
from training.factors.data import FactorData
from training.factors.encoders import HistoryEncoder
from training.factors.fold_in import FoldInMap, ItemTables
from training.factors.gate import ServingError
from training.factors.imputers import Imputer
from training.factors.mask_figures import mask_figures
from training.factors.new_users import choose_fold_in, fit_fold_in, item_tables, judge_fold_in
from training.factors.plan import Plan
from training.factors.served import ServedById, ServedFactors, ServedTables
from training.factors.served_concepts import ServedConcepts
from training.factors.served_item_item import ServedItemItem
from training.factors.served_pamd import ServedPamd
from training.factors.served_ranker import ServedRanker
from training.factors.stages import Carry
from training.models import (
    Cb2cfConfig,
    FactorModel,
    FeatureSpec,
    GraphModel,
    IdModel,
    InvrlConfig,
    ItemItem,
    LearnedUsers,
    MacridVae,
    PamdModel,
    RankerModel,
)


@dataclass(frozen=True, slots=True, eq=False)
class PartStates:
    """The parts of a whole catalogue: of trained items as they are learned, of others as they are predicted."""

    states_IPS: Tensor
    presence_IP: Tensor

    def tables(self, served: ServedById, without: Collection[str] = ()) -> ItemTables:
        """Return the catalogue as it is served where some parts, by name, are switched off in all items."""
        off_P = torch.tensor([name in without for name in served.part_names])
        presence_IP = self.presence_IP & ~off_P
        items_ID = served.fuse(self.states_IPS, presence_IP)
        return ItemTables(items_ID, served.exact_rows(self.states_IPS, presence_IP))


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a bundle of an id-based model is made of."""

    model: ServedById
    fold_in: FoldInMap
    fold_in_figures: FoldIn
    imputation: Imputation | None
    exposure_ratio: float | None
    cold: ColdItems | None
    warm_ids: list[str]
    warm_states_IWS: NDArray[np.float32]
    user_ids: list[str]
    """Users with a learned vector."""
    queries_UD: NDArray[np.float32]
    mask: list[ModalityMask]
    reports: list[StageReport]
    parts: PartStates
    tables: ItemTables
    """The catalogue as it is served."""

    def tables_without(self, parts: Collection[str]) -> ItemTables:
        """Return the catalogue as it is served where some parts, by name, are switched off in all items.

        Raises:
            ValueError: There is no such part.
        """
        strange = sorted(set(parts) - set(self.model.part_names))
        if strange:
            raise ValueError(f"{strange[0]!r} is not among the parts {list(self.model.part_names)}")
        return self.parts.tables(self.model, parts)


def make_served(
    model: IdModel,
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
    network = plan.network(carry, config.model) if isinstance(config.model, Cb2cfConfig) else None
    raw_width = sum(len(one.mean_D) for one in catalogue.maps)
    imputer, imputation = make_imputer(model, data, config, network=network, raw_width=raw_width)
    fold_in = fit_fold_in(model, data, config, item_tables(model, data), gate=gate)
    served = _served(model, catalogue.features, config, imputer=imputer, users=fold_in.encoder).eval()
    fold_in, tried = choose_fold_in(fold_in, model, data, config, _as_served(served, model, data), gate=gate)
    served.serve_users(fold_in.encoder)
    ratio, cold = None, None
    if imputer is not None and imputation is not None:
        new_ID = served.encode_items(*_content(data))
        balance = balanced(model, data, new_ID, _as_served(served, model, data), fold_in, seed=config.seed)
        imputer.shift(balance.shift_F, unknown=balance.shifts_unknown)
        ratio = balance.ratio
        if MIN_EXPOSURE <= ratio <= MAX_EXPOSURE:
            cold = ColdItems(
                imputation=imputation, exposure_ratio=ratio, num_items=balance.num_items, num_users=balance.num_users
            )
    parts = _part_states(served, model, data)
    tables = parts.tables(served)
    figures = judge_fold_in(model, fold_in, tables, gate, config).model_copy(update={"tried": tried})
    if isinstance(served, ServedTables):
        served.narrow()
    warm_ids, warm_states_IWS = _warm_table(served, model, data, item_ids)
    served.absorb([(one.mean_D, one.basis_DR) for one in catalogue.maps])
    known = data.users if isinstance(model, LearnedUsers) else data.users[:0]
    queries_UD = model.users(torch.from_numpy(known)) if isinstance(model, LearnedUsers) else tables.items_ID[:0]
    return Served(
        model=served,
        fold_in=fold_in,
        fold_in_figures=figures,
        imputation=imputation,
        exposure_ratio=ratio,
        cold=cold,
        warm_ids=warm_ids,
        warm_states_IWS=warm_states_IWS,
        user_ids=[interactions.user_ids[user] for user in known],
        queries_UD=queries_UD.numpy().astype(np.float32),
        mask=_mask(plan, carry, data, config, catalogue.features),
        reports=reports,
        parts=parts,
        tables=tables,
    )


def _served(
    model: IdModel, features: FeatureSpec, config: FactorRun, *, imputer: Imputer | None, users: HistoryEncoder
) -> ServedById:
    length = config.model.history_length
    if isinstance(model, FactorModel):
        return ServedFactors(model, features.modalities, history_length=length, imputer=imputer, users=users)
    assert imputer is not None, "what other models have of items is learned"
    if isinstance(model, PamdModel):
        return ServedPamd(model, features.modalities, history_length=length, imputer=imputer, users=users)
    if isinstance(model, MacridVae):
        return ServedConcepts(model, features.modalities, history_length=length, imputer=imputer, users=users)
    if isinstance(model, ItemItem):
        return ServedItemItem(model, features.modalities, history_length=length, imputer=imputer, users=users)
    if isinstance(model, RankerModel):
        return ServedRanker(model, features.modalities, history_length=length, imputer=imputer, users=users)
    assert isinstance(model, GraphModel)
    return ServedTables(model, features.modalities, history_length=length, imputer=imputer, users=users)


def _content(data: FactorData) -> tuple[list[Tensor], Tensor]:
    """Return what a served model reads of the whole catalogue, before it absorbs raw vectors."""
    return data.content, data.presence_IM


def _as_served(served: ServedById, model: IdModel, data: FactorData) -> ItemTables:
    return _part_states(served, model, data).tables(served)


def _part_states(served: ServedById, model: IdModel, data: FactorData) -> PartStates:
    states_IPS, presence_IP = served.project(*_content(data)), served.part_presence(data.presence_IM)
    columns = [served.part_names.index(part) for part in served.warm_parts]
    warm = torch.nonzero(data.degree_I > 0).squeeze(-1)
    if columns:
        states_IPS[warm[:, None], columns] = served.known_states(model, *_content(data))[warm]
        presence_IP[warm[:, None], columns] = True
    return PartStates(states_IPS, presence_IP)


def _warm_table(
    served: ServedById, model: IdModel, data: FactorData, item_ids: Sequence[str]
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the ids of the trained items and their learned states `[I, W, S]`; of no item where nothing is learned."""
    if not served.warm_parts:
        return [], np.zeros((0, 0, model.dim), np.float32)
    warm = torch.nonzero(data.degree_I > 0).squeeze(-1)
    states_IWS = served.known_states(model, *_content(data))[warm]
    return [item_ids[row] for row in warm.tolist()], states_IWS.numpy().astype(np.float32)


def _mask(plan: Plan, carry: Carry, data: FactorData, config: FactorRun, features: FeatureSpec) -> list[ModalityMask]:
    if not isinstance(config.model, InvrlConfig):
        return []
    figures = mask_figures(plan, carry, data, seed=config.seed)
    return [
        ModalityMask(modality=modality.name, **values)
        for modality, values in zip(features.modalities, figures, strict=True)
    ]


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
            f"new items ({served.imputation}) have {served.exposure_ratio:.2f} times their "
            f"share of users' lists; what may be published is {MIN_EXPOSURE:g} to {MAX_EXPOSURE:g} (serving.cold_items)"
        )
