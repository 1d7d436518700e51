"""What the benchmarks run on: synthetic catalogues under a Demure bundle with random weights, kept in `.bench/`.

    python -m benchmarks.prepare 100000        makes a store for so many items and prints its path

Speed does not depend on what a model has learned, so none is trained. Everything is made by the product's own code: the
bundle by the export, the snapshot by the rebuild.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.bundle import Bundle
from index.dataset import Dataset
from index.dataset_write import DatasetWriter
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtefactError, ArtifactStore

FOLDER = Path(__file__).resolve().parent.parent / ".bench"
DIM = 64
HISTORY_LENGTH = 50
MODALITIES = {"visual": 256, "text": 128, "credits": 64, "category": 32}
NUM_USERS = 2_000
EVENTS_PER_USER = 10
NUM_CATEGORIES = 40
BATCH = 50_000


def item_id(row: int) -> str:
    """Return the external id of a row."""
    return f"item-{row:07d}"


def store(num_items: int) -> Path:
    """Return a store whose current snapshot has so many items, making it the first time."""
    folder = FOLDER / f"store-{num_items}"
    if is_usable(ArtifactStore(folder)):
        return folder
    sys.stderr.write(f"{num_items} items: making data, bundle and snapshot in {FOLDER}\n")
    shutil.rmtree(folder, ignore_errors=True)
    data = dataset(num_items)
    versions = ArtifactStore(folder)
    rebuild(versions, bundle_version=publish(versions, data), dataset=data)
    return folder


def is_usable(versions: ArtifactStore) -> bool:
    """Tell whether there is a current snapshot that this code, which may be newer, can open."""
    try:
        current = versions.current()
        if current is None:
            return False
        path, manifest = versions.open_snapshot(current)
        Bundle.open(versions.open_bundle(manifest.bundle_version)[0]).check_golden()
        IndexSnapshot.open(path, manifest).close()
    except ArtefactError:
        return False
    return True


def dataset(num_items: int) -> Dataset:
    """Return a data set of so many items with random features around random centres, making it the first time."""
    path = FOLDER / f"data-{num_items}"
    if path.is_dir():
        return Dataset.open(path)
    random = np.random.default_rng(0)
    labels = np.array([f"category-{number}" for number in range(NUM_CATEGORIES)])
    with DatasetWriter(
        path, name=f"synthetic-{num_items}", description="For speed alone: nothing to be learned."
    ) as writer:
        ids = np.array([item_id(row) for row in range(num_items)])
        categories = labels[random.integers(0, NUM_CATEGORIES, num_items)]
        writer.add_items(
            pa.table(
                {
                    "item_id": ids,
                    "title": [f"Title of item {row}" for row in range(num_items)],
                    "description": ["A sentence or two that says what this item is, as catalogues have them."]
                    * num_items,
                    "image_url": [f"https://images.example/{name}.jpg" for name in ids],
                    "categories": pa.array(categories[:, None].tolist(), pa.list_(pa.string())),
                    "year": pa.array(random.integers(1950, 2026, num_items)),
                }
            )
        )
        for name, dim in MODALITIES.items():
            writer.add_modality(name, dim=dim, batches=_features(random, num_items, dim), source="synthetic")
        rows = np.minimum(random.zipf(1.3, NUM_USERS * EVENTS_PER_USER), num_items) - 1
        writer.add_interactions(
            pa.table(
                {
                    "user_id": np.repeat([f"user-{user}" for user in range(NUM_USERS)], EVENTS_PER_USER),
                    "item_id": ids[rows],
                    "timestamp": pa.array(1_700_000_000 + np.tile(np.arange(EVENTS_PER_USER), NUM_USERS)),
                }
            )
        )
        return writer.publish()


def _features(
    random: np.random.Generator, num_items: int, dim: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    centres = random.standard_normal((500, dim), dtype=np.float32)
    for start in range(0, num_items, BATCH):
        size = min(BATCH, num_items - start)
        noise = random.standard_normal((size, dim), dtype=np.float32)
        yield centres[random.integers(0, len(centres), size)] + noise, random.random(size) < 0.95


def publish(versions: ArtifactStore, data: Dataset, *, seed: int = 0, dim: int = DIM) -> str:
    """Export a Demure of random weights; torch is loaded for this alone."""
    import torch

    from api_schemas.manifest import Modality
    from training.config import RunConfig
    from training.faithfulness import JudgedUsers
    from training.models import DemureConfig, FeatureSpec
    from training.publish import publish_bundle

    torch.manual_seed(seed)
    model = DemureConfig(dim=dim, history_length=HISTORY_LENGTH)
    modalities = tuple(Modality(name=one.name, dim=one.dim) for one in data.manifest.modalities)
    return publish_bundle(
        versions,
        model=model.build(FeatureSpec(modalities)),
        config=RunConfig(name="benchmark", model=model),
        dataset=data,
        metrics={},
        judged=JudgedUsers(histories=[], drivers=[]),
    )


if __name__ == "__main__":
    # Relative, because results quote the command that made them.
    sys.stdout.write(f"{os.path.relpath(store(int(sys.argv[1])))}\n")
