"""Diversity: a slate chosen one item after the other, where what is like the items chosen already counts for less.

ComiRec's controllable aggregation takes the best score less a coefficient times the items of the same category that
are chosen already (Cen et al., KDD 2020). Here the coefficient runs from 0, which leaves the order alone, to 1, where
nothing but variety counts; an item may have several categories, and one without any is held against the most similar
of the chosen instead (maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).

Legend: `P` pool, `M` parts of an item, `S` state width.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.recommend.filters import Picks, best_of
from service.recommend.servable import Servable
from service.recommend.types import Vectors

POOL_FACTOR = 5
"""A slate of k is chosen among so many times k ..."""

MAX_POOL = 1_000
"""... and at most so many, or k if that is more."""


def pool_size(k: int) -> int:
    """Return how many items a diverse slate of k is chosen among."""
    return max(k, min(POOL_FACTOR * k, MAX_POOL))


def shown(servable: Servable, picks: Picks, *, k: int, min_score: float | None, diversity: float) -> Picks:
    """Return what is shown of picks, best first: the k best that score enough, or a diverse k of them."""
    if not diversity:
        return best_of(picks, k=k, min_score=min_score)
    pool = best_of(picks, k=pool_size(k), min_score=min_score)
    return diversify(servable, pool, k=k, diversity=diversity)


def diversify(servable: Servable, pool: Picks, *, k: int, diversity: float) -> Picks:
    """Return k of the pool in the order in which they were chosen, with their scores as they were.

    An item's worth is `(1 - diversity) * score - diversity * likeness`, with the scores of the pool scaled to 0..1.
    Its likeness is, summed over the chosen, the share of categories that both have of those that either has; of an
    item without categories, the largest cosine with one of the chosen. What is worth the same keeps the pool's order.

    Args:
        servable: Knows the categories and states of the rows.
        pool: What may be shown, best first.
        k: How many to choose.
        diversity: From 0 to 1.
    """
    if diversity <= 0 or len(pool) < 2:
        return pool[:k]
    rows = np.array([row for row, _ in pool], dtype=np.int64)
    likeness = _Likeness(servable, rows)
    relevance_P = (1 - diversity) * _scaled(np.array([score for _, score in pool], dtype=np.float64))
    left_P = np.ones(len(pool), dtype=np.bool_)
    chosen: list[int] = []
    while len(chosen) < min(k, len(pool)):
        worth_P = np.where(left_P, relevance_P - diversity * likeness.to_chosen_P, -np.inf)
        place = int(worth_P.argmax())
        left_P[place] = False
        chosen.append(place)
        likeness.choose(place)
    return [pool[place] for place in chosen]


def _scaled(scores_P: NDArray[np.float64]) -> NDArray[np.float64]:
    least, span = scores_P.min(), np.ptp(scores_P)
    scaled_P: NDArray[np.float64] = (scores_P - least) / span if span > 0 else np.zeros_like(scores_P)
    return scaled_P


class _Likeness:
    """How like the items chosen so far each item of a pool is."""

    def __init__(self, servable: Servable, rows: NDArray[np.int64]) -> None:
        self.to_chosen_P = np.zeros(rows.size, dtype=np.float64)
        self._categories = [_categories(metadata.get("categories")) for metadata in servable.metadata(rows)]
        self._num_P = np.array([len(categories) for categories in self._categories])
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, categories in enumerate(self._categories):
            for category in categories:
                places[category].append(place)
        self._places = {category: np.array(found) for category, found in places.items()}
        self._bare = np.flatnonzero(self._num_P == 0)
        """Places of the items without categories."""
        self._units_PX: Vectors | None = _units(servable, rows) if self._bare.size else None

    def choose(self, place: int) -> None:
        """Take one more item among the chosen."""
        shared_P = np.zeros(self.to_chosen_P.size, dtype=np.int64)
        for category in self._categories[place]:
            shared_P[self._places[category]] += 1
        either_P = np.maximum(self._num_P + self._num_P[place] - shared_P, 1)
        self.to_chosen_P += shared_P / either_P
        if self._units_PX is not None:
            cosines = self._units_PX[self._bare] @ self._units_PX[place]
            self.to_chosen_P[self._bare] = np.maximum(self.to_chosen_P[self._bare], cosines)


def _categories(value: object) -> Sequence[str]:
    return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else ()


def _units(servable: Servable, rows: NDArray[np.int64]) -> Vectors:
    """Return what the items are made of as vectors of length 1; of zeros where there is nothing."""
    states_PMS = servable.states(rows) * servable.presence(rows)[:, :, np.newaxis]
    flat_PX = states_PMS.reshape(rows.size, -1).astype(np.float32)
    units_PX: Vectors = flat_PX / np.maximum(np.linalg.norm(flat_PX, axis=1, keepdims=True), np.float32(1e-12))
    return units_PX
