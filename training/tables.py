"""Tables of known items and users that a bundle brings beside its graphs: ids in an Arrow file, numbers in a `.npy`.

Legend: `I` items, `U` users, `W` parts that are learned for each item, `S` state width, `D` width, `Q` queries.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from api_schemas.manifest import KnownUsers, WarmItems

WARM_IDS, WARM_STATES = "warm_items.arrow", "warm_states.npy"
USER_IDS, USER_QUERIES = "known_users.arrow", "known_queries.npy"


def write_warm_items(
    folder: Path, item_ids: Sequence[str], states_IWS: NDArray[np.float32], *, parts: Sequence[str]
) -> WarmItems:
    """Write what is learned of single items; return what the manifest says of it.

    Raises:
        OSError: The disk is full or fails.
    """
    _write(folder / WARM_IDS, "item_id", item_ids)
    np.save(folder / WARM_STATES, np.ascontiguousarray(states_IWS), allow_pickle=False)
    return WarmItems(ids=WARM_IDS, states=WARM_STATES, parts=list(parts), num_items=len(item_ids))


def write_known_users(folder: Path, user_ids: Sequence[str], queries_UQD: NDArray[np.float32]) -> KnownUsers:
    """Write the learned queries of users; return what the manifest says of them.

    Raises:
        OSError: The disk is full or fails.
    """
    _write(folder / USER_IDS, "user_id", user_ids)
    np.save(folder / USER_QUERIES, np.ascontiguousarray(queries_UQD), allow_pickle=False)
    return KnownUsers(ids=USER_IDS, queries=USER_QUERIES, num_users=len(user_ids))


def _write(path: Path, column: str, ids: Sequence[str]) -> None:
    table = pa.table({column: pa.array(ids, pa.string())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
