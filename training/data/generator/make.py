"""Write a generated dataset folder: items, drawn covers, features, users and the truth about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from index.dataset import TRUTH_FILE, Dataset
from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent
from training.data.featurise import CategoryFeaturiser, HashedText, ImageDescriptor, image_batches, text_batches
from training.data.featurise.batches import BATCH_ROWS, batched
from training.data.generator.catalogue import (
    KINDS,
    NUM_STYLES,
    Catalogue,
    covers_of,
    item_tables,
    make_catalogue,
    truth_table,
)
from training.data.generator.users import TRUTH_SCHEMA, make_users

ITEM_TRUTH_FILE = "truth_items.parquet"
"""item_id and the name of the item's style in every modality."""

MIN_ITEMS = 2 * NUM_STYLES

_FEATURE_SIDE = 64  # pixels; what the descriptor looks at
_COVERS_PER_FOLDER = 1000


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """What to make; the same values give the same files."""

    num_users: int = 3000
    num_items: int = 1000
    seed: int = 0
    missing_share: float = 0.02
    """Of the items lack a cover, and as many others lack a text."""
    covers_side: int | None = None
    """Side in pixels of the covers kept for people under `covers/`; None keeps none."""


def make_dataset(path: Path, config: GeneratorConfig, *, on_progress: Reporter = silent) -> Dataset:
    """Make a dataset folder in bounded memory; nothing is left behind when it fails.

    Raises:
        FileExistsError: The target is there already.
        ValueError: A number is out of range; names it.
    """
    _check(config)
    catalogue = make_catalogue(num_items=config.num_items, seed=config.seed, missing_share=config.missing_share)
    description = (
        "Generated: prints on things to buy. Every user is driven by one modality, which truth.parquet names; "
        f"seed {config.seed}"
    )
    keep_covers = config.covers_side is not None
    with DatasetWriter(path, name="generated", description=description, licence="none: generated") as writer:
        for table in item_tables(catalogue, image_url=_cover_file if keep_covers else _no_cover):
            writer.add_items(table)
            on_progress("items", writer.num_items, config.num_items)
        if config.covers_side is not None:
            _save_covers(catalogue, writer.staging, config.covers_side, on_progress)
        _add_features(writer, catalogue, on_progress)
        with pq.ParquetWriter(writer.staging / TRUTH_FILE, TRUTH_SCHEMA) as truth:
            users = 0
            for chunk in make_users(catalogue, num_users=config.num_users):
                writer.add_interactions(chunk.interactions)
                truth.write_table(chunk.truth)
                users += chunk.truth.num_rows
                on_progress("users", users, config.num_users)
        pq.write_table(truth_table(catalogue), writer.staging / ITEM_TRUTH_FILE)
        return writer.publish(on_progress=on_progress)


def _check(config: GeneratorConfig) -> None:
    if config.num_users < 1:
        raise ValueError(f"num_users is {config.num_users}, must be at least 1")
    if config.num_items < MIN_ITEMS:
        raise ValueError(
            f"num_items is {config.num_items}, must be at least {MIN_ITEMS}: {NUM_STYLES} styles need room"
        )
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}, must not be negative")
    if not 0 <= config.missing_share <= 0.4:
        raise ValueError(f"missing_share is {config.missing_share}, must be between 0 and 0.4")
    if config.covers_side is not None and not 16 <= config.covers_side <= 1024:
        raise ValueError(f"covers_side is {config.covers_side}, must be between 16 and 1024 pixels")


def _add_features(writer: DatasetWriter, catalogue: Catalogue, on_progress: Reporter) -> None:
    image, text = ImageDescriptor(), HashedText()
    category = CategoryFeaturiser([*KINDS, *(name for names in KINDS.values() for name in names)])
    pictures = covers_of(catalogue, side=_FEATURE_SIDE)
    visual = image_batches(pictures, image, total=catalogue.num_items, on_progress=on_progress)
    writer.add_modality("visual", dim=image.dim, batches=visual, source=image.source)
    texts = text_batches(_texts(writer, catalogue), text, total=catalogue.num_items, on_progress=on_progress)
    writer.add_modality("text", dim=text.dim, batches=texts, source=text.source)
    categories = batched(_categories(writer), BATCH_ROWS)
    writer.add_modality("category", dim=category.dim, batches=category.batches(categories), source=category.source)


def _texts(writer: DatasetWriter, catalogue: Catalogue) -> Iterator[str]:
    row = 0
    for batch in writer.iter_items(["title", "description"]):
        for title, description in zip(batch["title"].to_pylist(), batch["description"].to_pylist(), strict=True):
            # The placeholder title of an item without a text says nothing about it.
            yield f"{title}. {description}" if catalogue.styles["text"][row] >= 0 else ""
            row += 1


def _categories(writer: DatasetWriter) -> Iterator[list[str]]:
    for batch in writer.iter_items(["categories"]):
        yield from batch["categories"].to_pylist()


def _save_covers(catalogue: Catalogue, folder: Path, side: int, on_progress: Reporter) -> None:
    for row, picture in enumerate(covers_of(catalogue, side=side)):
        if picture is not None:
            path = folder / _cover_file(row)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        if (row + 1) % BATCH_ROWS == 0 or row + 1 == catalogue.num_items:
            on_progress("covers", row + 1, catalogue.num_items)


def _cover_file(row: int) -> str:
    return f"covers/{row // _COVERS_PER_FOLDER:03d}/{row:06d}.png"


def _no_cover(_row: int) -> None:
    return None
