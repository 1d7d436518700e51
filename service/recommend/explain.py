"""Explanations of a slate: which past item and which modality weighs how much for each line, and how far to trust it.

Legend: `K` candidates, `L` history items (real ones, no padding), `M` parts of an item (its modalities, then what the
model adds), `S` state width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.recommend.deadline import Deadline
from service.recommend.job import Answer, Basis, Job, UsedHistory
from service.recommend.reasons import Titles, caveats_for, popular_reason, reasons_for
from service.recommend.servable import Attribution, Mask, Model, Rows, Servable
from service.recommend.types import (
    ExplainLevel,
    Explanation,
    HistoryInterest,
    ItemExplanation,
    ItemId,
    Method,
    ModalityShare,
    ScoredItem,
    Vectors,
)

CANDIDATES_AT_ONCE = 32
"""Bounds memory, and the time between two looks at the deadline."""


def explain_answer(job: Job, answer: Answer, *, deadline: Deadline) -> Explanation:
    """Explain lines that a model scored; lines that are there because they are popular say just that.

    The model is the one whose scores they are: the ranker, where it has ordered them, else the retriever, which may not
    offer the method that was asked for and then uses its default. `job.query.explain` says how much: `summary` leaves
    out histories and contributions.

    Raises:
        DeadlineExceeded: The time is up; looked at between groups of candidates.
        FloatingPointError: The explainer returned NaN or infinity.
    """
    servable, level, basis = job.servable, job.query.explain, answer.basis
    model: Model = answer.ranker or servable
    chosen = _method_of(model, basis, job.query.method)
    names = model.parts
    from_model = [place for place, item in enumerate(answer.items) if item.source == "model"]
    lines: dict[int, ItemExplanation] = {}
    attribution: Attribution | None = None
    history: tuple[HistoryInterest, ...] = ()
    shares: tuple[ModalityShare, ...] = ()
    if from_model and basis:
        rows_K = np.array([answer.rows[place] for place in from_model], dtype=np.int64)
        attribution = _attribute(model, basis, rows_K, chosen, deadline)
        words = _Words(chosen, names, len(model.modalities), basis.history.item_ids, _titles(servable, basis.history))
        for index, place in enumerate(from_model):
            lines[place] = _line(answer.items[place], attribution, index, words=words, level=level)
        share_M = model.modality_shares(attribution.interest_KM, scores_K=attribution.scores_K)
        shares = tuple(sorted(map(ModalityShare, names, share_M), key=lambda part: -part.share))
        if level == "full":
            mean_LM = attribution.grid_KLM.mean(axis=0).tolist()
            history = words.interests(attribution.history_KL.mean(axis=0).tolist(), mean_LM)
    faithfulness = model.faithfulness(chosen) if basis.own_QD is None else {}  # measured by taking items away
    return Explanation(
        method=chosen,
        modality_interest=shares,
        history=history,
        items=tuple(lines.get(place) or _popular_line(item) for place, item in enumerate(answer.items)),
        faithfulness=faithfulness,
        caveats=caveats_for(
            chosen,
            measured=bool(faithfulness),
            additive=attribution.additive if attribution is not None else None,
            any_popular=len(from_model) < len(answer.items),
            any_brought=any(row < 0 for row in basis.history.rows),
            from_history=basis.own_QD is None,
            has_gradients="grad_x_input" in model.methods,
        ),
    )


def _method_of(model: Model, basis: Basis, wanted: Method | None) -> Method:
    if basis.own_QD is not None:  # nothing for the other methods to take away or to differentiate by
        return model.method_without_history
    return wanted if wanted in model.methods else model.methods[0]


def _attribute(model: Model, basis: Basis, rows_K: Rows, method: Method, deadline: Deadline) -> Attribution:
    states_LMS, presence_LM = history_states(model, basis.history)
    parts: list[Attribution] = []
    for start in range(0, rows_K.size, CANDIDATES_AT_ONCE):
        deadline.check()
        rows = rows_K[start : start + CANDIDATES_AT_ONCE]
        states_KMS, presence_KM = model.states(rows), model.presence(rows)
        if basis.own_QD is not None:
            part = model.decompose(basis.own_QD, candidate_states_KMS=states_KMS, candidate_presence_KM=presence_KM)
        else:
            part = model.attribute(
                method,
                states_LMS=states_LMS,
                presence_LM=presence_LM,
                candidate_states_KMS=states_KMS,
                candidate_presence_KM=presence_KM,
                ages_L=basis.history.ages_L,
            )
        if not all(np.isfinite(values).all() for values in (part.grid_KLM, part.contributions_KM, part.interest_KM)):
            raise FloatingPointError(f"{method} returned NaN or infinity")
        parts.append(part)
    deadline.check()
    if len(parts) == 1:
        return parts[0]
    return Attribution(
        scores_K=np.concatenate([part.scores_K for part in parts]),
        interest_KM=np.concatenate([part.interest_KM for part in parts]),
        history_KL=np.concatenate([part.history_KL for part in parts]),
        grid_KLM=np.concatenate([part.grid_KLM for part in parts]),
        contributions_KM=np.concatenate([part.contributions_KM for part in parts]),
        residual_K=np.concatenate([part.residual_K for part in parts]),
        additive=all(part.additive for part in parts),
    )


def history_states(model: Model, history: UsedHistory) -> tuple[Vectors, Mask]:
    """Return states `[L, M, S]` and presence `[L, M]` of the past items, those included that brought their vectors."""
    rows_L = np.array(history.rows, dtype=np.int64)
    known_L = np.maximum(rows_L, 0)
    states_LMS, presence_LM = model.states(known_L), model.presence(known_L)
    if history.brought is not None and (rows_L < 0).any():
        states_LMS, presence_LM = np.array(states_LMS), np.array(presence_LM)
        places = np.flatnonzero(rows_L < 0)
        states_LMS[places] = history.brought.states_BMS[-2 - rows_L[places]]
        presence_LM[places] = history.brought.presence_BM[-2 - rows_L[places]]
    return states_LMS, presence_LM


@dataclass(frozen=True, slots=True, eq=False)
class _Words:
    """What the numbers of one answer are about."""

    method: Method
    names: tuple[str, ...]
    num_modalities: int
    """So many of the names are modalities; the rest is what the model adds."""
    item_ids: tuple[ItemId, ...]
    titles: Titles

    def interests(self, interest_L: Sequence[float], grid_LM: Sequence[Sequence[float]]) -> tuple[HistoryInterest, ...]:
        """Return the past items with their numbers."""
        names = self.names
        pasts: list[HistoryInterest] = [  # a list first, of plain literals: half the time of anything that is called
            {"item_id": item_id, "interest": interest, "by_modality": dict(zip(names, by_modality, strict=True))}
            for item_id, interest, by_modality in zip(self.item_ids, interest_L, grid_LM, strict=True)
        ]
        return tuple(pasts)


def _line(
    item: ScoredItem, attribution: Attribution, index: int, *, words: _Words, level: ExplainLevel
) -> ItemExplanation:
    contributions = dict(zip(words.names, attribution.contributions_KM[index].tolist(), strict=True))
    reasons = reasons_for(
        words.method,
        names=words.names,
        num_modalities=words.num_modalities,
        item_ids=words.item_ids,
        interest_M=attribution.interest_KM[index],
        grid_LM=attribution.grid_KLM[index],
        contributions=contributions,
        titles=words.titles,
    )
    score = float(attribution.scores_K[index])
    if level == "summary":
        return ItemExplanation(item.item_id, score, {}, score, attribution.additive, (), reasons)
    return ItemExplanation(
        item_id=item.item_id,
        score=score,
        contributions=contributions,
        residual=float(attribution.residual_K[index]),
        additive=attribution.additive,
        history=words.interests(attribution.history_KL[index].tolist(), attribution.grid_KLM[index].tolist()),
        reasons=reasons,
    )


def _popular_line(item: ScoredItem) -> ItemExplanation:
    return ItemExplanation(
        item_id=item.item_id,
        score=item.score,
        contributions={},
        residual=item.score,
        additive=False,
        history=(),
        reasons=(popular_reason(),),
    )


def _titles(servable: Servable, history: UsedHistory) -> Titles:
    """Return what people call the past items: the catalogue's title where there is one, else the id."""
    known = [(item_id, row) for item_id, row in zip(history.item_ids, history.rows, strict=True) if row >= 0]
    titles: dict[ItemId, str] = {item_id: item_id for item_id in history.item_ids}
    if known:
        for (item_id, _), metadata in zip(
            known, servable.metadata(np.array([row for _, row in known], dtype=np.int64)), strict=True
        ):
            title = metadata.get("title")
            if isinstance(title, str) and title:
                titles[item_id] = title
    return titles
