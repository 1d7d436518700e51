"""What SLIT is solved from: which items stood together before a moment, and what came after them.

Legend: `I` items, `L` length of a history, `C` cuts of a block, `W` items of a user that a block can reach.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_REACH = 16
"""Half-lives after which an item is forgotten: it would count for 1.5e-5."""

_BLOCK = 256
"""Cuts that are taken at once: a very long history needs no matrix of its square."""


def transitions(
    histories: Iterable[NDArray[np.int64]], *, num_items: int, past: float, future: float
) -> tuple[Matrix, Matrix]:
    """Return S'S and S'T over all cuts of all histories `[I, I]` (SLIT of Choi et al., WWW 2021).

    At a cut, a row of S has 2^(-k / past) for the item k places before the last one, a row of T 2^(-k / future) for
    the item k places after the next one. An item that stands there twice counts twice.

    Args:
        histories: Items of each user, oldest first.
        num_items: I.
        past: Half-life in S, in items.
        future: Half-life in T, in items.
    """
    gram_II, follow_II = np.zeros((num_items, num_items)), np.zeros((num_items, num_items))
    behind, ahead = (int(np.ceil(_REACH * half_life)) for half_life in (past, future))
    for history_L in histories:
        for first in range(1, len(history_L), _BLOCK):
            cut_C1 = np.arange(first, min(first + _BLOCK, len(history_L)))[:, None]
            place_W = np.arange(max(0, first - behind), min(len(history_L), first + _BLOCK + ahead))
            items_X, column_W = np.unique(history_L[place_W], return_inverse=True)
            is_item_WX = column_W[:, None] == np.arange(len(items_X))
            past_CX = _decayed(cut_C1 - 1 - place_W, past) @ is_item_WX
            future_CX = _decayed(place_W - cut_C1, future) @ is_item_WX
            pairs = np.ix_(items_X, items_X)
            gram_II[pairs] += past_CX.T @ past_CX
            follow_II[pairs] += past_CX.T @ future_CX
    return gram_II, follow_II


def slit(gram_II: Matrix, follow_II: Matrix, *, ridge: float) -> Matrix:
    """Return B = (S'S + ridge I)^-1 S'T `[I, I]`: what is likely to come of what a history holds."""
    regular_II = gram_II.copy()
    regular_II[np.diag_indices_from(regular_II)] += ridge
    return np.linalg.solve(regular_II, follow_II).astype(np.float64, copy=False)


def _decayed(distance_CW: NDArray[np.int64], half_life: float) -> Matrix:
    """Return 2^(-distance / half-life), and 0 on the other side of the cut."""
    decayed_CW = np.where(distance_CW >= 0, np.exp2(-np.maximum(distance_CW, 0) / half_life), 0.0)
    return decayed_CW.astype(np.float64, copy=False)
