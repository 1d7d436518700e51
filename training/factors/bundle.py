"""The files that id-based models bring beside the graphs: learned items and users, and how they came to be."""

import json
from pathlib import Path
from typing import Any

from training.factors.serving import Served
from training.tables import write_known_users, write_warm_items

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
        fields["warm"] = write_warm_items(
            folder, served.warm_ids, served.warm_states_IWS, parts=served.model.warm_parts
        )
    if served.user_ids:
        fields["known_users"] = write_known_users(folder, served.user_ids, served.queries_UD[:, None])
    stages = [report.model_dump() for report in served.reports]
    (folder / STAGES_FILE).write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    return fields
