"""A small dataset with a known right answer: a checkerboard in three modalities.

Every item has one style in each modality, drawn independently: a style of picture, a vocabulary, a category. Every
user is driven by one modality and clicks only items of one style in it. So a model that has learned anything ranks
the unseen items of that style first, and the modality that drove the user is known. `truth(...)` gives both.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.dataset import TRUTH_FILE
from index.dataset_write import DatasetWriter

NUM_STYLES = 3
EVENTS_PER_USER = 12
MODALITIES = {"visual": 32, "text": 24, "category": NUM_STYLES}
CATEGORIES = ("travel", "garden", "music")
BRANDS = ("acme", "blue", "cedar")
START = 1_600_000_000  # seconds


@dataclass(frozen=True)
class Truth:
    """What the toy was made of: rows of users and items as in the files."""

    user_ids: list[str]
    user_modality: list[str]
    user_style: np.ndarray  # [U]
    item_style: dict[str, np.ndarray]  # modality -> [N]; -1 where the item lacks it


def make_dataset(path: Path, *, num_users: int = 120, num_items: int = 60, seed: int = 0) -> Path:
    """Write the toy to `path` and return it; the same arguments give the same bytes. Takes well under a second."""
    rng = np.random.default_rng(seed)
    item_ids = [f"i{row:04d}" for row in range(num_items)]
    styles = {name: rng.permutation(np.arange(num_items) % NUM_STYLES) for name in MODALITIES}
    rows = np.arange(num_items)
    styles["visual"][rows % 20 == 7] = -1  # a few items lack a picture, a few others a text
    styles["text"][rows % 20 == 13] = -1
    items = pa.table(
        {
            "item_id": item_ids,
            "title": [f"Item {row} ({CATEGORIES[styles['category'][row]]})" for row in rows],
            "description": [f"picture style {styles['visual'][row]}, words {styles['text'][row]}" for row in rows],
            "image_url": [f"https://example.test/{item_id}.png" for item_id in item_ids],
            "categories": [[CATEGORIES[styles["category"][row]]] for row in rows],
            "year": pa.array(1990 + rows % 30, pa.int64()),
            "brand": [BRANDS[row % len(BRANDS)] for row in rows],
            "available": [bool(row % 10) for row in rows],
        }
    )
    with DatasetWriter(path, name="toy", description="Checkerboard with a known right answer") as writer:
        writer.add_items(items)
        for name, dim in MODALITIES.items():
            present = styles[name] >= 0
            centres = rng.standard_normal((NUM_STYLES, dim)) if name != "category" else np.eye(NUM_STYLES)
            noise = 0.25 * rng.standard_normal((num_items, dim)) if name != "category" else 0.0
            features = np.where(present[:, None], centres[styles[name]] + noise, 0.0).astype(np.float32)
            writer.add_modality(name, dim=dim, batches=[(features, present)], dtype=np.float32, source="toy")
        users, modality_of, style_of = _users(num_users, rng)
        writer.add_interactions(_interactions(users, modality_of, style_of, styles, item_ids, rng))
        truth = {"user_id": users, "modality": modality_of, "style": style_of}
        pq.write_table(pa.table(truth), writer.staging / TRUTH_FILE)
        item_truth = {"item_id": item_ids, **styles}
        pq.write_table(pa.table(item_truth), writer.staging / "truth_items.parquet")
        writer.publish()
    return path


def truth(path: Path) -> Truth:
    """Read what `make_dataset` planted."""
    users = pq.read_table(path / TRUTH_FILE)
    items = pq.read_table(path / "truth_items.parquet")
    return Truth(
        user_ids=users["user_id"].to_pylist(),
        user_modality=users["modality"].to_pylist(),
        user_style=users["style"].to_numpy(),
        item_style={name: items[name].to_numpy() for name in MODALITIES},
    )


def _users(num_users: int, rng: np.random.Generator) -> tuple[list[str], list[str], np.ndarray]:
    names = list(MODALITIES)
    users = [f"u{row:04d}" for row in range(num_users)]
    modality_of = [names[row % len(names)] for row in range(num_users)]
    return users, modality_of, rng.permutation(np.arange(num_users) % NUM_STYLES)


def _interactions(
    users: list[str],
    modality_of: list[str],
    style_of: np.ndarray,
    styles: dict[str, np.ndarray],
    item_ids: list[str],
    rng: np.random.Generator,
) -> pa.Table:
    columns: dict[str, list] = {"user_id": [], "item_id": [], "timestamp": []}
    for user, modality, style in zip(users, modality_of, style_of, strict=True):
        liked = np.flatnonzero(styles[modality] == style)
        clicked = rng.permutation(liked)[:EVENTS_PER_USER]
        times = START + np.sort(rng.integers(0, 30 * 86_400, len(clicked)))
        columns["user_id"] += [user] * len(clicked)
        columns["item_id"] += [item_ids[row] for row in clicked]
        columns["timestamp"] += times.tolist()
    columns["event"] = ["click"] * len(columns["user_id"])
    return pa.table(columns)
