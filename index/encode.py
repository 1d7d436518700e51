"""Encode the items of a catalogue, in batches, into tables on disk; copy what did not change.

Legend of shapes: `B` batch, `P` parts of an item, `S` state width.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.bundle import Bundle, EncodedItems
from index.dataset import Dataset
from index.features import ModelInputs, Rows, from_dataset
from index.item_encoder import ItemEncoder
from index.item_tables import (
    CANDIDATES_FILE,
    CONTENT_FILE,
    HISTORY_FILE,
    NORMS_FILE,
    PRESENCE_FILE,
    Content,
    ItemTables,
    states_file,
)
from index.progress import Reporter, silent
from index.tables import TableWriter


@dataclass(frozen=True, slots=True)
class Previous:
    """What an earlier snapshot has of the same bundle, and where its rows are to be found."""

    tables: ItemTables
    rows: Rows
    """`[N]` by row of the new catalogue: the row that the same id has there, -1 for a new item."""


def content_of(inputs: ModelInputs) -> Content:
    """Return a fingerprint of each item's model inputs.

    The same item with equal inputs has equal vectors under the same bundle: what else they are made of, the bundle's
    warm table, is of the bundle and found by the item's id alone. So an earlier snapshot of the bundle, read by id, has
    a known item from the warm table and an unknown one from its content, never the one for the other.
    """
    together = np.concatenate([*inputs.features, inputs.presence.astype(np.float32)], axis=1)
    digests = b"".join([hashlib.blake2b(row, digest_size=16).digest() for row in together])
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def encode_catalogue(
    bundle: Bundle,
    dataset: Dataset,
    folder: Path,
    *,
    item_ids: pa.ChunkedArray,
    batch_rows: int,
    previous: Previous | None = None,
    report: Reporter = silent,
) -> int:
    """Write the tables of all items of a dataset and return how many items were encoded; the rest was copied.

    Args:
        bundle: The model.
        dataset: The catalogue.
        folder: Where to write.
        item_ids: Of the catalogue, in its order.
        batch_rows: Items that are encoded together.
        previous: What may be copied.
        report: Hears of the progress.

    Raises:
        ArtefactError: The bundle's warm table is not what its manifest says.
        ValueError: A feature is not finite or has another width than the model's, or the encoder gives NaN or
            infinity; names modality and row.
    """
    manifest = bundle.manifest
    num_items = dataset.num_items
    parts = manifest.part_names
    encoder = ItemEncoder(bundle)
    known_rows_N = encoder.known_rows(item_ids)
    num_encoded = 0
    with ExitStack() as stack:

        def table(name: str, dtype: type, *shape: int) -> TableWriter:
            return stack.enter_context(TableWriter(folder / name, dtype=dtype, shape=(num_items, *shape)))

        candidates = table(CANDIDATES_FILE, np.float32, manifest.dim)
        history = None if manifest.history_is_candidate else table(HISTORY_FILE, np.float32, manifest.history_dim)
        states = [table(states_file(part), np.float32, manifest.state_dim) for part in parts]
        presence = table(PRESENCE_FILE, np.bool_, len(parts))
        norms = table(NORMS_FILE, np.float32, 1 + len(parts))
        content = table(CONTENT_FILE, np.uint64, 2)
        for start in range(0, num_items, batch_rows):
            stop = min(start + batch_rows, num_items)
            # The dataset maps its files anew for each batch, so the pages that were read do not pile up as ours.
            inputs = from_dataset(dataset, slice(start, stop), manifest.modalities)
            batch = _Batch(inputs, known_rows_N[start:stop], content_of(inputs), start)
            encoded, num_fresh = _encode(bundle, encoder, batch, previous)
            num_encoded += num_fresh
            _refuse_not_finite(encoded, start=start)
            candidates.append(encoded.candidates)
            if history is not None:
                history.append(encoded.history)
            for column, states_table in enumerate(states):
                states_table.append(encoded.states[:, column])
            presence.append(encoded.presence)
            norms.append(_norms(encoded))
            content.append(batch.content)
            report("ranker: encode items" if manifest.is_ranker else "encode items", stop, num_items)
    return num_encoded


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Some rows of the new catalogue."""

    inputs: ModelInputs
    known_rows: Rows
    """Where the warm table has them."""
    content: Content
    start: int
    """The first one's row."""

    def __len__(self) -> int:
        return len(self.inputs)

    def encoded(self, encoder: ItemEncoder, places: Rows) -> EncodedItems:
        features = tuple(values[places] for values in self.inputs.features)
        return encoder.encode(ModelInputs(features, self.inputs.presence[places]), self.known_rows[places])


def _encode(bundle: Bundle, encoder: ItemEncoder, batch: _Batch, previous: Previous | None) -> tuple[EncodedItems, int]:
    if previous is None:
        return encoder.encode(batch.inputs, batch.known_rows), len(batch)
    old_rows = previous.rows[batch.start : batch.start + len(batch)]
    earlier = np.flatnonzero(old_rows >= 0)
    tables = previous.tables
    same = earlier[(tables.content_N2[old_rows[earlier]] == batch.content[earlier]).all(axis=1)]
    fresh = np.setdiff1d(np.arange(len(batch)), same, assume_unique=True)
    encoded = batch.encoded(encoder, fresh)
    if not same.size:
        return encoded, len(fresh)
    rows = old_rows[same]

    def merged(new: NDArray[np.float32], old: NDArray[np.float32]) -> NDArray[np.float32]:
        both = np.empty((len(batch), *new.shape[1:]), dtype=np.float32)
        both[fresh], both[same] = new, old
        return both

    candidates = merged(encoded.candidates, tables.candidates(rows))
    is_candidate = bundle.manifest.history_is_candidate
    history = candidates if is_candidate else merged(encoded.history, tables.history(rows))
    states = merged(encoded.states, tables.states(rows))
    tables.release()
    presence = encoder.presence(batch.inputs.presence, batch.known_rows)
    return EncodedItems(candidates, history, states, presence), len(fresh)


def _refuse_not_finite(encoded: EncodedItems, *, start: int) -> None:
    for name, values in (
        ("candidate", encoded.candidates),
        ("history", encoded.history),
        ("states", encoded.states),
    ):
        if not np.isfinite(values).all():
            row = start + int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
            raise ValueError(f"the encoder's output {name} holds NaN or infinity at row {row}")


def _norms(encoded: EncodedItems) -> NDArray[np.float32]:
    """Return the length of each candidate vector and of each state, 0 for an absent one `[B, 1 + P]`."""
    norms = np.empty((len(encoded.presence), 1 + encoded.presence.shape[1]), dtype=np.float32)
    norms[:, 0] = np.linalg.norm(encoded.candidates, axis=1)
    norms[:, 1:] = np.linalg.norm(encoded.states, axis=2) * encoded.presence
    return norms
