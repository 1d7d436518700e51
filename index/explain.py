"""Explanations: what each method says about K candidates, one history and a bundle (in words: docs/explanations.md).

The service and `prismrec-train evaluate` both call this, so what was measured is what is served. No method needs raw
vectors: everything starts at the states of an item's parts. What is said of modalities holds for all parts.

Legend: `K` candidates, `L` history items (real ones, oldest first, no padding), `P` the bundle's fixed history length,
`M` parts of an item (its modalities, then what the model adds), `S` state width, `D` vector width, `H` history row, `Q`
queries, `V` variants of one history.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from api_schemas.manifest import RANKER_METHODS, ExplanationMethod
from index.features import Ages, pad_ages
from index.shapley import shapley_values

if TYPE_CHECKING:
    from index.bundle import Bundle

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]

METHODS: tuple[ExplanationMethod, ...] = (
    "decomposition",
    "shapley",
    "occlusion",
    "grad_x_input",
    "interest_gradient",
)
"""All of them, the default first: additive, and of the methods that are, the one that finds the planted driver best."""

_GRADIENT_OUTPUTS: dict[ExplanationMethod, tuple[str, str]] = {
    "interest_gradient": ("item_interest", "modality_interest"),
    "grad_x_input": ("item_grad_x_input", "modality_grad_x_input"),
    "decomposition": ("item_grad_x_input", "modality_grad_x_input"),
}


@dataclass(frozen=True, slots=True, eq=False)
class ExplanationArrays:
    """What one method says about K candidates. Signed: negative speaks against the candidate."""

    scores_K: Vectors
    interest_KM: Vectors
    """Each modality of the history as a whole; `modality_shares` makes shares of it."""
    history_KL: Vectors
    """Each past item."""
    grid_KLM: Vectors
    """Each modality of each past item; zero where the item lacks it."""
    contributions_KM: Vectors
    """The score by modality: of the candidate, or for `shapley` of the history."""
    residual_K: Vectors
    """Score minus contributions: the score of an empty history for `shapley`. For `decomposition` rounding, or where
    the scorer is a log-sum-exp the entropy of the queries' weights."""
    additive: bool
    """Contributions and residual are a split of the score that the method defines, not one by subtraction."""


def modality_shares(interest_KM: Vectors, *, scores_K: Vectors) -> NDArray[np.float64]:
    """Return each modality's share `[M]` of what speaks for K candidates: not negative, sum 1.

    Candidates count by the softmax of their scores, which is the model's own probability of each among them: so it
    does not matter how many unlikely ones stand at the end of a slate. The mean of the signed values is taken first,
    so that what cancels cancels, and a modality's share is the positive part of its mean. Where no modality speaks
    for the candidates, nothing tells them apart and all shares are equal.
    """
    odds_K = np.exp(scores_K.astype(np.float64) - scores_K.max())
    positive_M = np.maximum(odds_K @ interest_KM, 0.0)
    total = positive_M.sum()
    if not total > 0:
        return np.full(len(positive_M), 1 / len(positive_M))
    shares_M: NDArray[np.float64] = positive_M / total
    return shares_M


def explain(
    bundle: "Bundle",
    *,
    method: ExplanationMethod,
    states_LMS: Vectors,
    presence_LM: Mask,
    candidate_states_KMS: Vectors,
    candidate_presence_KM: Mask,
    ages_L: Ages | None = None,
) -> ExplanationArrays:
    """Explain the scores of K candidates for one history.

    Args:
        bundle: The model.
        method: Which method; its meaning and cost are in docs/explanations.md.
        states_LMS: Modality states of the history, oldest first. Of more than the bundle's history length only the
            last count, and the others get zeros. May be empty.
        presence_LM: Which of them are there.
        candidate_states_KMS: Modality states of the candidates; at least one.
        candidate_presence_KM: Which of them are there.
        ages_L: Seconds from each behaviour of the history to its latest one, for models that read them. They are held:
            what is taken away of a history leaves the others as old as they were.

    Raises:
        ValueError: The method needs gradients, and the model is a ranker.
    """
    if bundle.manifest.is_ranker and method not in RANKER_METHODS:
        raise ValueError(f"method: {method} needs gradients, which a ranker has not; it has {RANKER_METHODS}")
    history = _History(bundle.manifest.history_length, states_LMS, presence_LM, ages_L)
    states_KMS = np.ascontiguousarray(candidate_states_KMS, dtype=np.float32)
    presence_KM = np.ascontiguousarray(candidate_presence_KM)
    if method == "occlusion":
        return _by_occlusion(bundle, history, states_KMS, presence_KM)
    if method == "shapley":
        return _by_shapley(bundle, history, states_KMS, presence_KM)
    return _by_gradient(bundle, method, history, states_KMS, presence_KM)


def history_with(bundle: "Bundle", *, states_LMS: Vectors, presence_LM: Mask, allowed_M: Mask) -> Vectors:
    """Return the rows `[L, H]` of a history in which some parts alone are allowed, as `occlusion` makes them."""
    history = _History(len(states_LMS), states_LMS, presence_LM)
    rows_LH: Vectors = _rows_with(bundle, history, allowed_M[np.newaxis])[0]
    return rows_LH


class _History:
    """One history, cut to what the model reads."""

    def __init__(self, length: int, states_LMS: Vectors, presence_LM: Mask, ages_L: Ages | None = None) -> None:
        self.length = length
        """P."""
        self._num_given = len(states_LMS)
        self._num_cut = max(self._num_given - length, 0)
        self.states_LMS = np.ascontiguousarray(states_LMS[self._num_cut :], dtype=np.float32)
        self.presence_LM = np.ascontiguousarray(presence_LM[self._num_cut :])
        self._ages_L = ages_L

    @property
    def num_items(self) -> int:
        """L after the cut."""
        return len(self.states_LMS)

    def padded(self) -> tuple[Vectors, Mask, Mask]:
        """Return states `[1, P, M, S]`, presence `[1, P, M]`, mask `[1, P]`."""
        states = np.zeros((1, self.length, *self.states_LMS.shape[1:]), dtype=np.float32)
        presence = np.zeros((1, self.length, self.presence_LM.shape[1]), dtype=np.bool_)
        states[0, : self.num_items], presence[0, : self.num_items] = self.states_LMS, self.presence_LM
        return states, presence, np.arange(self.length)[None] < self.num_items

    def ages(self, num: int) -> Ages | None:
        """Return the ages of so many variants of the history `[V, P]`, if they are known."""
        if self._ages_L is None:
            return None
        return np.repeat(pad_ages(self._ages_L, length=self.length)[np.newaxis], num, axis=0)

    def aligned(self, values: Vectors) -> Vectors:
        """Turn `[K, P or L, ...]` into `[K, L as given, ...]`: padding off, zeros for items that were cut."""
        given = np.zeros((len(values), self._num_given, *values.shape[2:]), dtype=np.float32)
        given[:, self._num_cut :] = values[:, : self.num_items]
        return given


def _by_gradient(
    bundle: "Bundle", method: ExplanationMethod, history: _History, states_KMS: Vectors, presence_KM: Mask
) -> ExplanationArrays:
    item_output, modality_output = _GRADIENT_OUTPUTS[method]
    states, presence, mask = history.padded()
    out = bundle.explain(
        states=states,
        presence=presence,
        mask=mask,
        candidate_states=states_KMS,
        candidate_presence=presence_KM,
        ages=history.ages(1),
        outputs=("scores", item_output, modality_output, "contributions"),
    )
    scores_K, contributions_KM = out["scores"][0], out["contributions"][0]
    grid_KLM = history.aligned(out[modality_output][0])
    return ExplanationArrays(
        scores_K=scores_K,
        interest_KM=grid_KLM.sum(axis=1),
        history_KL=history.aligned(out[item_output][0]),
        grid_KLM=grid_KLM,
        contributions_KM=contributions_KM,
        residual_K=scores_K - contributions_KM.sum(axis=1),
        additive=method == "decomposition" and bundle.manifest.scorer == "max",
    )


def _by_occlusion(bundle: "Bundle", history: _History, states_KMS: Vectors, presence_KM: Mask) -> ExplanationArrays:
    without_MM = ~np.eye(presence_KM.shape[1], dtype=np.bool_)
    candidates_KD = bundle.encode_states(states_KMS, presence_KM).candidates
    rows_JLH = _rows_with(bundle, history, np.concatenate([np.ones_like(without_MM[:1]), without_MM]))
    variants = _Occluded(history, rows_JLH)
    queries_VQD = bundle.encode_users(variants.rows_VPH, variants.mask_VP, history.ages(len(variants.mask_VP)))
    scores_VK = bundle.score(queries_VQD, candidates_KD)
    scores_K = scores_VK[0]
    interest_MK, history_LK, grid_LMK = variants.parts(scores_K - scores_VK)
    contributions_KM = lost_without_parts(bundle, queries_VQD[0], scores_K, states_KMS, presence_KM)
    return ExplanationArrays(
        scores_K=scores_K,
        interest_KM=interest_MK.T,
        history_KL=history.aligned(history_LK.T),
        grid_KLM=history.aligned(grid_LMK.transpose(2, 0, 1)),
        contributions_KM=contributions_KM,
        residual_K=scores_K - contributions_KM.sum(axis=1),
        additive=False,
    )


def lost_without_parts(
    bundle: "Bundle", queries_QD: Vectors, scores_K: Vectors, states_KMS: Vectors, presence_KM: Mask
) -> Vectors:
    """Return what each candidate's score for one user loses without each of its own parts `[K, M]`."""
    without_MM = ~np.eye(presence_KM.shape[1], dtype=np.bool_)
    without_MKD = [bundle.encode_states(states_KMS, presence_KM & allowed_M).candidates for allowed_M in without_MM]
    return np.stack([scores_K - bundle.score(queries_QD[np.newaxis], one_KD)[0] for one_KD in without_MKD], axis=1)


def _by_shapley(bundle: "Bundle", history: _History, states_KMS: Vectors, presence_KM: Mask) -> ExplanationArrays:
    """A coalition is the modalities that the whole history keeps; its worth is the candidate's score then.

    The empty coalition leaves no history, so its worth is the score of the model's default query. A modality that no
    item has adds nothing to any coalition: its value is zero without asking. Items and cells, on which this game says
    nothing, are those of gradient x input; of a ranker, which has no gradients, those of occlusion.
    """
    candidates_KD = bundle.encode_states(states_KMS, presence_KM).candidates
    players = np.flatnonzero(history.presence_LM.any(axis=0))

    def worth(coalitions_VC: Mask) -> Vectors:
        allowed_VM = np.zeros((len(coalitions_VC), presence_KM.shape[1]), dtype=np.bool_)
        allowed_VM[:, players] = coalitions_VC
        rows_VPH, mask_VP = _padded(_rows_with(bundle, history, allowed_VM), history.length)
        mask_VP[:, : history.num_items] &= (history.presence_LM & allowed_VM[:, None]).any(axis=2)
        return bundle.score(bundle.encode_users(rows_VPH, mask_VP, history.ages(len(mask_VP))), candidates_KD)

    values_KC, _ = shapley_values(worth, num_players=len(players))
    values_KM = np.zeros(presence_KM.shape, dtype=np.float32)
    values_KM[:, players] = values_KC
    if bundle.manifest.is_ranker:
        items = _by_occlusion(bundle, history, states_KMS, presence_KM)
    else:
        items = _by_gradient(bundle, "grad_x_input", history, states_KMS, presence_KM)
    return ExplanationArrays(
        scores_K=items.scores_K,
        interest_KM=values_KM,
        history_KL=items.history_KL,
        grid_KLM=items.grid_KLM,
        contributions_KM=values_KM,
        residual_K=items.scores_K - values_KM.sum(axis=1),
        additive=True,
    )


class _Occluded:
    """One history whole, then without each modality, each item, and each modality of each item: V variants."""

    def __init__(self, history: _History, rows_JLH: Vectors) -> None:
        """Lay the variants out; `rows_JLH` are the history's rows with all modalities, then without each one."""
        num_items, self._num_modalities = history.presence_LM.shape
        self._items_C, self._modalities_C = np.nonzero(history.presence_LM)
        self._first_item = 1 + self._num_modalities
        self._first_cell = self._first_item + num_items
        items_L, cells_C = np.arange(num_items), self._first_cell + np.arange(len(self._items_C))
        rows_VLH = np.repeat(rows_JLH[:1], self._first_cell + len(cells_C), axis=0)
        rows_VLH[: self._first_item] = rows_JLH
        rows_VLH[cells_C, self._items_C] = rows_JLH[1 + self._modalities_C, self._items_C]
        self.rows_VPH, self.mask_VP = _padded(rows_VLH, history.length)
        self.mask_VP[self._first_item + items_L, items_L] = False

    def parts(self, drop_VK: Vectors) -> tuple[Vectors, Vectors, Vectors]:
        """Return what each variant's drop belongs to: modalities `[M, K]`, items `[L, K]`, cells `[L, M, K]`."""
        item_LK = drop_VK[self._first_item : self._first_cell]
        cell_LMK = np.zeros((len(item_LK), self._num_modalities, drop_VK.shape[1]), dtype=np.float32)
        cell_LMK[self._items_C, self._modalities_C] = drop_VK[self._first_cell :]
        return drop_VK[1 : self._first_item], item_LK, cell_LMK


def _padded(rows_VLH: Vectors, length: int) -> tuple[Vectors, Mask]:
    """Return rows `[V, P, H]` and mask `[V, P]` of V histories of the same L items."""
    rows_VPH = np.zeros((len(rows_VLH), length, rows_VLH.shape[2]), dtype=np.float32)
    rows_VPH[:, : rows_VLH.shape[1]] = rows_VLH
    return rows_VPH, np.repeat(np.arange(length)[None] < rows_VLH.shape[1], len(rows_VLH), axis=0)


def _rows_with(bundle: "Bundle", history: _History, allowed_JM: Mask) -> Vectors:
    """Return the history's rows `[J, L, H]` with only some modalities allowed in all items."""
    presence_JLM = history.presence_LM & allowed_JM[:, None, :]
    states_JLMS = np.broadcast_to(history.states_LMS, (len(allowed_JM), *history.states_LMS.shape))
    rows_XH = bundle.encode_states(
        states_JLMS.reshape(-1, *history.states_LMS.shape[1:]), presence_JLM.reshape(-1, presence_JLM.shape[2])
    ).history
    return rows_XH.reshape(len(allowed_JM), history.num_items, rows_XH.shape[1])
