"""What the core needs from a loaded version: a protocol, so that the core knows no model runtime and no index library.

Legend: `B` users, `L` history, `M` parts of an item (its modalities, then what the model adds), `H` history row, `S`
state, `D` vector, `Q` queries of a user, `N` the items of the catalogue, `K` candidates. Rows are int64 and belong to
this one servable.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from service.recommend.types import Choice, Filter, ItemId, Method, ModelCard, Query, ServedVersion, Vectors

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Ages = NDArray[np.float32]
"""Seconds from each behaviour of a history to its latest one; 0 in the padding."""


class Selection(Protocol):
    """Some rows of one servable; immutable."""

    mask_N: Mask
    """Which rows are in it; read-only."""

    def without(self, rows: Sequence[int]) -> "Selection":
        """Return a selection that has all of this one but some rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EncodedItems:
    """Items that came with their raw vectors, as the encoder sees them."""

    history_BH: Vectors
    states_BMS: Vectors
    presence_BM: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """What one explanation method says about `K` candidates, one history of `L` items and `M` parts."""

    scores_K: Vectors
    interest_KM: Vectors
    """What each part as a whole says for each candidate; signed."""
    history_KL: Vectors
    """How much each past item weighs for each candidate; signed."""
    grid_KLM: Vectors
    """The same by part of the past item."""
    contributions_KM: Vectors
    """The score by part: of the candidate, or for `shapley` of the history."""
    residual_K: Vectors
    additive: bool
    """Contributions and residual sum to the score."""


class Model(Protocol):
    """A loaded model and what it knows of the catalogue's items. Every method may be called from any thread."""

    @property
    def modalities(self) -> Mapping[str, int]:
        """Width of the raw vector by modality, in the model's order."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """What an item's states are of, in order: the modalities, then what the model adds to them."""
        ...

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        ...

    @property
    def history_length(self) -> int:
        """L: only the last L items of a history are encoded."""
        ...

    @property
    def reads_ages(self) -> bool:
        """Whether it counts how long ago each behaviour of a history was."""
        ...

    @property
    def methods(self) -> tuple[Method, ...]:
        """Explanation methods of this model, its default first."""
        ...

    @property
    def method_without_history(self) -> Method:
        """How `decompose` explains, which needs no history."""
        ...

    def faithfulness(self, method: Method) -> Mapping[str, float]:
        """Return what was measured for the method when the model was released; empty when nothing was."""
        ...

    def encode_items(self, raw: Sequence[Mapping[str, Vectors]]) -> EncodedItems:
        """Encode items from raw vectors `[D_m]` by modality; a missing modality is one that the item has not."""
        ...

    def history(self, rows: Rows) -> Vectors:
        """Return the history rows `[n, H]`."""
        ...

    def states(self, rows: Rows) -> Vectors:
        """Return the states `[n, M, S]`."""
        ...

    def presence(self, rows: Rows) -> Mask:
        """Return which parts each item has, `[n, M]`."""
        ...

    def encode_users(self, history_BLH: Vectors, mask_BL: Mask, ages_BL: Ages | None = None) -> Vectors:
        """Return the queries `[B, Q, D]` of padded histories; ages are given where `reads_ages` says so."""
        ...

    def history_with(self, states_LMS: Vectors, presence_LM: Mask, *, allowed_M: Mask) -> Vectors:
        """Return the rows `[L, H]` of a history in which some parts alone are allowed, as `occlusion` makes them."""
        ...

    def user_queries(self, user_id: str) -> Vectors | None:
        """Return the queries `[Q, D]` that the model has learned for a user; None for one that it does not know."""
        ...

    def score(self, queries_QD: Vectors, rows: Rows) -> Vectors:
        """Return one user's score of each row."""
        ...

    def attribute(
        self,
        method: Method,
        *,
        states_LMS: Vectors,
        presence_LM: Mask,
        candidate_states_KMS: Vectors,
        candidate_presence_KM: Mask,
        ages_L: Ages | None = None,
    ) -> Attribution:
        """Explain K candidates for one history, whose ages stay what they are whatever is taken away of it."""
        ...

    def decompose(
        self, queries_QD: Vectors, *, candidate_states_KMS: Vectors, candidate_presence_KM: Mask
    ) -> Attribution:
        """Split the scores of K candidates for queries that `user_queries` gave, by part; there is no history."""
        ...

    def modality_shares(self, interest_KM: Vectors, *, scores_K: Vectors) -> Sequence[float]:
        """Return each part's share `[M]` of what speaks for K candidates, as it was judged at release."""
        ...


class Ranker(Model, Protocol):
    """A model that finds nothing itself and orders what another one has found, by its own `score`."""

    @property
    def num_candidates(self) -> int:
        """How many items it is given to order."""
        ...

    @property
    def rerank_cpu_s(self) -> float:
        """Processor time of ordering so many items for one lone user, as it was measured at warm-up."""
        ...


class Servable(Model, Protocol):
    """One loaded, verified, immutable version: a catalogue, and the model that retrieves from it."""

    @property
    def version(self) -> ServedVersion:
        """Which model and index this is."""
        ...

    @property
    def ranker(self) -> Ranker | None:
        """The model that orders what was retrieved; None: the retriever's order stands."""
        ...

    @property
    def answer_cpu_s(self) -> float:
        """Processor time of one lone answer, encoded and searched, as it was measured at warm-up."""
        ...

    @property
    def num_items(self) -> int:
        """N: the size of the catalogue."""
        ...

    @property
    def popular_rows(self) -> Rows:
        """All rows, the most popular first."""
        ...

    @property
    def hidden_rows(self) -> AbstractSet[int]:
        """Rows that items may have and that no answer shows: searches and `popular_rows` leave them out themselves."""
        ...

    def retain(self) -> bool:
        """Keep this version open until `release`; False when it is closed already and must not be used."""
        ...

    def release(self) -> None:
        """Take back one `retain`; the last one closes the version."""
        ...

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """Return the row of each id, -1 for an unknown one."""
        ...

    def item_ids(self, rows: Rows) -> Sequence[str]:
        """Return the id of each row."""
        ...

    def metadata(self, rows: Rows) -> Sequence[Mapping[str, object]]:
        """Return what the catalogue says about each row; shared values, not to be changed."""
        ...

    def popularity_positions(self, rows: Rows) -> Rows:
        """Return each row's position in `popular_rows`."""
        ...

    def select(self, restriction: Filter) -> Selection:
        """Return the rows that pass; all of them for an empty filter."""
        ...

    def search(self, queries_BQD: Vectors, *, k: int, allowed: Selection | None = None) -> tuple[Vectors, Rows]:
        """Return the best k allowed rows of each user, best first, as scores `[B, k]` and rows `[B, k]`.

        A row appears once; -1 fills the rest when fewer than k rows are allowed, and only then.
        """
        ...

    def similar(
        self, row: int, *, k: int, modality: str | None, allowed: Selection | None = None
    ) -> tuple[Vectors, Rows]:
        """Return the k rows most like `row`, by the fused vector or by one part, as scores and rows `[<= k]`.

        `row` itself may be among them.
        """
        ...


CURRENT = Choice()
"""The current version answers."""


class ServableSource(Protocol):
    """Where the loaded versions come from."""

    def choose(self, query: Query) -> Choice:
        """Return which version answers a query that names a scenario or a model.

        Raises:
            ScenarioNotFound: No alias has the name of the scenario.
            ModelNotFound: No loaded version has such a model.
            NoServable: The versions of the scenario are not loaded (yet).
        """
        ...

    def like(self, version: ServedVersion) -> Choice:
        """Return the loaded version that is this one, or else one with its model, or else the current one."""
        ...

    def acquire(self, choice: Choice = CURRENT) -> AbstractContextManager[Servable]:
        """Return the version, kept open until the context ends.

        Raises:
            NoServable: It is not loaded.
        """
        ...


def models_of(servable: Servable) -> Sequence[Model]:
    """Return the model that retrieves and, if there is one, that which orders."""
    return [servable] if servable.ranker is None else [servable, servable.ranker]


def find_model(servable: Servable, name: str) -> Model | None:
    """Return the model of a version that has this family or version; None when none has."""
    for model in models_of(servable):
        if name in (model.card.version.model_name, model.card.version.model_version):
            return model
    return None


def ids_of(servable: Servable, rows: Rows) -> Sequence[ItemId]:
    """Return the ids of the rows."""
    return cast("Sequence[ItemId]", servable.item_ids(rows))
