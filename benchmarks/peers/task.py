"""The task that all servers are given: the best 20 of 100,000 items for users with 50 past ones, none of these shown.

Legend: `N` items, `B` users, `L` history length, `Q` queries of a user, `D` vector width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import prepare
from index.features import Rows, Vectors
from index.item_tables import CANDIDATES_FILE
from index.store import ArtifactStore
from service.runtime.servable import LoadedServable, load_servable

NUM_USERS = 500
K = 20
LENGTH = prepare.HISTORY_LENGTH


class NotStarted(RuntimeError):
    """A server that can not be measured here; says why."""


@dataclass(frozen=True)
class Task:
    """The catalogue, the users, and what a server may use."""

    store: Path
    folder: Path
    """For what the servers write."""
    num_items: int
    workers: int

    @cached_property
    def histories(self) -> Rows:
        """The past items of each user, as rows of the catalogue `[B, L]`."""
        random = np.random.default_rng(0)
        return np.stack([random.choice(self.num_items, size=LENGTH, replace=False) for _ in range(NUM_USERS)])

    def vectors(self) -> Vectors:
        """Return the vectors of all items `[N, D]`."""
        artifacts = ArtifactStore(self.store)
        version = artifacts.current()
        assert version is not None
        vectors: Vectors = np.load(artifacts.path_of(version) / CANDIDATES_FILE)
        return vectors

    @contextmanager
    def servable(self) -> Iterator[LoadedServable]:
        """Load the current version in this process, for what a server wants to be given."""
        artifacts = ArtifactStore(self.store)
        version = artifacts.current()
        assert version is not None
        loaded = load_servable(artifacts, version)
        try:
            yield loaded
        finally:
            loaded.release()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    port: int
    path: str
    bodies: list[object]
    """The request of each user."""
    item_ids: Callable[[Any], list[str]]
    """From an answer to the items that it recommends, best first."""


Start = Callable[[Task], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to be measured."""

    name: str
    what: str
    start: Start


def queries_of(servable: LoadedServable, histories_BL: Rows) -> Vectors:
    """Return what the model makes of the users `[B, Q, D]`."""
    num_users, length = histories_BL.shape
    rows_BLH = servable.history(histories_BL.ravel()).reshape(num_users, length, -1)
    return servable.encode_users(rows_BLH, np.ones((num_users, length), dtype=np.bool_))
