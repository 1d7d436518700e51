"""The stage that solves EASE, SLIT and item-kNN, and what makes two tables of their weights.

Only B_ji of different items counts: an item of the history is not recommended again. So the diagonal is free:
a multiple of the identity may be taken off, and the directions whose weights are nearest to it cost least to leave out.
With all directions the weights are exact (ADR 0030).

Legend: `I` items, `D` kept directions.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from torch import Tensor

from training.baselines import MAX_ITEMS, item_knn
from training.factors.data import FactorData
from training.factors.stages import Carry, Facts, Stage
from training.factors.transitions import slit, transitions
from training.models import EaseConfig, ItemItem, PopularityConfig, SlitConfig, SolvedFamily

Matrix = NDArray[np.float64]


class Factors(NamedTuple):
    """B, but for its diagonal, is rows times items transposed."""

    rows_ID: Matrix
    items_ID: Matrix
    kept: float
    """Share of the squared weights off the diagonal that they give: 1 where nothing is lost."""


class ClosedFormStage(Stage):
    """No step is taken: the weights are solved when the stage ends."""

    total_steps = 0

    def __init__(self, number: int, model: ItemItem, data: FactorData, family: SolvedFamily, *, prefix: str) -> None:
        """Take the tables to fill; `prefix` is that of what is handed on.

        Raises:
            ValueError: The catalogue is too large for matrices over all pairs of items.
        """
        if data.num_items > MAX_ITEMS and not isinstance(family, PopularityConfig):
            raise ValueError(
                f"model.kind = {family.kind} needs all pairs of items in memory: {data.num_items:,} items, at most "
                f"{MAX_ITEMS:,}"
            )
        self.name, self._number, self.module = "solve", number, model
        self._model, self._data, self._family, self._prefix = model, data, family, prefix

    def groups(self) -> list[dict[str, object]]:
        """Return the tables, which no step moves."""
        return [{"params": list(self._model.parameters()), "lr": 0.0}]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Never asked: there are no steps."""
        raise AssertionError(f"step {step} of a stage without steps")

    @torch.no_grad()
    def finish(self) -> tuple[Carry, Facts]:
        """Solve, and tell how much of the weights the tables keep."""
        factors = self._factors()
        self._model.rows_ID.copy_(torch.from_numpy(factors.rows_ID))
        self._model.items_ID.copy_(torch.from_numpy(factors.items_ID))
        tables = {f"{self._prefix}.{name}": value.clone() for name, value in self._model.state_dict().items()}
        return tables, {"kept": factors.kept}

    def _factors(self) -> Factors:
        family = self._family
        if isinstance(family, SlitConfig):
            histories, num_items = self._data.histories(self._data.users), self._data.num_items
            counts = transitions(histories, num_items=num_items, past=family.past, future=family.future)
            return slit_factors(*counts, ridge=family.ridge, dim=self._model.dim)
        seen_UI = seen(self._data)
        if isinstance(family, PopularityConfig):
            share_I1 = np.asarray(seen_UI.sum(axis=0), np.float64).reshape(-1, 1) / len(self._data.users)
            return Factors(np.ones_like(share_I1), share_I1, kept=1.0)
        gram_II: Matrix = (seen_UI.T @ seen_UI).toarray()
        if isinstance(family, EaseConfig):
            return ease_factors(gram_II, ridge=family.ridge, dim=self._model.dim)
        weights_II = item_knn(gram_II, num_neighbours=family.neighbours)
        return nearest_factors(weights_II.astype(np.float64), dim=self._model.dim)


def seen(data: FactorData) -> sp.csr_matrix:
    """Return 1 where a training user has an item, however often `[U, I]`; its square is how many users two share."""
    places = (data.user_E.numpy(), data.item_E.numpy())
    seen_UI = sp.csr_matrix((np.ones(len(places[0])), places), shape=(data.num_users, data.num_items))
    seen_UI.data[:] = 1
    return seen_UI


def ease_factors(gram_II: Matrix, *, ridge: float, dim: int) -> Factors:
    """Return EASE's weights -P_ji / P_ii with P = (G + ridge I)^-1, in `dim` of their directions.

    With G = V g V', -P off the diagonal is V (w - c) V' / ridge, w = g / (g + ridge), for any c. P_ii is exact however
    few directions are kept.
    """
    values_I, vectors_II = np.linalg.eigh(gram_II)
    values_I = np.maximum(values_I, 0)
    diagonal_I = (np.square(vectors_II) / (values_I + ridge)).sum(axis=1)
    weight_I = values_I / (values_I + ridge)
    left_out = _most_alike(weight_I, count=max(0, len(weight_I) - dim))
    common = float(weight_I[left_out].mean()) if left_out.stop > left_out.start else 0.0
    vectors_ID = np.delete(vectors_II, left_out, axis=1)
    weight_D = np.delete(weight_I, left_out) - common
    scale_I1 = 1 / (ridge * diagonal_I[:, None])
    rows_ID = vectors_ID * np.sqrt(np.abs(weight_D))
    items_ID = vectors_ID * np.copysign(np.sqrt(np.abs(weight_D)), weight_D) * scale_I1
    return Factors(rows_ID, items_ID, _kept(rows_ID @ items_ID.T, (vectors_II * weight_I) @ vectors_II.T * scale_I1.T))


def _most_alike(ascending_I: Matrix, *, count: int) -> slice:
    """Return which so many neighbours of ascending numbers have the least variance."""
    sums, squares = (np.concatenate([[0], np.cumsum(one)]) for one in (ascending_I, np.square(ascending_I)))
    spread = squares[count:] - squares[: len(squares) - count]
    if count > 0:
        spread = spread - np.square(sums[count:] - sums[: len(sums) - count]) / count
    start = int(np.argmin(spread))
    return slice(start, start + count)


def slit_factors(gram_II: Matrix, follow_II: Matrix, *, ridge: float, dim: int) -> Factors:
    """Return SLIT's weights in the `dim` directions that lose least of what is predicted (reduced-rank regression).

    Of an item's column, errors count in units of the root of how often the item stood in a history: else the few that
    everybody has would take all directions.
    """
    weights_II = slit(gram_II, follow_II, ridge=ridge)
    unit_I = np.sqrt(np.maximum(np.diag(gram_II), 1.0))
    scaled_II = weights_II / unit_I
    vectors_II = np.linalg.eigh(scaled_II.T @ gram_II @ scaled_II)[1]
    vectors_ID = vectors_II[:, -dim:]
    rows_ID, items_ID = scaled_II @ vectors_ID, vectors_ID * unit_I[:, None]
    return Factors(rows_ID, items_ID, _kept(rows_ID @ items_ID.T, weights_II))


def nearest_factors(weights_II: Matrix, *, dim: int) -> Factors:
    """Return the nearest matrix of rank `dim`, by singular values."""
    if dim < len(weights_II) - 1:
        start_I = np.full(len(weights_II), len(weights_II) ** -0.5)  # else drawn: another sign in each run
        left_ID, values_D, right_DI = svds(sp.csr_matrix(weights_II), k=dim, v0=start_I)
    else:
        left_ID, values_D, right_DI = (part for part in np.linalg.svd(weights_II))
        left_ID, values_D, right_DI = left_ID[:, :dim], values_D[:dim], right_DI[:dim]
    root_D = np.sqrt(values_D)
    rows_ID, items_ID = left_ID * root_D, right_DI.T * root_D
    return Factors(rows_ID, items_ID, _kept(rows_ID @ items_ID.T, weights_II))


def _kept(found_II: Matrix, weights_II: Matrix) -> float:
    """Return 1 minus the squared error over the squared weights, off the diagonal."""
    error_II, whole_II = np.square(weights_II - found_II), np.square(weights_II)
    np.fill_diagonal(error_II, 0)
    np.fill_diagonal(whole_II, 0)
    return float(1 - error_II.sum() / max(whole_II.sum(), 1e-300))
