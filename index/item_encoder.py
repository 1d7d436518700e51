"""ItemEncoder: from the items of a catalogue to vectors and states; the ones that the model knows get their own.

An item is a sum of parts: its modalities, and what a model adds to them, such as a learned id. What it adds has been
learned for the items of its training; for these it comes from the bundle's warm table. For all others the item encoder
has imputed it from their content. A known item without any modality is what was learned of it. An item of which nothing
is known at all keeps what is imputed without content, an average item: in a model whose learned parts lean one way,
nothing in their place would put it on top of everybody's list.

Legend of shapes: `B` batch, `M` modalities, `P` parts, `W` parts of the warm table, `S` state width.
"""

import numpy as np
import pyarrow as pa

from index.bundle import Bundle, EncodedItems
from index.features import Mask, ModelInputs, Rows
from index.known import open_warm_items


class ItemEncoder:
    """Encodes the items of a catalogue under one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Open the bundle's warm table, if it has one.

        Raises:
            ArtefactError: The table can not be what the manifest says; names file and row.
        """
        manifest = bundle.manifest
        self._bundle = bundle
        self._warm = open_warm_items(bundle.path, manifest)
        self._num_modalities = len(manifest.modalities)
        self._adds_parts = len(manifest.part_names) > self._num_modalities
        names = manifest.part_names
        self._warm_columns = np.array([names.index(part) for part in manifest.warm.parts] if manifest.warm else [], int)

    def known_rows(self, item_ids: pa.ChunkedArray) -> Rows:
        """Return where the warm table has each item, -1 for an item that the model was not trained on."""
        if self._warm is None:
            return np.full(len(item_ids), -1, dtype=np.int64)
        return self._warm.rows(item_ids)

    def encode(self, inputs: ModelInputs, known_rows: Rows) -> EncodedItems:
        """Encode a batch of items of any size, also none.

        Args:
            inputs: Their modalities.
            known_rows: `[B]`, as `known_rows` returns them.
        """
        encoded = self._bundle.encode_items(inputs)
        presence_BP = self.presence(inputs.presence, known_rows)
        known_B = known_rows >= 0
        # Vectors and states of one item must belong together, so whatever differs from what the graph saw goes through
        # the state encoder: known items, and those without any modality.
        differs = np.flatnonzero(known_B | (presence_BP != encoded.presence).any(axis=1))
        if not differs.size:
            return encoded
        states_BPS = np.array(encoded.states)
        if self._warm is not None:
            known = np.flatnonzero(known_B)
            states_BPS[known[:, None], self._warm_columns] = self._warm.vectors[known_rows[known]]
            self._warm.release()  # a catalogue is walked through once
        again = self._bundle.encode_states(states_BPS[differs], presence_BP[differs])
        candidates = np.array(encoded.candidates)
        candidates[differs] = again.candidates
        history = candidates
        if not self._bundle.manifest.history_is_candidate:
            history = np.array(encoded.history)
            history[differs] = again.history
        return EncodedItems(candidates, history, states_BPS, presence_BP)

    def presence(self, presence_BM: Mask, known_rows: Rows) -> Mask:
        """Return which parts items of a catalogue have `[B, P]`.

        A modality: the item has it, or the warm table holds it for the item. What the model adds: always.
        """
        if self._warm is None and not self._adds_parts:
            return presence_BM
        num_added = len(self._bundle.manifest.part_names) - self._num_modalities
        added = np.ones((len(presence_BM), num_added), dtype=np.bool_)
        presence_BP = np.concatenate([presence_BM, added], axis=1)
        presence_BP[np.flatnonzero(known_rows >= 0)[:, None], self._warm_columns] = True
        return presence_BP
