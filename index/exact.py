"""ExactIndex: exact search in plain NumPy, the twin that every other index is measured against.

Legend of shapes: `B` users, `Q` queries a user, `N` items, `D` vector width, `k` results.
"""

import numpy as np

from api_schemas.manifest import ProductScorer
from index.features import Mask, Rows, Vectors
from index.ranking import over_queries


class ExactIndex:
    """Scores every item for every query: the answers that the other index kinds have to give, in the fewest lines."""

    def __init__(self, table_ND: Vectors, *, scorer: ProductScorer = "max") -> None:
        self._table_ND = table_ND
        self._scorer: ProductScorer = scorer

    def score_all(self, queries_BQD: Vectors) -> Vectors:
        """Return every item's score for each user `[B, N]`."""
        num_users, num_queries, dim = queries_BQD.shape
        products = queries_BQD.reshape(-1, dim) @ self._table_ND.T
        return over_queries(products.reshape(num_users, num_queries, -1), axis=1, scorer=self._scorer)

    def search(self, queries_BQD: Vectors, *, k: int, allowed_N: Mask | None = None) -> tuple[Vectors, Rows]:
        """Return the k best allowed rows of each user, best first, of equal ones the smaller row first `[B, k]`.

        -1 with score -inf fills up when fewer than k rows are allowed.
        """
        num_items = len(self._table_ND)
        scores_BN = self.score_all(queries_BQD)
        if allowed_N is not None:
            scores_BN[:, ~allowed_N] = -np.inf
        order_Bk = np.argsort(-scores_BN, axis=1, kind="stable")[:, :k]
        scores_Bk = np.full((len(queries_BQD), k), -np.inf, dtype=np.float32)
        rows_Bk = np.full((len(queries_BQD), k), -1, dtype=np.int64)
        scores_Bk[:, :num_items] = np.take_along_axis(scores_BN, order_Bk, axis=1)
        rows_Bk[:, :num_items] = np.where(np.isneginf(scores_Bk[:, :num_items]), -1, order_Bk)
        return scores_Bk, rows_Bk
