"""Jobs about the changes of the catalogue: export them, and trim what the indexes have folded in.

Both go on in pieces, so that whoever keeps or reads changes meanwhile waits for one of them at most.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from api_schemas.item_records import ItemRecordsEnd
from index.store import ArtifactStore
from index.trimmed import folded_in_use, note_trimmed, trimmed_to
from service.recommend.items import ItemChanges, state_of

_PAGE = 200
_TRIM_STEP = 1_000


def _go_on() -> None: ...


async def export_items(changes: ItemChanges, file: Path, *, check: Callable[[], None] = _go_on) -> ItemRecordsEnd:
    """Write the records of all changed items to a file, which is there whole or not at all; return its end.

    Args:
        changes: Where they are.
        file: What is written.
        check: Called before each piece; what it raises ends the work.

    Raises:
        StoreUnavailable: The changes can not be read.
        OSError: The file can not be written.
    """
    item_ids: set[str] = set()
    seq = 0
    partial = file.with_name(f"{file.name}.part")
    with partial.open("w", encoding="utf-8") as out:
        while True:
            check()
            found = await changes.changed_since(seq, limit=_PAGE)
            for record in found.records:
                state = state_of(record)
                line = {"item_id": record.item_id, "seq": record.seq, "op": record.kind, **state.metadata}
                if state.modalities:
                    line["modalities"] = {name: vector.tolist() for name, vector in state.modalities.items()}
                if state.available is not None:
                    line["available"] = state.available
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                item_ids.add(record.item_id)
                seq = record.seq
            if len(found.records) < _PAGE:
                break
        end = ItemRecordsEnd(changes_seq=found.last_seq, trimmed_to=found.trimmed_to, num_items=len(item_ids))
        out.write(end.model_dump_json() + "\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    return end


async def trim_items(changes: ItemChanges, store: ArtifactStore) -> tuple[int, int]:
    """Forget the changes that all indexes have folded in which answer now, or would after a rollback.

    Returns:
        The number up to which they are forgotten, and how many items are left.

    Raises:
        ArtefactError: One of the indexes can not be read.
        OSError: That they are forgotten can not be noted in the store of versions.
        StoreUnavailable: The changes can not be reached.
        ValueError: There is no current index, or it has folded in changes of another store.
    """
    if store.current() is None:
        raise ValueError(f"{store.root}: no index is current")
    # First: should we be killed between the two, a rebuild is refused that could be done, not the other way round.
    note_trimmed(store, up_to=folded_in_use(store))
    return await trim_noted(changes, store)


async def trim_noted(changes: ItemChanges, store: ArtifactStore) -> tuple[int, int]:
    """Forget the changes of which the store of versions says that they may be; returns and raises as `trim_items`."""
    up_to = trimmed_to(store)
    found = await changes.changed_since(up_to, limit=1)
    if up_to <= found.last_seq:  # else all of it is refused, before anything is forgotten
        for seq in range(found.trimmed_to + _TRIM_STEP, up_to, _TRIM_STEP):
            await changes.trim_changes(up_to=seq)
    return up_to, await changes.trim_changes(up_to=up_to)
