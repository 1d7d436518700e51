"""A catalogue that changes, kept twice: as the service is told of it, and as a plain dictionary of what there is."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from index.dataset import Dataset
from service.recommend.items import ItemChange, ItemRecord, ItemRecords, encode_fields
from service.recommend.types import Filter, ItemId

NUM_ITEMS = 60
"""Of the toy data set."""

Change: TypeAlias = tuple[Any, ...]

ids = st.sampled_from([f"i{number:04d}" for number in range(0, NUM_ITEMS, 4)] + ["new1", "new2", "new3"])
metadata = st.fixed_dictionaries(
    {}, optional={"title": st.sampled_from(["a", "b"]), "categories": st.sampled_from([["travel"], ["x", "y"], []])}
)
changes = st.one_of(
    st.tuples(st.just("put"), ids, st.integers(0, NUM_ITEMS - 1), metadata, st.booleans()),
    st.tuples(st.just("patch"), ids, metadata, st.sampled_from([None, True, False])),
    st.tuples(st.just("delete"), ids),
)


@dataclass
class Log:
    """The store in a list; keeps one record an item, as the real ones do."""

    records: dict[str, ItemRecord] = field(default_factory=dict)
    seq: int = 0

    def change(self, change: ItemChange) -> None:
        kind, fields, known = change.kind, dict(change.fields), self.records.get(change.item_id)
        if kind == "patch" and known is not None:
            kind, fields = known.kind, {**known.fields, **fields}
        self.seq += 1
        self.records[change.item_id] = ItemRecord(change.item_id, self.seq, kind, fields)

    async def changes_seq(self) -> int:
        return self.seq

    async def changed_since(self, seq: int, *, limit: int) -> ItemRecords:
        later = sorted((one for one in self.records.values() if one.seq > seq), key=lambda one: one.seq)
        return ItemRecords(tuple(later[:limit]), self.seq, 0, len(self.records))


@dataclass
class World:
    """What there is: the oracle."""

    row_like: dict[str, int]
    """By item the row of the data set whose vectors it has."""
    metadata: dict[str, dict[str, Any]]
    hidden: set[str] = field(default_factory=set)
    log: Log = field(default_factory=Log)
    """What the service is told of it."""

    @classmethod
    def of(cls, data: Dataset) -> "World":
        """Return it as the data set has it."""
        items = data.items().to_pylist()
        return cls({item["item_id"]: row for row, item in enumerate(items)}, {one["item_id"]: one for one in items})

    def passing(self, restriction: Filter) -> set[str]:
        """Return what is not hidden and passes a filter."""
        return {
            item_id
            for item_id, said in self.metadata.items()
            if item_id not in self.hidden and _passes(said, restriction)
        }

    def change(self, data: Dataset, what: Change) -> None:
        """Change an item, here and in the log; the service refuses to change one that is not there."""
        kind, item_id = what[0], ItemId(what[1])
        if kind == "put":
            _, _, row, said, available = what
            raw = {
                name: np.asarray(data.features(name)[row], np.float32)
                for name in data.modality_names
                if data.presence(name)[row]
            }
            self.log.change(ItemChange(item_id, "put", encode_fields(said, available=available, modalities=raw)))
            self.row_like[item_id], self.metadata[item_id] = row, dict(said)
            self._show(item_id, available)
        elif item_id in self.row_like and kind == "patch":
            _, _, said, available = what
            self.log.change(ItemChange(item_id, "patch", encode_fields(said, available=available)))
            self.metadata[item_id] = {**self.metadata[item_id], **said}
            if available is not None:
                self._show(item_id, available)
        elif item_id in self.row_like:
            self.log.change(ItemChange(item_id, "delete"))
            del self.row_like[item_id], self.metadata[item_id]
            self.hidden.discard(item_id)

    def _show(self, item_id: str, available: bool) -> None:
        (self.hidden.discard if available else self.hidden.add)(item_id)


def _passes(said: dict[str, Any], restriction: Filter) -> bool:
    categories = set(said.get("categories") or ())
    return (
        (not restriction.categories_any or not categories.isdisjoint(restriction.categories_any))
        and categories.issuperset(restriction.categories_all)
        and categories.isdisjoint(restriction.categories_none)
        and all(said.get(name) in values for name, values in restriction.attributes.items())
    )
