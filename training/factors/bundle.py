"""The files that id-based models bring beside the graphs: learned items and users, and how they came to be."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from api_schemas.manifest import KnownUsers, WarmItems
from training.factors.serving import Served

WARM_IDS, WARM_STATES = "warm_items.arrow", "warm_states.npy"
USER_IDS, USER_QUERIES = "known_users.arrow", "known_queries.npy"
STAGES_FILE = "stages.json"


def write_tables(served: Served, folder: Path) -> dict[str, Any]:
    """Write learned items, users and the stages' reports into a folder; return the manifest's fields about them.

    Raises:
        OSError: The disk is full or fails.
    """
    fields: dict[str, Any] = {
        "fold_in": served.fold_in_figures,
        "cold_items": served.cold,
        "modality_mask": served.mask,
    }
    if served.warm_ids:
        _write_ids(folder / WARM_IDS, "item_id", served.warm_ids)
        np.save(folder / WARM_STATES, np.ascontiguousarray(served.warm_states_IWS), allow_pickle=False)
        fields["warm"] = WarmItems(
            ids=WARM_IDS, states=WARM_STATES, parts=served.model.warm_parts, num_items=len(served.warm_ids)
        )
    if served.user_ids:
        _write_ids(folder / USER_IDS, "user_id", served.user_ids)
        np.save(folder / USER_QUERIES, np.ascontiguousarray(served.queries_UD[:, None]), allow_pickle=False)
        fields["known_users"] = KnownUsers(ids=USER_IDS, queries=USER_QUERIES, num_users=len(served.user_ids))
    stages = [report.model_dump() for report in served.reports]
    (folder / STAGES_FILE).write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    return fields


def _write_ids(path: Path, column: str, ids: Sequence[str]) -> None:
    table = pa.table({column: pa.array(ids, pa.string())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
