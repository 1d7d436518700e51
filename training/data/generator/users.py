"""The users of a generated data set: each is driven by one modality, and the truth says which.

A user likes one or two styles of the modality that drives him. Most of his clicks (`DRIVEN_SHARE`) go to items of a
style that he likes, whatever these items are in the other modalities; the rest goes anywhere. Within a style, and
anywhere, popular items are clicked more often. Popularity has nothing to do with any style. So the next click can be
predicted from the driving modality of the history alone, and the other modalities of the history are chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.generator.catalogue import MODALITIES, NUM_STYLES, STYLE_NAMES, Catalogue, item_id

DRIVEN_SHARE = 0.9
TWO_STYLES_SHARE = 0.35
"""Of the users like two styles; the others like one."""
MIN_EVENTS, MAX_EVENTS = 12, 40
MAX_SHARE_OF_STYLE = 0.6
"""Nobody clicks more than this share of the items that he likes, so that something is left to recommend."""

_POPULARITY_EXPONENT = 0.5
_START_S = 1_735_689_600  # 2025-01-01 00:00 UTC
_DAYS = 300
_CHUNK = 1024  # users; part of what a seed means
TRUTH_SCHEMA = pa.schema([("user_id", pa.string()), ("modality", pa.string()), ("styles", pa.list_(pa.string()))])

_DRAWS_PER_EVENT = 4
"""Items drawn for each event, since an item that the user has already clicked is passed over."""


@dataclass(frozen=True, slots=True)
class UserChunk:
    """Some users with all that they did."""

    truth: pa.Table
    """Of TRUTH_SCHEMA: what drives each user, and the names of the styles that he likes."""
    interactions: pa.Table
    """In time order within a user."""


def make_users(catalogue: Catalogue, *, num_users: int) -> Iterator[UserChunk]:
    """Give all users chunk by chunk; modalities drive equally many users."""
    groups = _Groups(catalogue)
    for start in range(0, num_users, _CHUNK):
        rng = np.random.default_rng([catalogue.seed, 3, start])
        yield _make_chunk(groups, start, min(_CHUNK, num_users - start), rng)


class _Groups:
    """For each (modality, style), and for all items together, the items with their cumulated popularity."""

    def __init__(self, catalogue: Catalogue) -> None:
        rng = np.random.default_rng([catalogue.seed, 4])
        popularity_N = (1 + rng.permutation(catalogue.num_items)) ** -_POPULARITY_EXPONENT
        self.everything = catalogue.num_items
        members = [
            np.flatnonzero(catalogue.styles[name] == style) for name in MODALITIES for style in range(NUM_STYLES)
        ]
        members.append(np.arange(catalogue.num_items))
        self.sizes = np.array([len(rows) for rows in members])
        self._members = np.concatenate(members)
        self._offsets = np.concatenate(([0], np.cumsum(self.sizes)))
        # Group g owns the interval [g, g + 1) of one long line, so that one search serves all groups.
        self._line = np.concatenate([g + _cumulated(popularity_N[rows]) for g, rows in enumerate(members)])

    def draw(self, group: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return an item of each given group by its popularity; -1 where the group is empty."""
        position = np.searchsorted(self._line, group + uniform, side="right")
        position = np.minimum(position, self._offsets[group + 1] - 1)
        return np.where(self.sizes[group] > 0, self._members[np.maximum(position, 0)], -1)


def _cumulated(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.cumsum(weights) / weights.sum() if len(weights) else np.empty(0)


def _make_chunk(groups: _Groups, start: int, size: int, rng: np.random.Generator) -> UserChunk:
    users = np.arange(start, start + size)
    modality_U = users % len(MODALITIES)
    first_U = rng.integers(0, NUM_STYLES, size)
    second_U = (first_U + rng.integers(1, NUM_STYLES, size)) % NUM_STYLES
    has_two_U = rng.random(size) < TWO_STYLES_SHARE
    second_U = np.where(has_two_U, second_U, first_U)
    group_U2 = np.stack([modality_U * NUM_STYLES + first_U, modality_U * NUM_STYLES + second_U], axis=1)

    liked_U = groups.sizes[group_U2[:, 0]] + np.where(has_two_U, groups.sizes[group_U2[:, 1]], 0)
    most_U = np.maximum(2, (liked_U * MAX_SHARE_OF_STYLE).astype(np.int64))
    events_U = np.minimum(rng.integers(MIN_EVENTS, MAX_EVENTS + 1, size), most_U)

    draws = MAX_EVENTS * _DRAWS_PER_EVENT
    driven = rng.random((size, draws)) < DRIVEN_SHARE
    which = rng.integers(0, 2, (size, draws))
    group = np.where(driven, np.take_along_axis(group_U2, which, axis=1), len(groups.sizes) - 1)
    items = groups.draw(group, rng.random((size, draws)))

    user, row = _first_distinct(items, events_U)
    truth = pa.table(
        {
            "user_id": [_user_id(number) for number in users.tolist()],
            "modality": [MODALITIES[number] for number in modality_U],
            "styles": [
                [STYLE_NAMES[MODALITIES[m]][style] for style in dict.fromkeys((first, second))]
                for m, first, second in zip(modality_U, first_U, second_U, strict=True)
            ],
        },
        schema=TRUTH_SCHEMA,
    )
    interactions = pa.table(
        {
            "user_id": [_user_id(start + number) for number in user],
            "item_id": [item_id(number) for number in row],
            "timestamp": _times(user, size, rng),
            "event": pa.array(["click"] * len(user), pa.string()),
        }
    )
    return UserChunk(truth=truth, interactions=interactions)


def _first_distinct(
    items_UD: NDArray[np.int64], events_U: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (user, item) of each user's first `events` distinct items, in the order in which they were drawn."""
    size, draws = items_UD.shape
    user = np.repeat(np.arange(size), draws)
    flat = items_UD.ravel()
    _, first = np.unique(user * (flat.max() + 2) + flat, return_index=True)
    keep = np.zeros(len(flat), dtype=np.bool_)
    keep[first] = True
    keep &= flat >= 0
    nth = np.cumsum(keep.reshape(size, draws), axis=1)
    keep &= (nth <= events_U[:, None]).ravel()
    return user[keep], flat[keep]


def _times(user: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return rising timestamps within each user: visits of a few clicks a minute apart, days between visits."""
    num = len(user)
    new_visit = rng.random(num) < 0.25
    gap = np.where(new_visit, rng.exponential(5 * 86_400, num), rng.exponential(60, num)) + 1
    total = np.cumsum(gap)
    starts = np.concatenate(([True], user[1:] != user[:-1]))
    since_first = total - np.repeat(total[starts], np.diff(np.append(np.flatnonzero(starts), num)))
    arrival_U = rng.integers(0, _DAYS * 86_400, size)
    times: NDArray[np.int64] = (_START_S + arrival_U[user] + since_first).astype(np.int64)
    return times


def _user_id(number: int) -> str:
    return f"user-{number:06d}"
