"""Delta: what has changed of one version's catalogue since its index was built. Immutable; made off the event loop.

A version with N items and a delta of n has N + n rows. A changed item has a row of its own after those of the index,
and its row there, if it has one, is not shown any more. Where a row's vectors are is its place: below N a row of the
index (of an item whose vectors are as they were), from N on one of the items that were encoded for the delta.

Legend of shapes: `N` items of the index, `n` rows of the delta, `e` items that were encoded for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from index.bundle import EncodedItems
from index.features import Mask, Rows
from index.postings import MAX_TEXT_CHARS, attribute_key, category_key
from service.recommend.items import ItemState
from service.recommend.types import Filter, ItemId, Vectors
from service.runtime.model import LoadedModel
from service.runtime.servable import LoadedServable

ITEM_VECTORS_IGNORED = "item_vectors_ignored"
ITEMS_NOT_ENCODED = "items_not_encoded"

_OWN_FIELDS = ("title", "description", "image_url", "categories")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """The changed items of one version."""

    seq: int
    """All changes up to here are in it."""
    item_ids: tuple[ItemId, ...]
    """Of its own rows."""
    metadata: tuple[Mapping[str, object], ...]
    """The same."""
    shown_n: Mask
    """Which of its own rows may be answered."""
    origins_n: Rows
    """The item's row in the index, -1 for a new one."""
    places_n: Rows
    """Where the row's vectors are."""
    not_shown: Rows
    """Rows of the index that are not answered, ascending: deleted, hidden, or replaced by a row of the delta."""
    row_of: Mapping[str, int]
    """Row of each item whose row is not the index's; -1: deleted."""
    postings: Mapping[str, Rows]
    """Positions of its own rows by category and attribute."""
    encoded: tuple[EncodedItems, ...]
    """By model: the retriever, then the ranker if there is one; each of `e` items."""
    encoded_seqs: Mapping[tuple[str, int], int]
    """Place among the encoded of an item as one change left it: what need not be encoded again."""

    def __len__(self) -> int:
        """Return the number of its own rows."""
        return len(self.item_ids)

    def passing(self, restriction: Filter) -> Mask:
        """Return which of its own rows pass a filter `[n]`."""
        passing_n = np.ones(len(self), dtype=np.bool_)
        if restriction.categories_any:
            passing_n &= self._having(map(category_key, restriction.categories_any))
        for name in restriction.categories_all:
            passing_n &= self._having([category_key(name)])
        if restriction.categories_none:
            passing_n &= ~self._having(map(category_key, restriction.categories_none))
        for name, values in restriction.attributes.items():
            passing_n &= self._having(attribute_key(name, value) for value in values)
        return passing_n

    def _having(self, keys: Iterable[str]) -> Mask:
        having_n = np.zeros(len(self), dtype=np.bool_)
        for key in keys:
            if key in self.postings:
                having_n[self.postings[key]] = True
        return having_n


def make_delta(base: LoadedServable, states: Sequence[ItemState], *, seq: int, previous: Delta | None) -> Delta | None:
    """Return what the changes make of a version; None when they change nothing of it.

    Args:
        base: The version, held open by the caller.
        states: Of all changed items.
        seq: Of the latest change.
        previous: The delta of the same version before.
    """
    builder = _Builder(base)
    rows = base.rows([state.item_id for state in states]).tolist()
    for state, row in zip(states, rows, strict=True):
        builder.add(state, row)
    return builder.finish(seq, previous) if builder.changes_anything else None


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    state: ItemState
    origin: int
    metadata: Mapping[str, object]


class _Builder:
    """Collects what becomes a delta."""

    def __init__(self, base: LoadedServable) -> None:
        self._base = base
        self._entries: list[_Entry] = []
        self._not_shown: list[int] = []
        self._row_of: dict[str, int] = {}

    @property
    def changes_anything(self) -> bool:
        return bool(self._entries or self._not_shown)

    def add(self, state: ItemState, row: int) -> None:
        """Take over what has become of an item that the index has in a row, or not (-1)."""
        hidden = state.available is False
        if state.seq <= self._base.folded_seq or (state.kind == "patch" and not state.metadata):
            if hidden and row >= 0:
                self._not_shown.append(row)  # and still found by its id: a history may hold it
            return
        if state.kind == "patch" and row < 0:
            return  # of an item that this version does not know
        if row >= 0:
            self._not_shown.append(row)
        if state.kind != "delete":
            known = self._base.metadata(np.array([row]))[0] if state.kind == "patch" else {}
            self._entries.append(_Entry(state, row, _amended(known, state.metadata)))
        elif row >= 0:
            self._row_of[state.item_id] = -1

    def finish(self, seq: int, previous: Delta | None) -> Delta:
        """Encode what has to be, and put all together."""
        base, put = self._base, [entry.state for entry in self._entries if entry.state.kind == "put"]
        models: tuple[LoadedModel, ...] = (base,) if base.ranker is None else (base, base.ranker)
        encoded, finite_e = _encode(models, put, previous)
        usable = {state.item_id for state, is_finite in zip(put, finite_e.tolist(), strict=True) if is_finite}
        if len(usable) < len(put):
            _log.error(ITEMS_NOT_ENCODED, index_version=base.version.index_version, num_items=len(put) - len(usable))
        place_of = {state.item_id: base.num_items + place for place, state in enumerate(put)}
        entries = [one for one in self._entries if one.state.kind == "patch" or one.state.item_id in usable]
        row_of = dict(self._row_of)
        row_of |= {entry.state.item_id: base.num_items + place for place, entry in enumerate(entries)}
        lost = [one for one in self._entries if one.state.kind == "put" and one.state.item_id not in usable]
        row_of |= {one.state.item_id: -1 for one in lost}
        return Delta(
            seq=seq,
            item_ids=tuple(entry.state.item_id for entry in entries),
            metadata=tuple(entry.metadata for entry in entries),
            shown_n=np.array([entry.state.available is not False for entry in entries], dtype=np.bool_),
            origins_n=np.array([entry.origin for entry in entries], dtype=np.int64),
            places_n=np.array([place_of.get(one.state.item_id, one.origin) for one in entries], dtype=np.int64),
            not_shown=np.unique(np.array(self._not_shown, dtype=np.int64)),
            row_of=row_of,
            postings=_postings([entry.metadata for entry in entries]),
            encoded=encoded,
            encoded_seqs={(state.item_id, state.seq): place for place, state in enumerate(put)},
        )


def _encode(
    models: Sequence[LoadedModel], states: Sequence[ItemState], previous: Delta | None
) -> tuple[tuple[EncodedItems, ...], Mask]:
    """Return what each model makes of the items, and of which of them all models make something finite `[e]`."""
    known = {} if previous is None else previous.encoded_seqs
    old = np.array([known.get((state.item_id, state.seq), -1) for state in states], dtype=np.int64)
    fresh = np.flatnonzero(old < 0)
    new = [states[place] for place in fresh.tolist()]
    item_ids = [state.item_id for state in new]
    finite_e = np.ones(len(states), dtype=np.bool_)
    encoded: list[EncodedItems] = []
    for number, model in enumerate(models):
        made = model.encode_catalogue(item_ids, [_fitting(model, state) for state in new])
        if previous is not None and fresh.size < len(states):
            made = _merged(made, previous.encoded[number], fresh=fresh, old=old)
        for values in (made.candidates, made.history, made.states):
            finite_e &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        encoded.append(made)
    return tuple(encoded), finite_e


def _fitting(model: LoadedModel, state: ItemState) -> Mapping[str, Vectors]:
    """Return the vectors that a model can read: it may be another model than the one they were sent for."""
    fitting = {
        name: vector for name, vector in state.modalities.items() if vector.shape == (model.modalities.get(name),)
    }
    if len(fitting) < len(state.modalities):
        ignored = sorted(state.modalities.keys() - fitting.keys())
        _log.warning(
            ITEM_VECTORS_IGNORED, item_id=state.item_id, modalities=ignored, model=model.card.version.model_version
        )
    return fitting


def _merged(made: EncodedItems, earlier: EncodedItems, *, fresh: Rows, old: Rows) -> EncodedItems:
    kept = np.flatnonzero(old >= 0)

    def merged(new: np.ndarray, before: np.ndarray) -> np.ndarray:
        both = np.empty((len(old), *new.shape[1:]), dtype=new.dtype)
        both[fresh], both[kept] = new, before[old[kept]]
        return both

    return EncodedItems(
        merged(made.candidates, earlier.candidates),
        merged(made.history, earlier.history),
        merged(made.states, earlier.states),
        merged(made.presence, earlier.presence),
    )


def _amended(known: Mapping[str, object], said: Mapping[str, object]) -> Mapping[str, object]:
    """Return an item's metadata, in the form that the index has it in, with what is said of it."""
    both = {**known, **said}
    document = {name: both[name] for name in _OWN_FIELDS if both.get(name) is not None}
    document["attributes"] = both.get("attributes") or {}
    return document


def _postings(documents: Sequence[Mapping[str, object]]) -> dict[str, Rows]:
    found: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        categories, attributes = document.get("categories"), document["attributes"]
        keys = {category_key(name) for name in categories} if isinstance(categories, list) else set()
        if isinstance(attributes, dict):
            keys |= {
                attribute_key(name, value)
                for name, value in attributes.items()
                if not isinstance(value, str) or len(value) <= MAX_TEXT_CHARS
            }
        for key in keys:
            found.setdefault(key, []).append(place)
    return {key: np.array(places, dtype=np.int64) for key, places in found.items()}
