"""Exact scores of some rows, and the best of them in order.

Legend of shapes: `Q` queries of one user, `N` items, `D` vector width, `n` rows.
"""

import numpy as np

from api_schemas.manifest import ProductScorer
from index.features import Rows, Vectors

_SORT_ALL = 512
"""Up to so many scores, sorting all is faster than first finding those that are worth it."""

_CHUNK_ROWS = 16_384


def over_queries(products: Vectors, *, axis: int, scorer: ProductScorer) -> Vectors:
    """Return the scores of inner products that lie, one for each query of a user, along `axis`.

    The log of the sum of exponentials is taken of what lies below the largest, so that none overflows. It is at least
    the largest, and at most log Q above it.
    """
    largest: Vectors = products.max(axis=axis, keepdims=True)
    scores = largest.squeeze(axis)
    return scores if scorer == "max" else scores + np.log(np.exp(products - largest).sum(axis=axis))


def score_rows(table_ND: Vectors, queries_QD: Vectors, rows: Rows, *, scorer: ProductScorer) -> Vectors:
    """Return one user's score of each row `[n]`."""
    vectors_nD = table_ND.take(rows, axis=0)  # a third of the time of indexing
    scores_n: Vectors
    if len(queries_QD) == 1:
        scores_n = vectors_nD @ queries_QD[0]
    else:
        scores_n = over_queries(vectors_nD @ queries_QD.T, axis=1, scorer=scorer)
    return scores_n


def score_all(table_ND: Vectors, queries_QD: Vectors, *, scorer: ProductScorer) -> Vectors:
    """Return one user's score of every row `[N]`, in bounded memory."""
    chunks = (table_ND[start : start + _CHUNK_ROWS] for start in range(0, len(table_ND), _CHUNK_ROWS))
    return np.concatenate([over_queries(queries_QD @ chunk_nD.T, axis=0, scorer=scorer) for chunk_nD in chunks])


def best_first(scores: Vectors, rows: Rows, *, k: int) -> Rows:
    """Return the positions of the k largest scores, best first; of equal ones, the smaller row first."""
    if scores.size <= max(_SORT_ALL, k):
        return np.lexsort((rows, -scores))[:k]
    limit = np.partition(scores, scores.size - k)[scores.size - k]
    near = np.flatnonzero(scores >= limit)  # with all that tie with the last, so that rows decide
    return near[np.lexsort((rows[near], -scores[near]))[:k]]
