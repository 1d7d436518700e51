"""The one filter at the end of every path: model, candidates, similar, popular."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from service.recommend.servable import Selection

Picks = list[tuple[int, float]]
"""Rows and scores, best first."""

_NONE: frozenset[int] = frozenset()


def best_of(picks: Picks, *, k: int, min_score: float | None) -> Picks:
    """Return the first k picks that score enough."""
    return [pick for pick in picks if min_score is None or pick[1] >= min_score][:k]


@dataclass(frozen=True, slots=True, eq=False)
class FinalFilter:
    """What may be shown in one answer."""

    blocked: AbstractSet[int] = _NONE
    """Rows that must not be shown: excluded, blocked by the user, seen, or the item itself."""
    allowed: Selection | None = None
    """Which rows of the catalogue pass the query's filter; None: all."""
    only: AbstractSet[int] | None = None
    """The candidates that the query names; None: any row."""
    min_score: float | None = None

    def admit(self, rows: Iterable[int], scores: Iterable[float], *, k: int, taken: AbstractSet[int] = _NONE) -> Picks:
        """Return the first k rows that may be shown, each once and none of `taken`, in the order given."""
        blocked, only, floor = self.blocked, self.only, self.min_score
        allowed_N = None if self.allowed is None else self.allowed.mask_N
        picks: Picks = []
        done = set(taken)
        if k < 1:
            return picks
        for row, score in zip(rows, scores, strict=True):
            if row < 0 or row in blocked or row in done or (only is not None and row not in only):
                continue
            if allowed_N is not None and not allowed_N[row]:
                continue
            if floor is not None and score < floor:
                continue
            done.add(row)
            picks.append((row, score))
            if len(picks) == k:
                break
        return picks
