"""Items that the same users have: a sparse graph of items, each with its strongest neighbours.

Legend: `U` users, `I` items.
"""

import numpy as np
import scipy.sparse as sp

from training.blocks.propagation import InteractionGraph, SparseMatrix

_ITEMS_AT_ONCE = 512
"""Rows of the full graph that exist at a time: on dense data it has nearly I^2 entries."""


def co_interactions(graph: InteractionGraph, *, neighbours: int) -> SparseMatrix:
    """Return the rows `[I, I]` of each item's neighbours by their number of shared users, over the row's sum.

    An item is no neighbour of itself, and one that shares users with none has a row of zeros. Of equal ones the lowest
    rows are kept.

    Args:
        graph: Users and items.
        neighbours: At most so many an item.
    """
    places = (graph.user_E.numpy(), graph.item_E.numpy())
    seen_UI = sp.csr_matrix((np.ones(len(places[0]), np.float32), places), shape=(graph.num_users, graph.num_items))
    seen_IU = seen_UI.T.tocsr()
    rows, columns, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, graph.num_items, _ITEMS_AT_ONCE):
        piece = (seen_IU[start : start + _ITEMS_AT_ONCE] @ seen_UI).tocoo()
        row, column, count = piece.row.astype(np.int64) + start, piece.col.astype(np.int64), piece.data
        other = row != column
        row, column, count = row[other], column[other], count[other]
        order = np.lexsort((column, -count, row))
        row, column, count = row[order], column[order], count[order]
        kept = np.arange(len(row)) - np.searchsorted(row, row) < neighbours
        rows.append(row[kept])
        columns.append(column[kept])
        counts.append(count[kept])
    row, count = np.concatenate(rows), np.concatenate(counts)
    sums_I = np.bincount(row, weights=count, minlength=graph.num_items)
    weights = (count / sums_I[row]).astype(np.float32)
    shape = (graph.num_items, graph.num_items)
    return SparseMatrix.of(sp.coo_matrix((weights, (row, np.concatenate(columns))), shape=shape))
