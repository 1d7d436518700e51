"""Explanations of what was shown: of exactly those items, from exactly that history. Plain functions, any thread."""

from collections.abc import Sequence
from dataclasses import replace

from service.recommend.errors import InvalidQuery
from service.recommend.history import basis_for, resolve_one
from service.recommend.job import Answer, Job
from service.recommend.ports import ShownSlate
from service.recommend.servable import Servable
from service.recommend.types import (
    ExplainLevel,
    Explanation,
    HistoryItem,
    ItemId,
    Method,
    Query,
    ScoredItem,
    ServedVersion,
    Slate,
)

OTHER_MODEL = "The model that made this recommendation is no longer loaded: another one explains it, by its own scores."
ITEMS_GONE = "Some of the recommended items are no longer in the catalogue, and are left out."


def shown_query(shown: ShownSlate, servable: Servable, *, level: ExplainLevel, method: Method | None) -> Query:
    """Return the query that has what was shown explained; vectors that this version can not read are left out."""
    widths = servable.modalities

    def past_item(item_id: ItemId, age: float | None) -> HistoryItem:
        vectors = shown.brought.get(item_id, {}).items()
        readable = {name: vector for name, vector in vectors if vector.shape == (widths.get(name),)}
        return HistoryItem(item_id, None if age is None else -age, readable or None)

    return Query(
        subject=shown.subject,
        history=tuple(map(past_item, shown.history, shown.ages or [None] * len(shown.history))),
        k=max(len(shown.items), 1),
        explain=level,
        method=method,
    )


def shown_answer(job: Job, shown: ShownSlate, item_ids: Sequence[ItemId] | None) -> Answer:
    """Return what was shown as an answer of the job's version, in the order and with the scores that it had.

    Args:
        job: Of `shown_query`.
        shown: What was shown.
        item_ids: Those of its items that are to be explained; None: all.

    Raises:
        InvalidQuery: An item was not among them; names its place.
    """
    servable = job.servable
    there = {item.item_id for item in shown.items}
    for place, item_id in enumerate(item_ids or ()):
        if item_id not in there:
            raise InvalidQuery(f"/item_ids/{place}", f"{item_id!r} is not in this recommendation")
    wanted = there if item_ids is None else set(item_ids)
    rows = servable.rows([item.item_id for item in shown.items]).tolist()
    lines = [
        (row, ScoredItem(item.item_id, rank, item.score, item.source))
        for rank, (item, row) in enumerate(zip(shown.items, rows, strict=True), start=1)
        if row >= 0 and item.item_id in wanted
    ]
    resolved = resolve_one(job)
    ranker = servable.ranker if shown.ranker is not None else None
    basis = resolved.basis if ranker is None else basis_for(ranker, resolved.past, job.query)
    if ranker is not None and not basis:
        ranker, basis = None, resolved.basis
    return Answer(
        items=tuple([line for _, line in lines]),
        rows=tuple([row for row, _ in lines]),
        basis=basis,
        user_state=resolved.user_state,
        unknown_item_ids=resolved.unknown_item_ids,
        ranker=ranker,
    )


def with_caveats(explanation: Explanation, shown: ShownSlate, slate: Slate, *, num_wanted: int) -> Explanation:
    """Return an explanation that says what has changed since the recommendation."""
    caveats = list(explanation.caveats)
    if _model(shown.version) != _model(slate.version) or _model(shown.ranker) != _model(slate.ranker):
        caveats.append(OTHER_MODEL)
    if len(slate.items) < num_wanted:
        caveats.append(ITEMS_GONE)
    return replace(explanation, caveats=tuple(caveats))


def _model(version: ServedVersion | None) -> str | None:
    return None if version is None else version.model_version
