"""Changes of the catalogue, as a caller asks for them: checked against what answers, kept, and shown at once."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.recommend.deadline import Deadline
from service.recommend.errors import InvalidQuery, ItemNotFound, RecommendError, StoreUnavailable
from service.recommend.history import check_vectors
from service.recommend.items import Catalogue, ChangeKind, ItemChange, ItemChanges, encode_fields
from service.recommend.servable import Servable, ServableSource
from service.recommend.types import Filter, ItemId, Vectors

_ANY = Filter()


@dataclass(frozen=True, slots=True)
class ItemEdit:
    """What a caller wants to become of one item."""

    item_id: ItemId
    kind: ChangeKind
    metadata: Mapping[str, object] = field(default_factory=dict)
    """What is said of title, description, image_url, categories and attributes; None in a patch: it has none."""
    available: bool | None = None
    modalities: Mapping[str, Vectors] = field(default_factory=dict)
    """Raw vectors `[D_m]`; only of a put."""


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """What is known of an item."""

    item_id: ItemId
    available: bool
    metadata: Mapping[str, object]
    modalities: tuple[str, ...]
    """Those that it has."""


class CatalogueItems:
    """Reads and changes single items. Built once; used on the event loop."""

    def __init__(self, *, servables: ServableSource, catalogue: Catalogue, changes: ItemChanges) -> None:
        self._servables = servables
        self._catalogue = catalogue
        self._changes = changes

    async def get(self, item_id: ItemId) -> CatalogueItem:
        """Return what is known of an item, hidden or not.

        Raises:
            ItemNotFound: The catalogue has no such item.
            NoServable: No version is loaded.
            StoreUnavailable: It can not be told whether the item has changed.
        """
        with self._servables.acquire() as servable:
            view = await self._catalogue.fresh(servable)
            rows = view.rows([item_id])
            if rows[0] < 0:
                raise ItemNotFound(item_id)
            has = view.presence(rows)[0].tolist()
            return CatalogueItem(
                item_id=item_id,
                available=bool(view.select(_ANY).mask_N[rows[0]]),
                metadata=view.metadata(rows)[0],
                modalities=tuple(name for name, present in zip(view.modalities, has, strict=False) if present),
            )

    async def apply(self, edits: Sequence[ItemEdit], *, deadline: Deadline) -> list[int | RecommendError]:
        """Keep changes, durably, and return each one's number, or why it was refused; a bad one spoils only itself.

        The next answer shows what was kept, whatever process gives it.

        Raises:
            NoServable: No version is loaded, so nothing can be checked.
            ChangesFull: More items have changed than are kept; nothing was changed.
            StoreUnavailable: Nothing of this call can be taken as kept; the same call may be repeated safely.
        """
        with self._servables.acquire() as servable:
            view = await self._catalogue.fresh(servable)
            refused = _refused(edits, view)
            kept = [edit for edit, error in zip(edits, refused, strict=True) if error is None]
            seqs = iter(await self._changes.change([_change(edit) for edit in kept]))
            results: list[int | RecommendError] = [
                error or next(seqs) or ItemNotFound(edit.item_id)  # None: somebody else has deleted it meanwhile
                for edit, error in zip(edits, refused, strict=True)
            ]
            done = [result for result in results if isinstance(result, int)]
            if done:
                await self._show(servable, max(done), deadline)
            return results

    async def _show(self, servable: Servable, seq: int, deadline: Deadline) -> None:
        """Encode now what the next answer would have to encode; it is kept already, so this may fail."""
        try:
            async with asyncio.timeout(max(deadline.remaining_s(), 0.0)):
                await self._catalogue.fresh(servable, seq)
        except (StoreUnavailable, TimeoutError):
            return


def _refused(edits: Sequence[ItemEdit], view: Servable) -> list[RecommendError | None]:
    """Return what is wrong with each edit, after those before it."""
    rows = view.rows([edit.item_id for edit in edits]).tolist()
    exists = {edit.item_id: row >= 0 for edit, row in zip(edits, rows, strict=True)}
    refused: list[RecommendError | None] = []
    for edit in edits:
        error: RecommendError | None = None
        if edit.kind == "put":
            try:
                check_vectors(edit.modalities, view.modalities, pointer="/modalities")
            except InvalidQuery as wrong:
                error = wrong
        elif not exists[edit.item_id]:
            error = ItemNotFound(edit.item_id)
        if error is None:
            exists[edit.item_id] = edit.kind != "delete"
        refused.append(error)
    return refused


def _change(edit: ItemEdit) -> ItemChange:
    if edit.kind == "delete":
        return ItemChange(edit.item_id, "delete")
    fields = encode_fields(edit.metadata, available=edit.available, modalities=edit.modalities)
    return ItemChange(edit.item_id, edit.kind, fields)
