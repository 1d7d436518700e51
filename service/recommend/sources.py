"""Candidate sources: from queries to scored rows. What may be shown is decided afterwards, by the final filter.

Legend: `B` users, `Q` queries of a user, `D` vector, `L` history, `H` history row, `N` items, `K` fetched rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from service.recommend.filters import FinalFilter, Picks
from service.recommend.history import Resolved
from service.recommend.job import Basis
from service.recommend.servable import Ages, Mask, Model, Rows, Servable
from service.recommend.types import Filter, Vectors

MAX_EXTRA = 256
"""Up to so many blocked rows are fetched beside the k and taken out; more than that go into the search's mask."""


def encode_users(model: Model, users: Sequence[Basis]) -> Vectors:
    """Return the queries `[B, Q, D]` of users that each have at least one usable past item, or queries of their own.

    Raises:
        FloatingPointError: The encoder returned NaN or infinity.
    """
    own = [user.own_QD for user in users if user.own_QD is not None]
    if own:
        own_B = np.array([user.own_QD is not None for user in users])
        queries_BQD = np.empty((len(users), *own[0].shape), dtype=np.float32)
        queries_BQD[own_B] = np.stack(own)
        if len(own) < len(users):
            queries_BQD[~own_B] = encode_users(model, [user for user in users if user.own_QD is None])
        return queries_BQD
    length = model.history_length
    lengths_B = np.fromiter((len(user.history) for user in users), dtype=np.int64, count=len(users))
    mask_BL: Mask = np.arange(length) < lengths_B[:, np.newaxis]
    rows = np.fromiter(chain.from_iterable(user.history.rows for user in users), np.int64, count=int(lengths_B.sum()))
    history_nH = model.history(np.maximum(rows, 0))
    if (rows < 0).any():
        history_nH = np.array(history_nH)
        start = 0
        for user, count in zip(users, lengths_B.tolist(), strict=True):
            for place, row in enumerate(user.history.rows):
                if row < 0 and user.history.brought is not None:
                    history_nH[start + place] = user.history.brought.history_BH[-2 - row]
            start += count
    history_BLH = np.zeros((len(users), length, history_nH.shape[1]), dtype=np.float32)
    history_BLH[mask_BL] = history_nH  # both run user by user, oldest first: padding is at the end
    for position, user in enumerate(users):
        remains = user.history.remains
        if remains is not None:
            history_BLH[position, : len(remains.mask_L)] = remains.rows_LH
            mask_BL[position, : len(remains.mask_L)] = remains.mask_L
    if model.reads_ages:
        queries_BQD = model.encode_users(history_BLH, mask_BL, _ages(users, length))
    else:
        queries_BQD = model.encode_users(history_BLH, mask_BL)
    if not np.isfinite(queries_BQD).all():
        raise FloatingPointError("the user encoder returned NaN or infinity")
    return queries_BQD


def _ages(users: Sequence[Basis], length: int) -> Ages:
    ages_BL = np.zeros((len(users), length), dtype=np.float32)
    for position, user in enumerate(users):
        if user.history.ages_L is not None:
            ages_BL[position, : len(user.history)] = user.history.ages_L
    return ages_BL


def search_model(servable: Servable, users: Sequence[Resolved], queries_BQD: Vectors) -> list[Picks]:
    """Return each user's best rows that may be shown, best first, `num_candidates`; never fewer than there are.

    Users that need the same kind of search share one call.
    """
    picks: list[Picks] = [[] for _ in users]
    shared: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for position, user in enumerate(users):
        k, final = user.num_candidates, user.search_filter
        if user.candidate_rows is not None:
            picks[position] = _score_candidates(servable, user, queries_BQD[position])
        elif len(final.blocked) > MAX_EXTRA:
            allowed = final.allowed or servable.select(Filter())
            remaining = allowed.without(list(final.blocked))
            scores_BK, rows_BK = servable.search(queries_BQD[position, np.newaxis], k=k, allowed=remaining)
            picks[position] = final.admit(rows_BK[0].tolist(), scores_BK[0].tolist(), k=k)
        else:
            fetch = k + len(final.blocked)
            shared[(id(final.allowed), fetch.bit_length())].append(position)
    for positions in shared.values():
        _search_together(servable, users, queries_BQD, positions, picks)
    return picks


def _search_together(
    servable: Servable, users: Sequence[Resolved], queries_BQD: Vectors, positions: list[int], picks: list[Picks]
) -> None:
    together = [users[position] for position in positions]
    fetch = min(servable.num_items, max(user.num_candidates + len(user.filter.blocked) for user in together))
    queries = queries_BQD if len(positions) == len(users) else queries_BQD[positions]
    scores_BK, rows_BK = servable.search(queries, k=fetch, allowed=together[0].filter.allowed)
    for position, user, rows, scores in zip(positions, together, rows_BK.tolist(), scores_BK.tolist(), strict=True):
        picks[position] = user.search_filter.admit(rows, scores, k=user.num_candidates)


def _score_candidates(servable: Servable, user: Resolved, queries_QD: Vectors) -> Picks:
    """Score exactly the rows that the query names."""
    rows = np.array(user.candidate_rows, dtype=np.int64)
    if not rows.size:
        return []
    scores = servable.score(queries_QD, rows)
    order = np.argsort(-scores, kind="stable")
    return user.search_filter.admit(rows[order].tolist(), scores[order].tolist(), k=user.num_candidates)


def similar_items(servable: Servable, row: int, *, k: int, modality: str | None, final: FinalFilter) -> Picks:
    """Return the rows most like `row` that may be shown, best first, at most k."""
    fetch = min(servable.num_items, k + len(final.blocked))
    scores, rows = servable.similar(row, k=fetch, modality=modality, allowed=final.allowed)
    return final.admit(rows.tolist(), scores.tolist(), k=k)


def popular_items(servable: Servable, *, k: int, final: FinalFilter) -> Picks:
    """Return the most popular rows that may be shown, at most k.

    The score is 1 - p/N at position p of the N items: it orders, and compares with no model score.
    """
    num_items = servable.num_items
    if final.only is not None:
        candidates = np.fromiter(final.only, dtype=np.int64, count=len(final.only))
        positions = servable.popularity_positions(candidates)
        order = np.argsort(positions)
        return final.admit(candidates[order].tolist(), popularity_scores(servable, positions[order]).tolist(), k=k)
    picks: Picks = []
    start, chunk = 0, k + len(final.blocked)
    while start < num_items and len(picks) < k:  # mostly once; a narrow filter walks down the list in growing steps
        rows = servable.popular_rows[start : start + chunk]
        positions = np.arange(start, start + rows.size)
        if final.allowed is not None:
            passing = final.allowed.mask_N[rows]
            rows, positions = rows[passing], positions[passing]
        taken = {row for row, _ in picks}
        scores = popularity_scores(servable, positions).tolist()
        picks += final.admit(rows.tolist(), scores, k=k - len(picks), taken=taken)
        start, chunk = start + chunk, chunk * 8
    return picks


def popularity_scores(servable: Servable, positions: Rows) -> NDArray[np.float64]:
    """Return 1 - p/N for positions p in the popularity order."""
    return 1.0 - positions / servable.num_items
