"""From what the stages made to what the caller gets."""

from collections.abc import Mapping, Sequence

from service.recommend.job import Answer
from service.recommend.servable import Servable
from service.recommend.types import Assignment, Explanation, Slate


def slate_of(
    servable: Servable,
    answer: Answer,
    degraded: Sequence[str],
    timings_ms: Mapping[str, float],
    explanation: Explanation | None,
    *,
    assignment: Assignment | None = None,
    recommendation_id: str = "",
) -> Slate:
    """Return an answer as a slate, with what was found of it beside: what is missing, how long it took, why."""
    items = answer.items
    if explanation is not None:
        items = tuple(item._replace(explanation=why) for item, why in zip(answer.items, explanation.items, strict=True))
    return Slate(
        items=items,
        user_state=answer.user_state,
        events_used=answer.basis.history.num_used,
        unknown_item_ids=answer.unknown_item_ids,
        version=servable.version,
        ranker=None if answer.ranker is None else answer.ranker.card.version,
        degraded=(*degraded, *answer.degraded),
        explanation=explanation,
        timings_ms={**timings_ms, **answer.timings_ms},
        assignment=assignment,
        recommendation_id=recommendation_id,
    )
