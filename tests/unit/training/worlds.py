"""Small data for tests of training, without files."""

import numpy as np

from training.data.interactions import Interactions


def interactions(
    histories: list[list[int]],
    *,
    num_items: int = 20,
    splits: list[list[int]] | None = None,
    times: list[list[int]] | None = None,
) -> Interactions:
    """Return the interactions of users with these items, oldest first."""
    return Interactions(
        user_ids=tuple(f"u{number:03d}" for number in range(len(histories))),
        start_U1=np.cumsum([0, *map(len, histories)]),
        item_E=np.array([item for history in histories for item in history], np.int64),
        split_E=None if splits is None else np.array([code for codes in splits for code in codes], np.int8),
        num_items=num_items,
        time_E=None if times is None else np.array([moment for moments in times for moment in moments], np.int64),
    )
