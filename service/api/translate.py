"""Between the wire and the core: bodies become queries and events, slates become answers. Nothing is decided here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from api_schemas import recommend as wire
from api_schemas.events import Event as EventBody
from api_schemas.explain import ExplainedItem, ExplanationAnswer, ExplanationRequest
from api_schemas.models import ModelModalities
from api_schemas.what_if import ComparedSlate, WhatIfAnswer, WhatIfRequest
from service.recommend import types as core
from service.recommend.types import ItemId, Query, Slate, Subject, session_subject, user_subject
from service.recommend.what_if import WhatIf

_ANY = core.Filter()


def query_of(body: wire.SlateRequest, *, unit: str = "") -> Query:
    """Return what a body asks for; `unit` draws the arm of an experiment where there is no user and no session."""
    return Query(
        subject=_subject_of(body),
        history=None if body.history is None else tuple([_past_item(item) for item in _in_order(body.history)]),
        k=body.k,
        filter=_ANY if body.filter is None else _filter_of(body.filter),
        exclude_item_ids=frozenset(map(ItemId, body.exclude_item_ids)),
        candidate_item_ids=(None if body.candidate_item_ids is None else tuple(map(ItemId, body.candidate_item_ids))),
        include_seen=body.include_seen,
        min_score=body.min_score,
        diversity=body.diversity,
        store=isinstance(body, wire.RecommendationRequest) and body.store,
        after=body.after,
        explain=body.explain if isinstance(body, wire.RecommendationRequest | ExplanationRequest) else "none",
        method=body.method if isinstance(body, ExplanationRequest) else None,
        scenario=body.scenario,
        model=body.model,
        unit=unit,
    )


def event_of(body: EventBody) -> core.Event:
    """Return the event that a body tells of."""
    return core.Event(
        event_id=body.event_id,
        subject=user_subject(body.user_id) if body.user_id is not None else session_subject(body.session_id or ""),
        item_id=ItemId(body.item_id),
        type=body.type,
        occurred_at=body.occurred_at.timestamp(),
        value=body.value,
        recommendation_id=body.recommendation_id,
    )


def recommendation_answer(slate: Slate, *, level: core.ExplainLevel, took_ms: float) -> wire.RecommendationAnswer:
    """Return the answer of `POST /v1/recommendations`."""
    answer: wire.RecommendationAnswer = {
        "recommendation_id": slate.recommendation_id,
        "items": [_line(item, full=level == "full") for item in slate.items],
        "user_state": slate.user_state,
        "events_used": slate.events_used,
        "unknown_item_ids": list(slate.unknown_item_ids),
        "model": model_version(slate.version),
        "ranker": None if slate.ranker is None else model_version(slate.ranker),
        "index": index_version(slate.version),
        "degraded": list(slate.degraded),
        "took_ms": round(took_ms, 3),
    }
    if slate.assignment is not None:
        answer["experiment"] = experiment(slate.assignment)
    if slate.explanation is not None:
        answer["modality_interest"] = modality_shares(slate.explanation.modality_interest)
    return answer


def explanation_answer(
    slate: Slate, explanation: core.Explanation, *, level: core.ExplainLevel, took_ms: float
) -> ExplanationAnswer:
    """Return the answer of `POST /v1/explanations`."""
    answer: ExplanationAnswer = {
        "modality_interest": modality_shares(explanation.modality_interest),
        "history": _interests(explanation.history),
        "items": [_explained(item, full=level == "full") for item in explanation.items],
        "method": explanation.method,
        "faithfulness": dict(explanation.faithfulness),
        "caveats": list(explanation.caveats),
        "user_state": slate.user_state,
        "events_used": slate.events_used,
        "unknown_item_ids": list(slate.unknown_item_ids),
        "model": model_version(slate.version),
        "ranker": None if slate.ranker is None else model_version(slate.ranker),
        "index": index_version(slate.version),
        "degraded": list(slate.degraded),
        "took_ms": round(took_ms, 3),
    }
    if slate.assignment is not None:
        answer["experiment"] = experiment(slate.assignment)
    return answer


def what_if_query(body: WhatIfRequest, *, unit: str) -> Query:
    """Return what a body asks for, with what it switches off; `unit` as for `query_of`."""
    off = body.without
    without = core.Without(tuple(off.modalities), frozenset(map(ItemId, off.item_ids)))
    return replace(query_of(body, unit=unit), without=without)


def what_if_answer(found: WhatIf, *, took_ms: float) -> WhatIfAnswer:
    """Return the answer of `POST /v1/what-if`."""
    answer: WhatIfAnswer = {
        "before": _compared(found.before),
        "after": _compared(found.after),
        "changes": [
            {
                "item_id": change.item_id,
                "change": change.kind,
                "rank_before": None if change.before is None else change.before.rank,
                "rank_after": None if change.after is None else change.after.rank,
                "rank_change": change.rank_change,
                "score_change": change.score_change,
            }
            for change in found.changes
        ],
        "unknown_item_ids": list(found.before.unknown_item_ids),
        "caveats": list(found.caveats),
        "model": model_version(found.before.version),
        "index": index_version(found.before.version),
        "degraded": list(dict.fromkeys((*found.before.degraded, *found.after.degraded))),
        "took_ms": round(took_ms, 3),
    }
    if found.before.assignment is not None:
        answer["experiment"] = experiment(found.before.assignment)
    return answer


def _compared(slate: Slate) -> ComparedSlate:
    return {
        "items": [_line(item) for item in slate.items],
        "events_used": slate.events_used,
        "ranker": None if slate.ranker is None else model_version(slate.ranker),
        "degraded": list(slate.degraded),
    }


def items_answer(listing: core.Listing, *, took_ms: float) -> wire.ItemsAnswer:
    """Return the answer of the endpoints that list items without a user."""
    answer: wire.ItemsAnswer = {
        "items": [_line(item) for item in listing.items],
        "model": model_version(listing.version),
        "index": index_version(listing.version),
        "degraded": list(listing.degraded),
        "took_ms": round(took_ms, 3),
    }
    if listing.assignment is not None:
        answer["experiment"] = experiment(listing.assignment)
    return answer


def model_answer(card: core.ModelCard) -> ModelModalities:
    """Return the answer of `GET /v1/models/{name}/modalities`."""
    return ModelModalities.model_validate(
        {
            "model": model_version(card.version),
            "parts": card.parts,
            "modalities": [{"modality": one.name, "dim": one.dim, "mask": one.mask} for one in card.modalities],
            "explanation_methods": card.methods,
            "num_known_items": card.num_known_items,
            "num_known_users": card.num_known_users,
            "fold_in": card.fold_in,
            "cold_items": card.cold_items,
        }
    )


def model_version(version: core.ServedVersion) -> wire.ModelVersion:
    """Return how an answer names a model."""
    return {"name": version.model_name, "version": version.model_version}


def index_version(version: core.ServedVersion) -> wire.IndexVersion:
    """Return how an answer names its catalogue."""
    return {"version": version.index_version, "built_at": version.index_built_at}


def modality_shares(shares: Sequence[core.ModalityShare]) -> list[wire.ModalityShare]:
    """Return shares as answers list them."""
    return [{"modality": part.modality, "share": part.share} for part in shares]


def _subject_of(body: wire.SlateRequest) -> Subject | None:
    if body.user_id is not None:
        return user_subject(body.user_id)
    return session_subject(body.session_id) if body.session_id is not None else None


def _in_order(history: Sequence[wire.HistoryItem]) -> Iterable[wire.HistoryItem]:
    """Return the oldest first: by time when every entry has one, else as sent."""
    times = [item.occurred_at for item in history if item.occurred_at is not None]
    if len(times) < len(history):
        return history
    order = sorted(range(len(history)), key=times.__getitem__)
    return [history[place] for place in order]


def _past_item(item: wire.HistoryItem) -> core.HistoryItem:
    modalities: Mapping[str, core.Vectors] | None = None
    if item.modalities is not None:
        with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, which the core refuses
            modalities = {name: np.asarray(vector, dtype=np.float32) for name, vector in item.modalities.items()}
    return core.HistoryItem(
        ItemId(item.item_id), None if item.occurred_at is None else item.occurred_at.timestamp(), modalities
    )


def _filter_of(body: wire.Filter) -> core.Filter:
    return core.Filter(
        categories_any=tuple(body.categories_any),
        categories_all=tuple(body.categories_all),
        categories_none=tuple(body.categories_none),
        attributes={
            name: tuple(value) if isinstance(value, list) else (value,) for name, value in body.attributes.items()
        },
    )


def experiment(assignment: core.Assignment) -> wire.Experiment:
    """Return which arm of which experiment answered."""
    return {"name": assignment.experiment, "arm": assignment.arm}


def _line(item: core.ScoredItem, *, full: bool = False) -> wire.RecommendedItem:
    line: wire.RecommendedItem = {
        "item_id": item.item_id,
        "rank": item.rank,
        "score": item.score,
        "source": item.source,
    }
    if item.metadata is not None:
        line["metadata"] = item.metadata
    if item.explanation is not None:
        line["explanation"] = _explanation(item.explanation, full=full)
    return line


def _explained(item: core.ItemExplanation, *, full: bool) -> ExplainedItem:
    return {"item_id": item.item_id, **_explanation(item, full=full)}


def _explanation(item: core.ItemExplanation, *, full: bool) -> wire.ItemExplanation:
    explanation: wire.ItemExplanation = {
        "score": item.score,
        "additive": item.additive,
        "reasons": _reasons(item),
    }
    if full:
        explanation["contributions"] = _contributions(item)
        explanation["residual"] = item.residual
        explanation["history"] = _interests(item.history)
    return explanation


def _contributions(item: core.ItemExplanation) -> list[wire.Contribution]:
    return [{"modality": modality, "value": value} for modality, value in item.contributions.items()]


def _reasons(item: core.ItemExplanation) -> list[wire.Reason]:
    return [
        {"code": reason.code, "text": reason.text, "evidence_item_ids": list(reason.evidence_item_ids)}
        for reason in item.reasons
    ]


def _interests(history: Sequence[core.HistoryInterest]) -> list[wire.HistoryInterest]:
    return [*history]
