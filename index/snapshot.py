"""IndexSnapshot: a rebuilt catalogue, opened and ready to be searched. Immutable, memory-mapped, shared by processes.

Files, beside those of `ids`, `items`, `postings` and `item_tables`: `popularity.npy` `[N]`, `popular_rows.npy` `[N]`,
`popular_positions.npy` `[N]`, `queries.npy` `[B, Q, D]` (users that the recall was measured with), and `index.faiss`
unless the index is exact. Where a ranker orders what is retrieved, `ranker/` has its item tables.

Legend of shapes: `B` users, `Q` queries a user, `N` items, `D` vector width, `k` results, `n` rows asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from api_schemas.manifest import SnapshotManifest
from index.features import Mask, Rows, Vectors
from index.find import find_best
from index.ids import IdTable
from index.item_tables import ItemTables, checked
from index.items import ItemTable, Metadata
from index.postings import AttributeValue, Postings
from index.ranking import best_first, score_rows
from index.scan import ScanIndex
from index.search import FaissIndex, FlatIndex, VectorIndex
from index.selection import Selection
from index.tables import Table

INDEX_FILE = "index.faiss"
POPULARITY_FILE, POPULAR_ROWS_FILE, POPULAR_POSITIONS_FILE = (
    "popularity.npy",
    "popular_rows.npy",
    "popular_positions.npy",
)
QUERIES_FILE = "queries.npy"
RANKER_FOLDER = "ranker"

SCAN_FROM_ITEMS = 8_192
"""In smaller catalogues the plain exact search is as fast."""


class IndexSnapshot(ItemTables):
    """One catalogue, as the model that retrieves has encoded it, and a ranker if there is one; it can be searched."""

    def __init__(self, path: Path, manifest: SnapshotManifest, *, num_threads: int) -> None:
        """Use `open`."""
        num_items, dim = manifest.num_items, manifest.dim
        super().__init__(path, manifest, num_items=num_items)
        self.path = path
        self.manifest = manifest
        self.num_items = num_items
        self.ranker: ItemTables | None = None
        """What the model that orders what is retrieved knows of the items."""
        if manifest.ranker is not None:
            self.ranker = ItemTables(path / RANKER_FOLDER, manifest.ranker, num_items=num_items)

        def column(name: str, dtype: type) -> Table:
            return Table(path / name, dtype=dtype, shape=(num_items,))

        self.popularity: Vectors = column(POPULARITY_FILE, np.float32).array
        """How often each row occurs in the interactions `[N]`."""
        self.popular_rows: Rows = column(POPULAR_ROWS_FILE, np.int64).array
        """All rows, the most popular first."""
        self._popular_positions_N: Rows = column(POPULAR_POSITIONS_FILE, np.int64).array
        self._ids = IdTable(path, num_items=num_items)
        self._items = ItemTable(path, num_items=num_items)
        self._postings = Postings(path, num_items=num_items)
        self._exact = FlatIndex(self._candidates_ND, num_threads=num_threads)
        self._index: VectorIndex = self._exact
        if manifest.exact and num_items >= SCAN_FROM_ITEMS:
            self._index = ScanIndex(self._candidates_ND, num_threads=num_threads)
        elif not manifest.exact:
            self._index = FaissIndex.open(
                path / INDEX_FILE, num_items=num_items, dim=dim, settings=manifest.search, num_threads=num_threads
            )

    @classmethod
    def open(cls, path: Path, manifest: SnapshotManifest, *, num_threads: int = 1) -> Self:
        """Open a snapshot whose files the store has verified; takes a fraction of a second.

        Args:
            path: The snapshot's folder.
            manifest: Its manifest, as `ArtifactStore.open_snapshot` returns it.
            num_threads: Threads that one search may use.

        Raises:
            ArtefactError: A file is missing or holds another number of items or other widths than the manifest says.
        """
        return cls(path, manifest, num_threads=num_threads)

    @property
    def queries(self) -> Vectors:
        """The users that the recall was measured with at rebuild `[B, Q, D]`.

        Raises:
            ArtefactError: The file is missing or holds vectors of another width.
        """
        return Table(self.path / QUERIES_FILE, dtype=np.float32, shape=(None, None, self.manifest.dim)).array

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """Return the row of each id, -1 for an id that the catalogue does not have."""
        return self._ids.rows(item_ids)

    def item_ids(self, rows: Sequence[int] | Rows) -> list[str]:
        """Return the id of each row.

        Raises:
            IndexError: A row is negative or not below the number of items; so for all methods that take rows.
        """
        return self._ids.item_ids(rows)

    def metadata(self, rows: Sequence[int] | Rows) -> list[Metadata]:
        """Return title, description, image_url, categories (where the item has them) and attributes; do not change."""
        return self._items.metadata(rows)

    def popularity_positions(self, rows: Sequence[int] | Rows) -> Rows:
        """Return each row's position in `popular_rows`."""
        return self._popular_positions_N.take(checked(rows))

    def selection(
        self,
        *,
        categories_any: Sequence[str] = (),
        categories_all: Sequence[str] = (),
        categories_none: Sequence[str] = (),
        attributes: Mapping[str, Sequence[AttributeValue]] | None = None,
    ) -> Selection:
        """Return the rows that pass a filter; the same filter gives the same object for a while.

        Args:
            categories_any: The item has at least one of these; empty: no restriction.
            categories_all: The item has all of these.
            categories_none: The item has none of these.
            attributes: By name the values of which the item has one; 3 and 3.0 are one value, "3" and true are others.
        """
        return self._postings.select(
            categories_any=categories_any,
            categories_all=categories_all,
            categories_none=categories_none,
            attributes=attributes,
        )

    def search(self, queries_BQD: Vectors, *, k: int, allowed: Selection | Mask | None = None) -> tuple[Vectors, Rows]:
        """Return the k best allowed rows of each user, best first, as scores and rows `[B, k]`.

        An item's score is made of its inner products with the user's queries as the manifest's `scorer` says, in
        float32, whatever the index kind. A row appears once. -1 with score -inf fills up when fewer than k rows are
        allowed, and only then.

        Raises:
            ValueError: The queries are not `[B, Q, D]` or not finite, k is below 1, or the mask has another length.
        """
        return self._find_best(queries_BQD, k=k, allowed=self._as_selection(allowed), fallback=self._exact)

    def search_index_alone(self, queries_BQD: Vectors, *, k: int) -> tuple[Vectors, Rows]:
        """Search as `search` does, but never exactly where the index finds too few, to measure what it is worth."""
        return self._find_best(queries_BQD, k=k, allowed=None, fallback=None)

    def _find_best(
        self, queries_BQD: Vectors, *, k: int, allowed: Selection | None, fallback: VectorIndex | None
    ) -> tuple[Vectors, Rows]:
        if queries_BQD.ndim != 3 or queries_BQD.shape[2] != self.manifest.dim:
            raise ValueError(f"queries: shape {queries_BQD.shape}, expected [B, Q, {self.manifest.dim}]")
        if k < 1:
            raise ValueError(f"k: {k} is below 1")
        if not np.isfinite(queries_BQD).all():
            raise ValueError("queries: NaN or infinity")
        return find_best(
            self._index,
            self._candidates_ND,
            queries_BQD,
            k=k,
            refine=self.manifest.search.refine,
            allowed=allowed,
            fallback=fallback,
            scorer=self.manifest.scorer,
        )

    def score(self, queries_QD: Vectors, rows: Sequence[int] | Rows) -> Vectors:
        """Return one user's score of each row `[n]`, as `search` gives it."""
        return score_rows(self._candidates_ND, queries_QD, checked(rows), scorer=self.manifest.scorer)

    def similar(
        self, row: int, *, k: int, part: str | None = None, allowed: Selection | Mask | None = None
    ) -> tuple[Vectors, Rows]:
        """Return up to k rows most like `row`, without it, best first, as cosines and rows.

        Args:
            row: The item.
            k: How many at most.
            part: Compare by the states of this part; None: by candidate vectors.
            allowed: Which rows may be returned.

        Returns:
            Empty arrays when the item does not have the part; items that do not have it are never returned.

        Raises:
            ValueError: The snapshot has no such part.
        """
        (row,) = checked([row]).tolist()
        column = self._column(part)
        own_norm = self._norms_NX[row, column]
        if own_norm == 0:
            return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        return self._like(self._table(part)[row], own_norm, k=k, part=part, allowed=allowed, without=row)

    def like(
        self, vector: Vectors, *, k: int, part: str | None = None, allowed: Selection | Mask | None = None
    ) -> tuple[Vectors, Rows]:
        """Return up to k rows most like an item that is not one of them, as `similar` does.

        Args:
            vector: The state of the part, or the candidate vector; not zero.
            k: How many at most.
            part: As for `similar`.
            allowed: Which rows may be returned.

        Raises:
            ValueError: The snapshot has no such part.
        """
        return self._like(vector, np.linalg.norm(vector), k=k, part=part, allowed=allowed, without=None)

    def _like(
        self,
        vector: Vectors,
        norm: np.floating,
        *,
        k: int,
        part: str | None,
        allowed: Selection | Mask | None,
        without: int | None,
    ) -> tuple[Vectors, Rows]:
        norms_N = self._norms_NX[:, self._column(part)]
        comparable_N = norms_N > 0
        selection = self._as_selection(allowed)
        if selection is not None:
            comparable_N &= selection.mask_N
        if without is not None:
            comparable_N[without] = False
        rows = np.flatnonzero(comparable_N)
        if not rows.size:
            return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        table_NX = self._table(part)
        products = table_NX[rows] @ vector if rows.size * 8 < self.num_items else (table_NX @ vector)[rows]
        cosines = products / (norms_N[rows] * np.float32(norm))
        best = best_first(cosines, rows, k=min(k, rows.size))
        return cosines[best], rows[best]

    def _column(self, part: str | None) -> int:
        if part is None:
            return 0
        if part not in self.parts:
            raise ValueError(f"part: {part!r} is not one of {list(self.parts)}")
        return 1 + self.parts.index(part)

    def _table(self, part: str | None) -> Vectors:
        return self._candidates_ND if part is None else self._states_NS[self._column(part) - 1]

    def _as_selection(self, allowed: Selection | Mask | None) -> Selection | None:
        if allowed is None:
            return None
        mask_N = allowed.mask_N if isinstance(allowed, Selection) else allowed
        if mask_N.shape != (self.num_items,) or mask_N.dtype != np.bool_:
            raise ValueError(f"allowed: {mask_N.dtype} {mask_N.shape}, expected bool [{self.num_items}]")
        return allowed if isinstance(allowed, Selection) else self._postings.known(allowed)

    def close(self) -> None:
        """Let go of all files, those of the ranker among them."""
        ranker: ItemTables | None = vars(self).get("ranker")  # none is left when it was closed already
        if ranker is not None:
            ranker.close()
        super().close()
