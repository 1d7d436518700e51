"""A data set with less in it: a share of what items have of each modality marked absent, to study what gaps do.

Legend: `N` items, `B` items of a batch, `D` raw width.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.dataset import ITEMS_FILE, TRUTH_FILE, Dataset
from index.dataset_files import iter_batches, open_parquet
from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent

_BATCH_ROWS = 16_384


def mask_dataset(
    source: Dataset,
    path: Path,
    *,
    share: float,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    on_progress: Reporter = silent,
) -> Dataset:
    """Write a copy of a data set in which a share of the (item, modality) pairs is absent; its vectors are zeros there.

    Each modality loses its share, whatever the others lose. With one seed, what is absent at a share is absent at every
    larger one, too.

    Args:
        source: What is copied; who did what, and what drove them in generated data, stay as they are.
        path: Folder to make.
        share: Of the pairs that there are, from 0 to 1.
        modalities: Which to mask; all by default.
        seed: Of the choice.
        on_progress: Hears how it goes.

    Raises:
        FileExistsError: The target is there already.
        DatasetError: The source lacks one of the modalities, or is damaged.
    """
    masked = {name: masked_rows(source, name, share=share, seed=seed) for name in modalities or source.modality_names}
    manifest = source.manifest
    description = f"{manifest.description.rstrip('.')}. " if manifest.description else ""
    description += (
        f"{100 * share:g} % of what items have of {', '.join(masked)} is marked absent, at random with seed {seed}."
    )
    with DatasetWriter(
        path,
        name=f"{manifest.name}-masked-{share:g}",
        description=description,
        licence=manifest.licence,
    ) as writer:
        with open_parquet(source.path, ITEMS_FILE) as file:
            for batch in iter_batches(file, ITEMS_FILE, batch_rows=_BATCH_ROWS):
                writer.add_items(pa.Table.from_batches([batch]))
        for modality in manifest.modalities:
            writer.add_modality(
                modality.name,
                dim=modality.dim,
                batches=_batches(source, modality.name, masked, on_progress),
                dtype=source.features(modality.name).dtype,
                source=modality.source,
            )
        for batch in source.iter_interactions():
            writer.add_interactions(pa.Table.from_batches([batch]))
            on_progress("interactions", writer.num_interactions, manifest.num_interactions)
        if (source.path / TRUTH_FILE).exists():
            shutil.copyfile(source.path / TRUTH_FILE, writer.staging / TRUTH_FILE)
        return writer.publish(on_progress=on_progress)


def masked_rows(source: Dataset, modality: str, *, share: float, seed: int) -> NDArray[np.int64]:
    """Return the items that lose the modality: the first of those that have it, in an order that the seed decides."""
    having = np.flatnonzero(source.presence(modality))
    order = np.random.default_rng([seed, source.modality_names.index(modality)]).permutation(having)
    return order[: round(share * len(having))]


def _batches(
    source: Dataset, modality: str, masked: Mapping[str, NDArray[np.int64]], on_progress: Reporter
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    features_ND = source.features(modality)
    present_N = source.presence(modality).copy()
    present_N[masked.get(modality, [])] = False
    for start in range(0, source.num_items, _BATCH_ROWS):
        present_B = present_N[start : start + _BATCH_ROWS]
        rows_BD = features_ND[start : start + _BATCH_ROWS].copy()
        rows_BD[~present_B] = 0  # what is masked can not be read from the file either
        yield rows_BD, present_B
        on_progress(modality, start + len(present_B), source.num_items)
