"""What tests of event stores share: two users, their events, and how a store is asked."""

from service.recommend.types import Event, ItemId, user_subject

ANN, BOB = user_subject("ann"), user_subject("bob")
CAP = 20
"""Events that the stores of the contract suites keep of a subject."""
MAX_BLOCKS = 5
START_S = 1_700_000_000.0


def event(number: int, *, subject=ANN, at: float | None = None, event_id: str | None = None, item: str | None = None):
    """Return event `e<number>` on item `i<number>`, a second after the one before."""
    return Event(
        event_id=event_id or f"e{number}",
        subject=subject,
        item_id=ItemId(item or f"i{number}"),
        type="click",
        occurred_at=START_S + number if at is None else at,
    )


async def items(store, subject=ANN, *, limit=100):
    return (await store.history(subject, limit=limit)).item_ids
