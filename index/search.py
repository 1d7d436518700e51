"""The index kinds behind one protocol; `index.find` makes their answers the same.

`FlatIndex` searches straight over the memory-mapped candidate table, so an exact snapshot stores its vectors once; in
larger catalogues `index.scan` finds the same rows with less work. `FaissIndex` runs any index that factory strings
describe.

Legend of shapes: `B` users, `Q` queries a user, `N` items, `D` vector width, `k` results.
"""

from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from api_schemas.manifest import SearchSettings
from index.artefacts import ArtefactError
from index.features import Rows, Vectors
from index.selection import Selection

_untyped: Any = faiss
"""For what FAISS's own type stubs leave out: graph parameters and the fields of all parameters."""

GEMM_FROM_QUERIES = 3
"""From so many queries on, FAISS multiplies matrices instead of scanning for each query: 16 users then cost a quarter.
Its own threshold (128,000, of queries times dimension) is for larger batches than a service ever has."""

MAX_FETCH = 8_192
"""An index that can not filter is asked for so many rows at most; beyond that the exact search is cheaper."""


class VectorIndex(Protocol):
    """Finds rows with large inner products. Implementations may be called from several threads at once."""

    exact: bool
    """The k rows found are the k best."""

    def search(self, queries_BD: Vectors, *, k: int, allowed: Selection | None) -> tuple[Vectors, Rows]:
        """Return scores and rows `[B, k]`, best first; -1 where nothing is found. Scores count only where `exact`."""
        ...


class FlatIndex:
    """Exact search over a table `[N, D]`, float32 and C order, that may be memory-mapped."""

    exact = True

    def __init__(self, table_ND: Vectors, *, num_threads: int = 1) -> None:
        assert table_ND.dtype == np.float32, "FAISS reads raw memory"
        assert table_ND.flags.c_contiguous, "FAISS reads raw memory"
        self._table_ND = table_ND
        self._num_threads = num_threads
        _untyped.cvar.distance_compute_blas_threshold = GEMM_FROM_QUERIES * table_ND.shape[1]  # of the whole process

    def search(self, queries_BD: Vectors, *, k: int, allowed: Selection | None) -> tuple[Vectors, Rows]:
        """Score every allowed row."""
        faiss.omp_set_num_threads(self._num_threads)  # a setting of the calling thread, see faiss issue 2731
        num_items, dim = self._table_ND.shape
        scores_Bk = np.empty((len(queries_BD), k), dtype=np.float32)
        rows_Bk = np.empty((len(queries_BD), k), dtype=np.int64)
        faiss.knn_inner_product(
            faiss.swig_ptr(queries_BD),
            faiss.swig_ptr(self._table_ND),
            dim,
            len(queries_BD),
            num_items,
            k,
            faiss.swig_ptr(scores_Bk),
            faiss.swig_ptr(rows_Bk),
            None if allowed is None else allowed.selector,
        )
        return scores_Bk, rows_Bk


class FaissIndex:
    """An approximate index, read memory-mapped, so that processes share its pages."""

    exact = False

    def __init__(self, index: faiss.Index, *, settings: SearchSettings, num_threads: int = 1) -> None:
        self._owner = index  # the two below only point into it: without it they point at freed memory
        self._index = faiss.downcast_index(index)
        self._settings = settings
        self._num_threads = num_threads
        self._ivf = faiss.try_extract_index_ivf(index)
        self._can_filter = self._ivf is not None or isinstance(
            self._index, faiss.IndexHNSW | faiss.IndexScalarQuantizer | faiss.IndexFlat
        )

    @classmethod
    def open(
        cls, path: Path, *, num_items: int, dim: int, settings: SearchSettings, num_threads: int = 1
    ) -> "FaissIndex":
        """Map an index file whose hash the store has verified: FAISS itself trusts what it reads.

        Raises:
            ArtefactError: It is missing, is no index, or is one of other vectors.
        """
        if not path.is_file():
            raise ArtefactError(path, "is missing")
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ArtefactError(path, f"is not an index: {str(error).splitlines()[0][:200]}") from error
        if index.d != dim or index.ntotal != num_items:
            raise ArtefactError(path, f"has {index.ntotal} vectors of {index.d}, expected {num_items} of {dim}")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ArtefactError(path, "does not search by inner product")
        return cls(index, settings=settings, num_threads=num_threads)

    def search(self, queries_BD: Vectors, *, k: int, allowed: Selection | None) -> tuple[Vectors, Rows]:
        """Search with the filter inside, or, where the kind can not, fetch more and filter."""
        faiss.omp_set_num_threads(self._num_threads)
        if allowed is None or self._can_filter:
            return self._run(queries_BD, k=k, selector=None if allowed is None else allowed.selector)
        num_items = self._index.ntotal
        fetch = min(num_items, 2 * k * num_items // max(1, allowed.count))
        if fetch > MAX_FETCH:
            nothing = np.full((len(queries_BD), k), -1, dtype=np.int64)
            return np.full(nothing.shape, -np.inf, dtype=np.float32), nothing
        scores, rows = self._run(queries_BD, k=fetch, selector=None)
        dropped = (rows < 0) | ~allowed.mask_N[rows]
        order = np.argsort(dropped, axis=1, kind="stable")[:, :k]
        rows[dropped] = -1
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _run(self, queries_BD: Vectors, *, k: int, selector: faiss.IDSelector | None) -> tuple[Vectors, Rows]:
        scores_Bk: Vectors
        rows_Bk: Rows
        settings = self._settings
        parameters: Any
        if self._ivf is not None:
            parameters = _untyped.SearchParametersIVF(nprobe=settings.nprobe, sel=selector)
        elif isinstance(self._index, faiss.IndexHNSW):
            parameters = _untyped.SearchParametersHNSW(efSearch=max(settings.ef_search, k), sel=selector)
        else:
            parameters = None if selector is None else _untyped.SearchParameters(sel=selector)
        if isinstance(self._index, faiss.IndexPreTransform):
            parameters = _untyped.SearchParametersPreTransform(index_params=parameters)
        scores_Bk, rows_Bk = self._index.search(queries_BD, k, params=parameters)
        return scores_Bk, rows_Bk
