"""ScanIndex: exact search that reads a quarter of the memory.

Every item is scored in 8-bit integers first, by ONNX Runtime's integer product. How far such a score can be from the
true one is known, so it is known which rows can be among the k best: these, mostly some hundred, are scored in float32.
The answer is exact, not nearly exact: the bound decides how many rows are looked at, and none is lost.

With x the item minus the mean of all items (which changes no order), s the scale of each dimension, c = round(x / s) in
-127..127, r = x - s c, and for the query p = q s, u = round(p / t) in -63..63:

    q.x = q.r + (p - t u).c + t u.c      so   |q.x - t u.c| <= E = |q| max|r| + |p - t u| max|c|     (Cauchy-Schwarz)

If b is the k-th largest u.c, k rows have q.x >= t b - E, and a row with t u.c < t b - 2 E has q.x below that. Queries
have 7 bits, not 8: 127 * 127 * 2 stays below 2^15, where processors that add pairs of products in 16 bits cut off.

Legend of shapes: `B` queries, `N` items, `D` vector width, `k` results, `n` rows looked at.
"""

import math

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from index.features import Rows, Vectors
from index.ranking import best_first
from index.scan_graph import integer_product
from index.selection import Selection

_ZERO_POINT = 64
_QUERY_LEVELS, _CODE_LEVELS = 63, 127
_LOWEST = int(np.iinfo(np.int32).min)

_CHUNK_ROWS = 8_192
_MAX_PRODUCTS = 4_000_000
"""Integer scores kept at once: 16 MB."""

_GROUP_ROWS = 128
_GROUPS_A_RESULT = 8

_ROUNDING = 1e-5
"""Share of the largest score that float32 sums may be off, and some."""


class ScanIndex:
    """Finds the k best rows, exactly. Calls may come from several threads at once."""

    exact = True

    def __init__(self, table_ND: Vectors, *, num_threads: int = 1) -> None:
        """Make the codes of a table `[N, D]`: N * D bytes of this process's own memory."""
        num_items, dim = table_ND.shape
        self._table_ND = table_ND
        chunks = [slice(start, start + _CHUNK_ROWS) for start in range(0, num_items, _CHUNK_ROWS)]
        mean_D = sum(table_ND[chunk].sum(axis=0, dtype=np.float64) for chunk in chunks) / num_items
        peak_D = np.max([np.abs(table_ND[chunk] - mean_D).max(axis=0) for chunk in chunks], axis=0)
        scale_D = np.where(peak_D > 0, peak_D, 1.0) / _CODE_LEVELS
        codes_DN = np.empty((dim, num_items), dtype=np.int8)
        residual = code = length = 0.0
        for chunk in chunks:
            centred = table_ND[chunk] - mean_D
            codes = np.rint(centred / scale_D)
            codes_DN[:, chunk] = codes.T
            residual = max(residual, float(np.linalg.norm(centred - codes * scale_D, axis=1).max()))
            code = max(code, float(np.linalg.norm(codes, axis=1).max()))
            length = max(length, float(np.linalg.norm(table_ND[chunk], axis=1).max()))
        self._scale_D = scale_D
        self._largest_residual, self._largest_code, self._largest_vector = residual, code, length
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = integer_product(codes_DN, zero_point=_ZERO_POINT)
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        vars(session).pop("_model_bytes", None)  # kept to make the session anew, which nobody does: the table, twice
        self._run = session.run

    def search(self, queries_BD: Vectors, *, k: int, allowed: Selection | None) -> tuple[Vectors, Rows]:
        """Return the k best allowed rows, of which there must be as many, and their scores `[B, k]`."""
        scores_Bk = np.empty((len(queries_BD), k), dtype=np.float32)
        rows_Bk = np.empty((len(queries_BD), k), dtype=np.int64)
        together = max(1, _MAX_PRODUCTS // len(self._table_ND))
        for start in range(0, len(queries_BD), together):
            some_BD = queries_BD[start : start + together]
            quantised_BD, margins = self._quantise(some_BD)
            products_BN = self._run(["products"], {"queries": quantised_BD})[0]
            for place, query_D in enumerate(some_BD):
                rows_n = _near_best(products_BN[place], k=k, margin=margins[place], allowed=allowed)
                scores_n = self._table_ND.take(rows_n, axis=0) @ query_D
                best = best_first(scores_n, rows_n, k=k)
                scores_Bk[start + place], rows_Bk[start + place] = scores_n[best], rows_n[best]
        return scores_Bk, rows_Bk

    def _quantise(self, queries_BD: Vectors) -> tuple[NDArray[np.uint8], list[int]]:
        """Return queries in 7 bits, and for each the number of integer steps that two scores may be off together."""
        wide_BD = queries_BD.astype(np.float64)
        scaled_BD = wide_BD * self._scale_D
        step_B = np.maximum(np.abs(scaled_BD).max(axis=1) / _QUERY_LEVELS, np.finfo(np.float64).tiny)
        rounded_BD = np.rint(scaled_BD / step_B[:, np.newaxis])
        lost_B = np.linalg.norm(scaled_BD - rounded_BD * step_B[:, np.newaxis], axis=1)
        length_B = np.linalg.norm(wide_BD, axis=1)
        error_B = length_B * (self._largest_residual + _ROUNDING * self._largest_vector) + lost_B * self._largest_code
        margins = [math.ceil(2 * steps) + 1 for steps in (error_B / step_B).tolist()]
        return (rounded_BD + _ZERO_POINT).astype(np.uint8), margins


def _near_best(products_N: NDArray[np.int32], *, k: int, margin: int, allowed: Selection | None) -> Rows:
    """Return all rows that can be among the k best: no further than `margin` below the k-th best product."""
    if allowed is not None:
        products_N = np.where(allowed.mask_N, products_N, np.int32(_LOWEST))
    num_items = products_N.size
    # The k-th largest of the maxima of groups is at most the k-th largest of all, and much faster to find.
    num_groups = max(num_items // _GROUP_ROWS, min(num_items, _GROUPS_A_RESULT * k))
    grouped = products_N[: num_items // num_groups * num_groups]
    maxima = grouped.reshape(-1, num_groups).max(axis=0)
    floor = int(np.partition(maxima, num_groups - k)[num_groups - k]) - margin
    return np.flatnonzero(products_N >= np.int32(max(floor, _LOWEST + 1)))
