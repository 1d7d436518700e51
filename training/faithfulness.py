"""How far an explanation method can be trusted for one model: measured, not asserted. docs/explanations.md explains it.

Two questions are put to each method, on held-out users. Deletion and insertion: if the past items that it calls
important are taken away first (or put in first), does the recommended item's score fall (or rise) faster than in random
order? Planted driver: on generated data, is the modality with the largest share the one that made the user click?

Legend: `B` users, `L` history length, `M` parts of an item (the modalities first), `S` state width, `H` history row,
`N` items encoded here, `X` some of them, `K` candidates, `O` orders of a history, `T` points of a curve, `V` = O x 2T
variants of a history.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from api_schemas.manifest import ExplanationMethod, Faithfulness
from index.bundle import Bundle, EncodedItems
from index.dataset import Dataset
from index.explain import METHODS, explain, modality_shares
from index.features import Ages, from_dataset, pad_ages
from index.item_encoder import ItemEncoder

NUM_CANDIDATES = 20
"""The recommended items whose explanations give a user's shares; the first of them is the one of the curves."""

NUM_RANDOM_ORDERS = 5

NUM_POINTS = 11
"""Of a curve: nothing removed, a tenth, ..., all."""

MAX_POOL = 20_000
"""Larger catalogues are sampled: recommended are the best of the sample, and the cost has a bound."""

_NUM_REFERENCES = 256
"""Items against whose mean score a score is read, so that what lifts all items alike is not taken for interest."""

_ENCODE_AT_ONCE = 4096

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
OnUser = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class JudgedUsers:
    """Users that the model was not trained on."""

    histories: Sequence[Rows]
    """Rows of the catalogue, oldest first."""
    drivers: Sequence[str | None]
    """The modality that drives each user where the data were generated with it known, else None."""
    ages: Sequence[Ages] | None = None
    """Of each history; None: the model reads none."""

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        *,
        user_ids: Sequence[str],
        histories: Sequence[Rows],
        most: int,
        seed: int,
        ages: Sequence[Ages] | None = None,
    ) -> "JudgedUsers":
        """Take `most` of these users at random, with the truth about them if the folder has it."""
        truth = dataset.truth() or {}
        chosen = np.sort(np.random.default_rng(seed).permutation(len(user_ids))[:most])
        return cls(
            [histories[place] for place in chosen],
            [truth.get(user_ids[place]) for place in chosen],
            None if ages is None else [ages[place] for place in chosen],
        )

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.histories)


def measure_faithfulness(
    bundle: Bundle,
    dataset: Dataset,
    users: JudgedUsers,
    *,
    methods: Iterable[ExplanationMethod] = METHODS,
    seed: int = 0,
    on_user: OnUser | None = None,
) -> dict[ExplanationMethod, Faithfulness]:
    """Return what was measured for each method; empty where there is nothing to measure on.

    That is so when no user has two past items to put in order, or when histories do not lift what is recommended for
    them (a model that has learned nothing).

    Args:
        bundle: The model.
        dataset: The folder that the histories' rows belong to.
        users: Whom to measure on.
        methods: Which methods.
        seed: Of random orders and samples; the same seed gives the same numbers.
        on_user: Hears how many users are done, and of how many.
    """
    rng = np.random.default_rng(seed)
    methods = tuple(methods)
    length = bundle.manifest.history_length
    histories = [np.asarray(rows, dtype=np.int64)[-length:] for rows in users.histories]
    items = _Items.encode(bundle, dataset, histories, rng=rng)
    names = [modality.name for modality in bundle.manifest.modalities]
    tallies = {method: _Tally() for method in methods}
    drivers: list[int] = []
    for done, (history, driver) in enumerate(zip(histories, users.drivers, strict=True), start=1):
        places_L = items.places(history)
        is_item_L = items.presence_NM[places_L].any(axis=1)
        places_L = places_L[is_item_L]
        if len(places_L) > 0:
            ages_L = None if users.ages is None else users.ages[done - 1][-length:][is_item_L]
            user = _User(bundle, items, places_L, ages_L)
            found = {method: user.explain(method) for method in methods}
            if driver in names:
                drivers.append(names.index(driver))
                for method, (_, share_M) in found.items():
                    tallies[method].tops.append(int(share_M[: len(names)].argmax()))
            if len(places_L) > 1:
                orders = [np.argsort(-interest_L, kind="stable") for interest_L, _ in found.values()]
                orders += [rng.permutation(len(places_L)) for _ in range(NUM_RANDOM_ORDERS)]
                areas, whole = user.areas(np.stack(orders))
                random_area = areas[len(methods) :].mean(axis=0)
                for tally, area in zip(tallies.values(), areas, strict=False):
                    tally.add(area, random_area, whole)
        if on_user is not None:
            on_user(done, len(users))
    return {method: tally.result(drivers) for method, tally in tallies.items() if tally.is_measurable}


class _Items:
    """Encoded items: a sample of the catalogue to recommend from, and whatever is in a history."""

    def __init__(
        self, rows_N: Rows, *, encoded: Sequence[EncodedItems], presence_NM: NDArray[np.bool_], reference_R: Rows
    ) -> None:
        self._rows_N = rows_N
        self.candidates_ND = np.concatenate([piece.candidates for piece in encoded])
        self.history_NH = np.concatenate([piece.history for piece in encoded])
        self.states_NMS = np.concatenate([piece.states for piece in encoded])
        self.presence_NM = presence_NM
        self.reference_RD = self.candidates_ND[reference_R]

    @classmethod
    def encode(
        cls, bundle: Bundle, dataset: Dataset, histories: Sequence[Rows], *, rng: np.random.Generator
    ) -> "_Items":
        pool = rng.permutation(dataset.num_items)[:MAX_POOL]
        rows_N = np.unique(np.concatenate([pool, *histories]))
        encoder, item_ids = ItemEncoder(bundle), pa.array(dataset.item_ids, pa.string())
        encoded = []
        for start in range(0, len(rows_N), _ENCODE_AT_ONCE):
            rows = rows_N[start : start + _ENCODE_AT_ONCE]
            known = encoder.known_rows(pa.chunked_array([item_ids.take(rows)]))
            encoded.append(encoder.encode(from_dataset(dataset, rows, bundle.manifest.modalities), known))
        return cls(
            rows_N,
            encoded=encoded,
            presence_NM=np.concatenate([piece.presence for piece in encoded]),
            reference_R=rng.permutation(len(rows_N))[:_NUM_REFERENCES],
        )

    def places(self, rows: Rows) -> Rows:
        """Return where catalogue rows lie in these arrays."""
        return np.searchsorted(self._rows_N, rows)


class _User:
    """One user's history and what the model recommends for it."""

    def __init__(self, bundle: Bundle, items: _Items, places_L: Rows, ages_L: Ages | None) -> None:
        self._bundle, self._items, self._places_L, self._ages_L = bundle, items, places_L, ages_L
        queries_1QD = self._queries(np.ones((1, len(places_L)), dtype=np.bool_))
        scores_N = bundle.score(queries_1QD, items.candidates_ND)[0]
        scores_N[places_L] = -np.inf
        k = min(NUM_CANDIDATES, len(scores_N))
        top = np.argpartition(-scores_N, k - 1)[:k]
        top = top[np.argsort(-scores_N[top], kind="stable")]
        self._top_K = top[np.isfinite(scores_N[top])]
        if len(self._top_K) == 0:  # all there is lies in the history: explain that
            self._top_K = places_L[-1:]

    def explain(self, method: ExplanationMethod) -> tuple[Vectors, NDArray[np.float64]]:
        """Return the interest `[L]` of past items in the first candidate, and the shares `[M]` over all candidates."""
        items = self._items
        arrays = explain(
            self._bundle,
            method=method,
            states_LMS=items.states_NMS[self._places_L],
            presence_LM=items.presence_NM[self._places_L],
            candidate_states_KMS=items.states_NMS[self._top_K],
            candidate_presence_KM=items.presence_NM[self._top_K],
            ages_L=self._ages_L,
        )
        return arrays.history_KL[0], modality_shares(arrays.interest_KM, scores_K=arrays.scores_K)

    def areas(self, orders_OL: Rows) -> tuple[NDArray[np.float64], float]:
        """Return the areas `[O, 2]` under the deletion and the insertion curve of each order, and the whole rise.

        Both are rises over the margin of the empty history. A margin is the first candidate's score over the mean
        score of the reference items.
        """
        num_orders, num_items = orders_OL.shape
        counts_T = np.rint(np.linspace(0, num_items, NUM_POINTS)).astype(np.int64)
        rank_OL = np.argsort(orders_OL, axis=1)
        inserted_OTL = rank_OL[:, None, :] < counts_T[:, None]
        keep_OSTL = np.stack([~inserted_OTL, inserted_OTL], axis=1)
        margin_OST = self._margins(keep_OSTL.reshape(-1, num_items)).reshape(num_orders, 2, NUM_POINTS)
        empty, full = margin_OST[0, 1, 0], margin_OST[0, 1, -1]
        rise_OST = margin_OST - empty
        return np.trapezoid(rise_OST, dx=1 / (NUM_POINTS - 1), axis=2), float(full - empty)

    def _margins(self, keep_VL: NDArray[np.bool_]) -> NDArray[np.float64]:
        queries_VQD = self._queries(keep_VL)
        score_V = self._bundle.score(queries_VQD, self._items.candidates_ND[self._top_K[:1]])[:, 0]
        reference_VR = self._bundle.score(queries_VQD, self._items.reference_RD)
        margin_V: NDArray[np.float64] = score_V.astype(np.float64) - reference_VR.mean(axis=1, dtype=np.float64)
        return margin_V

    def _queries(self, keep_VL: NDArray[np.bool_]) -> Vectors:
        length = self._bundle.manifest.history_length
        history_LH = self._items.history_NH[self._places_L]
        history_VPH = np.zeros((len(keep_VL), length, history_LH.shape[1]), dtype=np.float32)
        history_VPH[:, : len(history_LH)] = history_LH
        mask_VP = np.zeros((len(keep_VL), length), dtype=np.bool_)
        mask_VP[:, : len(history_LH)] = keep_VL
        if self._ages_L is None:
            return self._bundle.encode_users(history_VPH, mask_VP)
        ages_VP = np.repeat(pad_ages(self._ages_L, length=length)[np.newaxis], len(keep_VL), axis=0)
        return self._bundle.encode_users(history_VPH, mask_VP, ages_VP)


class _Tally:
    """Sums over users for one method. Areas are summed before they are divided: no small rise can blow up a user's."""

    def __init__(self) -> None:
        self.tops: list[int] = []
        self._area = np.zeros(2)
        self._random_area = np.zeros(2)
        self._whole = 0.0
        self._num_users = 0

    def add(self, area: NDArray[np.float64], random_area: NDArray[np.float64], whole: float) -> None:
        """Count one user."""
        self._area += area
        self._random_area += random_area
        self._whole += whole
        self._num_users += 1

    @property
    def is_measurable(self) -> bool:
        """Tell whether histories lift what is recommended for them at all."""
        return self._whole > 0

    def result(self, drivers: Sequence[int]) -> Faithfulness:
        """Return the means."""
        deletion, insertion = (self._area / self._whole).tolist()
        random_deletion, random_insertion = (self._random_area / self._whole).tolist()
        hits = [top == driver for top, driver in zip(self.tops, drivers, strict=True)]
        return Faithfulness(
            deletion_auc=deletion,
            insertion_auc=insertion,
            random_deletion_auc=random_deletion,
            random_insertion_auc=random_insertion,
            driver_accuracy=float(np.mean(hits)) if hits else None,
            driver_chance=float(np.bincount(drivers).max() / len(drivers)) if drivers else None,
            num_users=self._num_users,
        )
