"""OverlaidServable: a loaded version and its delta, seen as one catalogue. The core asks it as it asks any version.

The index stays as it is: it is searched without the rows that are not shown, the delta's own rows are scored one by
one, and the two are merged. So nothing is ever added to an index that is searched.

Legend of shapes: `N` items of the index, `n` rows of the delta, `B` users, `Q` queries of a user, `D` vector width, `k`
results, `P` parts of an item.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from index.bundle import EncodedItems
from index.features import Mask, Rows
from index.ranking import best_first
from index.selection import Selection as IndexSelection
from service.recommend.servable import Selection
from service.recommend.types import Filter, Vectors
from service.runtime.delta import Delta
from service.runtime.model import LoadedModel, LoadedRanker
from service.runtime.servable import LoadedServable

MAX_EXTRA = 256
"""Up to so many rows that are not shown are found beside the k and taken out; more than that are masked."""

_REMEMBERED = 64
"""Selections that are kept for the next request with the same filter."""

T = TypeVar("T", bound=np.generic)
Y = TypeVar("Y")


class OverlaidModel:
    """A model that knows the items of the delta, too."""

    def __init__(self, model: LoadedModel, encoded: EncodedItems, delta: Delta, *, num_indexed: int) -> None:
        """Put a model and what it has made of the delta's items together; `num_indexed` is N."""
        self._model = model
        self._encoded = encoded
        self._delta = delta
        self._num_indexed = num_indexed
        self.modalities = model.modalities
        self.parts = model.parts
        self.card = model.card
        self.history_length = model.history_length
        self.reads_ages = model.reads_ages
        self.methods = model.methods
        self.method_without_history = model.method_without_history
        self.faithfulness = model.faithfulness
        self.encode_items = model.encode_items
        self.encode_users = model.encode_users
        self.history_with = model.history_with
        self.user_queries = model.user_queries
        self.attribute = model.attribute
        self.decompose = model.decompose
        self.modality_shares = model.modality_shares

    def candidates(self, rows: Rows) -> Vectors:
        """Return candidate vectors `[., D]`."""
        return self._gather(self._model.candidates, self._encoded.candidates, rows)

    def history(self, rows: Rows) -> Vectors:
        """Return the history rows `[., H]`."""
        return self._gather(self._model.history, self._encoded.history, rows)

    def states(self, rows: Rows) -> Vectors:
        """Return the states `[., P, S]`."""
        return self._gather(self._model.states, self._encoded.states, rows)

    def presence(self, rows: Rows) -> Mask:
        """Return which parts each item has `[., P]`."""
        return self._gather(self._model.presence, self._encoded.presence, rows)

    def score(self, queries_QD: Vectors, rows: Rows) -> Vectors:
        """Return one user's score of each row."""
        scores_n: Vectors = self._model.score_vectors(queries_QD[np.newaxis], self.candidates(rows))[0]
        return scores_n

    def _gather(self, of_index: Callable[[Rows], NDArray[T]], of_delta_eX: NDArray[T], rows: Rows) -> NDArray[T]:
        num_indexed = self._num_indexed
        own = rows >= num_indexed
        if not own.any():
            return of_index(rows)
        places = rows.copy()
        places[own] = self._delta.places_n[rows[own] - num_indexed]
        own = places >= num_indexed
        gathered = np.empty((len(rows), *of_delta_eX.shape[1:]), dtype=of_delta_eX.dtype)
        gathered[own] = of_delta_eX[places[own] - num_indexed]
        if not own.all():
            gathered[~own] = of_index(places[~own])
        return gathered


class OverlaidRanker(OverlaidModel):
    """A ranker that can order the items of the delta, too."""

    def __init__(self, ranker: LoadedRanker, encoded: EncodedItems, delta: Delta, *, num_indexed: int) -> None:
        """As `OverlaidModel`."""
        super().__init__(ranker, encoded, delta, num_indexed=num_indexed)
        self.num_candidates = ranker.num_candidates
        self.rerank_cpu_s = ranker.rerank_cpu_s


class OverlaidSelection:
    """Some rows of an overlaid version, none of them hidden."""

    def __init__(self, of_index: IndexSelection, mask_X: Mask) -> None:
        """Take over a mask of all `N + n` rows.

        Args:
            of_index: The same of the index; it may have rows that are not shown.
            mask_X: Has none of them.
        """
        self.of_index = of_index
        self.mask_N = mask_X.view()
        self.mask_N.setflags(write=False)

    @cached_property
    def shown_of_index(self) -> IndexSelection:
        """Rows of the index, without those that are not shown."""
        return IndexSelection(self.mask_N[: self.of_index.mask_N.size])

    def without(self, rows: Sequence[int]) -> "OverlaidSelection":
        """Return a selection that has all of this one but some rows."""
        mask_X = self.mask_N.copy()
        mask_X[np.asarray(rows, dtype=np.int64)] = False
        return OverlaidSelection(IndexSelection(mask_X[: self.of_index.mask_N.size]), mask_X)


class OverlaidServable(OverlaidModel):
    """A version as its delta leaves it. It is open as long as the version is."""

    def __init__(self, base: LoadedServable, delta: Delta) -> None:
        """Put both together. Takes a time that grows with the catalogue: not for the event loop."""
        super().__init__(base, delta.encoded[0], delta, num_indexed=base.num_items)
        self._base = base
        self.delta = delta
        self.version = base.version
        self.ranker: OverlaidRanker | None = None
        if base.ranker is not None:
            self.ranker = OverlaidRanker(base.ranker, delta.encoded[1], delta, num_indexed=base.num_items)
        self.answer_cpu_s = base.answer_cpu_s
        self.retain, self.release = base.retain, base.release
        self.num_items = base.num_items + len(delta)
        self._own_rows = base.num_items + np.flatnonzero(delta.shown_n)
        hidden = base.num_items + np.flatnonzero(~delta.shown_n)
        self.hidden_rows = frozenset(delta.not_shown.tolist() + hidden.tolist())
        self._selections: dict[int, tuple[IndexSelection, OverlaidSelection]] = {}
        self._order()

    def _order(self) -> None:
        """Put the rows of the delta into the order of popularity: changed items where they were, new ones last."""
        delta, base = self.delta, self._base
        shown_n, origins_n = delta.shown_n, delta.origins_n
        rows = np.array(base.popular_rows)
        rows[base.popularity_positions(delta.not_shown)] = -1
        moved = np.flatnonzero(shown_n & (origins_n >= 0))
        positions = base.popularity_positions(origins_n[moved])
        rows[positions] = base.num_items + moved
        self._gaps = np.flatnonzero(rows < 0)
        """Positions of the index's order at which nothing is shown any more, ascending."""
        self._new = np.flatnonzero(shown_n & (origins_n < 0))
        self.popular_rows: Rows = np.concatenate([rows[rows >= 0], base.num_items + self._new])
        self._position_n = np.full(len(delta), self.num_items, dtype=np.int64)
        self._position_n[moved] = self._without_gaps(positions)
        self._position_n[self._new] = base.num_items - self._gaps.size + np.arange(self._new.size)

    def _without_gaps(self, positions: Rows) -> Rows:
        return positions - np.searchsorted(self._gaps, positions)

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """Return the row of each id, -1 for an unknown or deleted one; a hidden item has one."""
        rows = self._base.rows(item_ids)
        row_of = self.delta.row_of
        for place, item_id in enumerate(item_ids):
            row = row_of.get(item_id)
            if row is not None:
                rows[place] = row
        return rows

    def item_ids(self, rows: Rows) -> Sequence[str]:
        """Return the id of each row."""
        return self._described(rows, self._base.item_ids, self.delta.item_ids)

    def metadata(self, rows: Rows) -> Sequence[Mapping[str, object]]:
        """Return what is said of each row."""
        return self._described(rows, self._base.metadata, self.delta.metadata)

    def _described(self, rows: Rows, of_index: Callable[[Rows], Sequence[Y]], of_delta: Sequence[Y]) -> list[Y]:
        own = rows >= self._base.num_items
        if not own.any():
            return list(of_index(rows))
        indexed = iter(of_index(rows[~own]))
        first = self._base.num_items
        return [of_delta[row - first] if row >= first else next(indexed) for row in rows.tolist()]

    def popularity_positions(self, rows: Rows) -> Rows:
        """Return each row's position in `popular_rows`; the number of items for one that is not shown."""
        first = self._base.num_items
        own = rows >= first
        positions = np.empty(rows.shape, dtype=np.int64)
        positions[own] = self._position_n[rows[own] - first]
        indexed = rows[~own]
        positions[~own] = np.where(
            np.isin(indexed, self.delta.not_shown),
            self.num_items,
            self._without_gaps(self._base.popularity_positions(indexed)),
        )
        return positions

    def select(self, restriction: Filter) -> Selection:
        """Return the rows that pass and are shown; the same filter gives the same object for a while."""
        of_index = cast("IndexSelection", self._base.select(restriction))
        known = self._selections.get(id(of_index))
        if known is not None:
            return known[1]
        mask_X = np.concatenate([of_index.mask_N, self.delta.passing(restriction) & self.delta.shown_n])
        mask_X[self.delta.not_shown] = False
        selection = OverlaidSelection(of_index, mask_X)
        if len(self._selections) >= _REMEMBERED:
            self._selections = {}
        self._selections[id(of_index)] = of_index, selection  # held, so that nothing else gets its id
        return selection

    @cached_property
    def _all_shown(self) -> OverlaidSelection:
        return cast("OverlaidSelection", self.select(Filter()))

    def search(self, queries_BQD: Vectors, *, k: int, allowed: Selection | None = None) -> tuple[Vectors, Rows]:
        """Return the best k allowed rows of each user, best first, as scores `[B, k]` and rows `[B, k]`."""
        chosen = cast("OverlaidSelection | None", allowed)
        scores_BX, rows_BX = self._search_index(queries_BQD, k, chosen)
        own = self._own(chosen)
        if own.size:
            candidates_nD = self.candidates(own)
            own_scores_Bn = self._model.score_vectors(queries_BQD, candidates_nD)
            scores_BX = np.concatenate([scores_BX, own_scores_Bn], axis=1)
            rows_BX = np.concatenate([rows_BX, np.broadcast_to(own, own_scores_Bn.shape)], axis=1)
        scores_Bk = np.full((len(queries_BQD), k), -np.inf, dtype=np.float32)
        rows_Bk = np.full((len(queries_BQD), k), -1, dtype=np.int64)
        for user, (scores, rows) in enumerate(zip(scores_BX, rows_BX, strict=True)):
            found = np.flatnonzero(rows >= 0)
            best = found[best_first(scores[found], rows[found], k=k)] if found.size else found
            scores_Bk[user, : best.size], rows_Bk[user, : best.size] = scores[best], rows[best]
        return scores_Bk, rows_Bk

    def _search_index(self, queries_BQD: Vectors, k: int, allowed: OverlaidSelection | None) -> tuple[Vectors, Rows]:
        not_shown = self.delta.not_shown
        if not_shown.size > MAX_EXTRA:
            selection = (allowed or self._all_shown).shown_of_index
            return self._base.search(queries_BQD, k=min(k, self._num_indexed), allowed=selection)
        k = min(k + not_shown.size, self._num_indexed)
        scores_Bk, rows_Bk = self._base.search(queries_BQD, k=k, allowed=None if allowed is None else allowed.of_index)
        if not_shown.size:
            rows_Bk = np.where(np.isin(rows_Bk, not_shown), -1, rows_Bk)
        return scores_Bk, rows_Bk

    def _own(self, allowed: OverlaidSelection | None) -> Rows:
        """Return the rows of the delta that may be answered."""
        return self._own_rows if allowed is None else self._own_rows[allowed.mask_N[self._own_rows]]

    def similar(
        self, row: int, *, k: int, modality: str | None, allowed: Selection | None = None
    ) -> tuple[Vectors, Rows]:
        """Return the k rows most like `row`, by the fused vector or by one part."""
        chosen = cast("OverlaidSelection", allowed or self._all_shown)
        (vector,), (norm,) = self._vectors(np.array([row]), modality)
        if norm == 0:
            return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        scores, rows = self._base.like(vector, k=k, part=modality, allowed=chosen.shown_of_index)
        own = self._own(chosen)
        vectors_nX, norms_n = self._vectors(own, modality)
        comparable = norms_n > 0
        cosines_n = vectors_nX[comparable] @ vector / (norms_n[comparable] * norm)
        scores, rows = np.concatenate([scores, cosines_n]), np.concatenate([rows, own[comparable]])
        best = best_first(scores, rows, k=k)
        return scores[best], rows[best]

    def _vectors(self, rows: Rows, modality: str | None) -> tuple[Vectors, Vectors]:
        """Return what rows are compared by, and its length, 0 where an item does not have it."""
        if modality is None:
            vectors = self.candidates(rows)
            return vectors, np.linalg.norm(vectors, axis=1)
        column = self.parts.index(modality)
        vectors = self.states(rows)[:, column]
        return vectors, np.linalg.norm(vectors, axis=1) * self.presence(rows)[:, column]
