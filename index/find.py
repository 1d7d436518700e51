"""What makes the answers of all index kinds the same: exact scores, merged, each row once.

`find_best` scores what an index finds exactly, so scores are in float32 whatever the kind; only which rows are found
depends on it.

Legend of shapes: `B` users, `Q` queries a user, `N` items, `D` vector width, `k` results, `n` rows found for a query.
"""

import numpy as np

from api_schemas.manifest import ProductScorer
from index.features import Rows, Vectors
from index.ranking import best_first, over_queries, score_all, score_rows
from index.search import VectorIndex
from index.selection import Selection

FEW_ROWS = 2_048
"""Up to so many allowed rows are scored one by one: cheaper than any search, and exact."""

WIDER = 4
"""Where the rows found may not be all that the k best by log-sum-exp are among, so many times more are asked for; once:
where that is not enough, it is mostly by far, and scoring all rows costs no more than a search or two."""

SCORE_ALL_FROM = 8
"""From one row in so many on, scoring all rows costs less than a search that returns so many for each query."""


def find_best(
    index: VectorIndex,
    table_ND: Vectors,
    queries_BQD: Vectors,
    *,
    k: int,
    refine: int,
    allowed: Selection | None,
    fallback: VectorIndex | None,
    scorer: ProductScorer,
) -> tuple[Vectors, Rows]:
    """Return the k best allowed rows of each user, as scores and rows `[B, k]`.

    Scores are exact, and so is the answer of an exact index. A row appears once; -1 with score -inf fills up when fewer
    than k rows are allowed, and only then: where an approximate index finds too few, `fallback` searches exactly.
    Without one, what is found has to do.
    """
    num_items = table_ND.shape[0]
    num_users, num_queries, dim = queries_BQD.shape
    scores_Bk = np.full((num_users, k), -np.inf, dtype=np.float32)
    rows_Bk = np.full((num_users, k), -1, dtype=np.int64)
    limit = min(k, num_items if allowed is None else allowed.count)
    if limit == 0 or num_users == 0:
        return scores_Bk, rows_Bk
    queries_BD = np.ascontiguousarray(queries_BQD, dtype=np.float32).reshape(-1, dim)
    if allowed is not None and allowed.count <= FEW_ROWS:
        found_BR = np.broadcast_to(allowed.rows, (num_users, allowed.count))
    elif index.exact:
        found_scores, found = index.search(queries_BD, k=limit, allowed=allowed)
        if num_queries == 1:
            scores_Bk[:, :limit], rows_Bk[:, :limit] = found_scores, found
            return scores_Bk, rows_Bk
        if scorer == "logsumexp":
            for user in range(num_users):
                own = slice(user * num_queries, (user + 1) * num_queries)
                scores_Bk[user, :limit], rows_Bk[user, :limit] = _best_by_sum(
                    index, table_ND, queries_BD[own], (found_scores[own], found[own]), k=limit, allowed=allowed
                )
            return scores_Bk, rows_Bk
        found_BR = found.reshape(num_users, -1)
    else:
        _, found = index.search(queries_BD, k=min(num_items, limit * refine), allowed=allowed)
        found_BR = found.reshape(num_users, -1)
    for user in range(num_users):
        rows = found_BR[user]
        if rows[-1] < 0:  # an index fills up with -1 at the end
            rows = rows[rows >= 0]
        if num_queries > 1:
            rows = np.unique(rows[rows >= 0])
        if rows.size < limit and fallback is not None:
            own_QD = queries_BD[user * num_queries :][:num_queries]
            exact = fallback.search(own_QD, k=limit, allowed=allowed)
            if scorer == "logsumexp":
                scores_Bk[user, :limit], rows_Bk[user, :limit] = _best_by_sum(
                    fallback, table_ND, own_QD, exact, k=limit, allowed=allowed
                )
                continue
            rows = np.unique(exact[1])
        scores = score_rows(table_ND, queries_BQD[user], rows, scorer=scorer)
        best = best_first(scores, rows, k=limit)
        scores_Bk[user, : best.size], rows_Bk[user, : best.size] = scores[best], rows[best]
    return scores_Bk, rows_Bk


def _best_by_sum(
    index: VectorIndex,
    table_ND: Vectors,
    queries_QD: Vectors,
    found: tuple[Vectors, Rows],
    *,
    k: int,
    allowed: Selection | None,
) -> tuple[Vectors, Rows]:
    """Return the k best allowed rows of one user by log-sum-exp, which searches by inner product alone may miss.

    Args:
        index: An exact one.
        table_ND: The vectors.
        queries_QD: Of the user.
        found: The k best rows of each query, as the index gives them: scores and rows `[Q, k]`.
        k: At most the number of allowed rows.
        allowed: None: all rows.
    """
    num_allowed = len(table_ND) if allowed is None else allowed.count
    best = _best_if_complete(table_ND, queries_QD, found, k=k, num_allowed=num_allowed)
    if best is None and SCORE_ALL_FROM * WIDER * k <= num_allowed:
        found = index.search(queries_QD, k=min(WIDER * k, num_allowed), allowed=allowed)
        best = _best_if_complete(table_ND, queries_QD, found, k=k, num_allowed=num_allowed)
    if best is not None:
        return best
    rows = np.arange(len(table_ND)) if allowed is None else allowed.rows
    scores = score_all(table_ND, queries_QD, scorer="logsumexp")[rows]
    chosen = best_first(scores, rows, k=k)
    return scores[chosen], rows[chosen]


def _best_if_complete(
    table_ND: Vectors, queries_QD: Vectors, found: tuple[Vectors, Rows], *, k: int, num_allowed: int
) -> tuple[Vectors, Rows] | None:
    """Return the k best of the rows found, or None where a better one may be among the others.

    A row that no query has found has with each at most the product of the last one found, so its score is at most the
    log-sum-exp of these: once the k-th best reaches it, nothing better is left.
    """
    scores_Qn, rows_Qn = found
    rows = np.unique(rows_Qn)
    scores = score_rows(table_ND, queries_QD, rows, scorer="logsumexp")
    best = best_first(scores, rows, k=k)
    bound = over_queries(scores_Qn[:, -1], axis=0, scorer="logsumexp")
    if rows_Qn.shape[1] == num_allowed or scores[best[-1]] >= bound:
        return scores[best], rows[best]
    return None
