"""Changes of the catalogue between two rebuilds: what they are, how they are kept, and the port that keeps them.

Of each item the store keeps one record, its latest state: a change replaces or amends it and gives it a new sequence
number. So what is kept grows with the items that have changed, not with the changes.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from service.recommend.servable import Servable
from service.recommend.types import ItemId, Vectors

ChangeKind = Literal["put", "patch", "delete"]

METADATA_FIELDS = ("title", "description", "image_url", "categories", "attributes")


@dataclass(frozen=True, slots=True)
class ItemChange:
    """What shall become of one item."""

    item_id: ItemId
    kind: ChangeKind
    """put: it is what the fields say and nothing else; patch: these fields of it are new; delete: it is gone."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """JSON by name of the field, as `encode_fields` writes it."""


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """The latest state of one changed item. A patch is one of whatever the index has under this id."""

    item_id: ItemId
    seq: int
    """Of the latest change."""
    kind: ChangeKind
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ItemRecords:
    """Some of the records, by sequence number."""

    records: tuple[ItemRecord, ...]
    last_seq: int
    """Of the latest change of any item; 0: there has been none."""
    trimmed_to: int
    """Records up to here that said more than that an item is hidden may have been forgotten."""
    num_records: int
    """How many are kept in all."""


class ItemChanges(Protocol):
    """Keeps changes of the catalogue. What was acknowledged is durable, and every process reads it at once.

    Every method raises `StoreUnavailable` when the store does not answer in its time limit, or answers with an error;
    the same call may then be repeated safely.
    """

    async def change(self, changes: Sequence[ItemChange]) -> tuple[int | None, ...]:
        """Keep changes, all or none, and return each one's sequence number; None for a patch of a deleted item.

        Raises:
            ChangesFull: There would be records of more items than are kept; nothing was changed.
        """
        ...

    async def changed_since(self, seq: int, *, limit: int) -> ItemRecords:
        """Return the records with a sequence number above `seq`, the lowest first, at most `limit`."""
        ...

    async def changes_seq(self) -> int:
        """Return the sequence number of the latest change, 0 when there has been none."""
        ...

    async def trim_changes(self, *, up_to: int) -> int:
        """Forget records that every index in use has folded in; return how many are left.

        That an item is hidden is never folded in, so of such a record this much stays.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files; idempotent."""
        ...


class Catalogue(Protocol):
    """Shows a loaded version with all that has changed since it was built. Used on the event loop."""

    def at(self, servable: Servable, seq: int) -> Servable | None:
        """Return the version with all changes up to `seq`; None when not all of them have been read here yet."""
        ...

    def latest(self, servable: Servable) -> Servable:
        """Return the version with all changes that have been read here."""
        ...

    async def fresh(self, servable: Servable, seq: int | None = None) -> Servable:
        """Read what is missing up to `seq`, or up to the latest change, and return the version with it.

        Raises:
            StoreUnavailable: The changes can not be read now.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ItemState:
    """A record as the service works with it."""

    item_id: ItemId
    seq: int
    kind: ChangeKind
    available: bool | None
    """None: nothing is said."""
    modalities: Mapping[str, Vectors]
    """Raw vectors `[D_m]` by modality."""
    metadata: Mapping[str, object]
    """What is said of `METADATA_FIELDS`; None: the item has no such field."""


def encode_fields(
    metadata: Mapping[str, object], *, available: bool | None = None, modalities: Mapping[str, Vectors] | None = None
) -> dict[str, str]:
    """Return the fields of a change; vectors as base64 of their float32 numbers, a quarter of their size in JSON."""
    fields = {name: _json(value) for name, value in metadata.items()}
    if available is not None:
        fields["available"] = _json(available)
    if modalities:
        fields["modalities"] = _json(
            {name: base64.b64encode(vector.astype("<f4").tobytes()).decode() for name, vector in modalities.items()}
        )
    return fields


def state_of(record: ItemRecord) -> ItemState:
    """Read a record."""
    fields = record.fields
    return ItemState(
        item_id=record.item_id,
        seq=record.seq,
        kind=record.kind,
        available=json.loads(fields["available"]) if "available" in fields else None,
        modalities={
            name: np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32, copy=False)
            for name, text in json.loads(fields.get("modalities", "{}")).items()
        },
        metadata={name: json.loads(fields[name]) for name in METADATA_FIELDS if name in fields},
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
