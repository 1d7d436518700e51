"""Lists that need no user: similar items, popular items, and named items scored for a user. Any thread."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.recommend.answer import dress
from service.recommend.errors import InvalidQuery, ItemNotFound, NoServable
from service.recommend.filters import FinalFilter, Picks
from service.recommend.history import Resolved, resolve_one
from service.recommend.job import Answer, Candidates, Job
from service.recommend.servable import Rows, Selection, Servable
from service.recommend.sources import encode_users, popular_items, popularity_scores, similar_items
from service.recommend.types import Filter, ItemId, ScoredItem, Source

Y = TypeVar("Y")


def held(servable: Servable, work: Callable[[], Y]) -> Y:
    """Run `work` while the servable is kept open, even when its caller has gone in the meantime.

    Raises:
        NoServable: It is closed already; only a caller that has gone can meet this.
    """
    if not servable.retain():
        raise NoServable("the version was closed")
    try:
        return work()
    finally:
        servable.release()


def similar_listing(
    servable: Servable, item_id: ItemId, *, k: int, modality: str | None, restriction: Filter
) -> tuple[ScoredItem, ...]:
    """Return what is most like an item, without the item.

    Raises:
        ItemNotFound: The catalogue has no such item.
    """
    row = int(servable.rows([item_id])[0])
    if row < 0:
        raise ItemNotFound(item_id)
    final = FinalFilter(blocked=frozenset({row}), allowed=_allowed(servable, restriction))
    picks = similar_items(servable, row, k=k, modality=modality, final=final)
    return dress(servable, [(picks, "similar")])[0]


def popular_listing(servable: Servable, *, k: int, restriction: Filter) -> tuple[ScoredItem, ...]:
    """Return what is most popular."""
    final = FinalFilter(allowed=_allowed(servable, restriction))
    return dress(servable, [(popular_items(servable, k=k, final=final), "popular")])[0]


def _allowed(servable: Servable, restriction: Filter) -> Selection | None:
    return servable.select(restriction) if restriction else None


def named_answer(job: Job, item_ids: Sequence[ItemId]) -> Answer:
    """Score the items that are named, best first; whoever the model has nothing to go by for gets their popularity.

    Nothing is recommended here, so no filter applies: the caller asks about these very items.

    Raises:
        InvalidQuery: An item is not in the catalogue; names its place.
    """
    servable = job.servable
    distinct = tuple(dict.fromkeys(item_ids))
    rows = servable.rows(distinct)
    for item_id, row in zip(distinct, rows.tolist(), strict=True):
        if row < 0:
            raise InvalidQuery(f"/item_ids/{list(item_ids).index(item_id)}", f"no item {item_id!r} in the catalogue")
    resolved = resolve_one(job)
    picks, source = _score(servable, resolved, rows)
    ranked = servable.ranker is not None and source == "model"
    return Answer(
        items=dress(servable, [(picks, source)])[0],
        rows=tuple(row for row, _ in picks),
        basis=resolved.basis,
        user_state=resolved.user_state,
        unknown_item_ids=resolved.unknown_item_ids,
        candidates=Candidates(picks, len(picks), None, resolved.past) if ranked else None,
    )


def _score(servable: Servable, resolved: Resolved, rows: Rows) -> tuple[Picks, Source]:
    source: Source = "model" if resolved.basis else "popular"
    scores: NDArray[np.floating] = (
        servable.score(encode_users(servable, [resolved.basis])[0], rows)
        if source == "model"
        else popularity_scores(servable, servable.popularity_positions(rows))
    )
    order = np.argsort(-scores, kind="stable")
    return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True)), source
