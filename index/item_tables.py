"""ItemTables: a catalogue as one model has encoded it, memory-mapped.

Files: `candidates.npy` `[N, D]`, `history.npy` `[N, H]` unless it is the same, `states/<part>.npy` `[N, S]`,
`presence.npy` `[N, P]`, `norms.npy` `[N, 1 + P]` (of the candidate and of each state), and `content.npy` `[N, 2]` (what
an item was encoded from, for the next rebuild).

Legend of shapes: `N` items, `P` parts of an item (the modalities, then what the model adds), `D` vector width, `H`
history width, `S` state width, `n` rows asked for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_schemas.manifest import EncodedCatalogue
from index.features import Mask, Rows, Vectors
from index.tables import Table

CANDIDATES_FILE, HISTORY_FILE = "candidates.npy", "history.npy"
PRESENCE_FILE, NORMS_FILE = "presence.npy", "norms.npy"
CONTENT_FILE = "content.npy"

Content = NDArray[np.uint64]


def states_file(part: str) -> str:
    """Return the name of a part's file of states."""
    return f"states/{part}.npy"


class ItemTables:
    """What one model knows of each item of a catalogue. Every method may be called from several threads at once."""

    def __init__(self, folder: Path, encoded: EncodedCatalogue, *, num_items: int) -> None:
        """Map the files.

        Args:
            folder: Where they are.
            encoded: What the snapshot says of them.
            num_items: Rows of each.

        Raises:
            ArtefactError: A file is missing or holds another number of items or other widths.
        """
        self.parts = encoded.part_names
        self._state_dim = encoded.state_dim
        self._files: list[Table] = []

        def table(name: str, dtype: type, *shape: int) -> Table:
            self._files.append(Table(folder / name, dtype=dtype, shape=(num_items, *shape)))
            return self._files[-1]

        candidates = table(CANDIDATES_FILE, np.float32, encoded.dim)
        history = candidates if encoded.history_is_candidate else table(HISTORY_FILE, np.float32, encoded.history_dim)
        self._candidates_ND: Vectors = candidates.array
        self._history_NH: Vectors = history.array
        self._states_NS: tuple[Vectors, ...] = tuple(
            table(states_file(name), np.float32, encoded.state_dim).array for name in self.parts
        )
        self._presence_NP: Mask = table(PRESENCE_FILE, np.bool_, len(self.parts)).array
        self._norms_NX: Vectors = table(NORMS_FILE, np.float32, 1 + len(self.parts)).array
        self.content_N2: Content = table(CONTENT_FILE, np.uint64, 2).array
        """What each item was encoded from, as 128 bits: equal bits, equal vectors."""

    def candidates(self, rows: Sequence[int] | Rows) -> Vectors:
        """Return candidate vectors `[n, D]`.

        Raises:
            IndexError: A row is negative or not below the number of items; so for all methods.
        """
        return self._candidates_ND.take(checked(rows), axis=0)

    def history(self, rows: Sequence[int] | Rows) -> Vectors:
        """Return history rows `[n, H]`, what the user encoder reads."""
        return self._history_NH.take(checked(rows), axis=0)

    def states(self, rows: Sequence[int] | Rows) -> Vectors:
        """Return the states of the parts `[n, P, S]`."""
        wanted = checked(rows)
        states_nPS = np.empty((len(wanted), len(self.parts), self._state_dim), dtype=np.float32)
        for column, states_NS in enumerate(self._states_NS):
            states_nPS[:, column] = states_NS.take(wanted, axis=0)
        return states_nPS

    def presence(self, rows: Sequence[int] | Rows) -> Mask:
        """Return which parts each item has `[n, P]`."""
        return self._presence_NP.take(checked(rows), axis=0)

    def release(self) -> None:
        """Let the kernel take back the pages that were read, for jobs that walk through all of it once."""
        for file in self._files:
            file.release()

    def close(self) -> None:
        """Let go of all files; every later call is an error. What was handed out stays valid."""
        vars(self).clear()


def checked(rows: Sequence[int] | Rows) -> Rows:
    """Return rows as int64. NumPy would take -1, which means unknown, for the last row.

    Raises:
        IndexError: A row is negative.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    if wanted.size and int(wanted.min()) < 0:
        raise IndexError(f"row {int(wanted.min())} is negative")
    return wanted
