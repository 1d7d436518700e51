"""Raw modality arrays become model inputs here, for training and for serving alike, and nowhere else.

Legend of shapes: `B` batch of items, `D` raw width of one modality, `M` modalities, `L` history length, `H` width of
a history row, `n` as many as there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from api_schemas.manifest import Modality

if TYPE_CHECKING:
    from index.dataset import Dataset

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Ages = NDArray[np.float32]
"""Seconds from each behaviour of a history to its latest one."""

_SAFE_SQUARED_NORM = (1e-30, 1e30)
"""Outside of it a float32 sum of squares may have lost its digits; such rows are scaled before they are measured."""


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """What every item encoder takes: one entry a modality, in the order of the bundle's manifest."""

    features: tuple[Vectors, ...]
    """By modality `[B, D_m]`: rows of length 1, zero where the modality is absent."""
    presence: Mask
    """`[B, M]`."""

    def __len__(self) -> int:
        """Return the number of items B."""
        return len(self.presence)


def prepare(
    raw: Mapping[str, NDArray[Any]],
    presence: Mapping[str, Mask],
    modalities: Sequence[Modality],
    *,
    first_row: int = 0,
) -> ModelInputs:
    """Scale raw vectors to length 1 (methods: normalise per item before anything else) and settle what is present.

    A vector of zeros counts as absent, as does one whose presence flag is False, whatever it holds. A modality that
    `raw` does not name is absent for all items; one that `presence` does not name is present wherever it is not zero.

    Args:
        raw: By modality `[B, D_m]`, float16 or float32 (or anything that converts to float32).
        presence: By modality `[B]`.
        modalities: The model's modalities, in its order.
        first_row: Row number of the batch's first item, for messages only.

    Raises:
        ValueError: A shape does not fit, or a present vector holds NaN or infinity; names modality and row.
    """
    lengths = {len(values) for values in raw.values()} | {len(flags) for flags in presence.values()}
    if len(lengths) != 1:
        raise ValueError(f"modalities of one batch differ in length: {sorted(lengths)}")
    (num_items,) = lengths
    presence_BM = np.zeros((num_items, len(modalities)), dtype=np.bool_)
    features: list[Vectors] = []
    for column, modality in enumerate(modalities):
        values = raw.get(modality.name)
        if values is None:
            features.append(np.zeros((num_items, modality.dim), dtype=np.float32))
            continue
        if values.shape != (num_items, modality.dim):
            raise ValueError(f"{modality.name}: shape {values.shape}, expected {(num_items, modality.dim)}")
        unit_BD, present_B = _unit_rows(values, presence.get(modality.name), name=modality.name, first_row=first_row)
        features.append(unit_BD)
        presence_BM[:, column] = present_B
    return ModelInputs(features=tuple(features), presence=presence_BM)


def _unit_rows(values: NDArray[Any], flags_B: Mask | None, *, name: str, first_row: int) -> tuple[Vectors, Mask]:
    unit_BD: Vectors = np.array(values, dtype=np.float32, order="C")  # a copy: the caller's array stays as it is
    if flags_B is not None:
        if flags_B.dtype != np.bool_:
            raise ValueError(f"{name}: presence has dtype {flags_B.dtype}, expected bool")
        unit_BD[~flags_B] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        squared_B = np.einsum("bd,bd->b", unit_BD, unit_BD)
    low, high = _SAFE_SQUARED_NORM
    unsafe = np.flatnonzero(~((squared_B > low) & (squared_B < high)))
    if unsafe.size:
        bad = unsafe[~np.isfinite(unit_BD[unsafe]).all(axis=1)]
        if bad.size:
            raise ValueError(f"{name}: row {first_row + int(bad[0])} holds NaN or infinity")
        peak = np.abs(unit_BD[unsafe]).max(axis=1, keepdims=True)
        scaled = unit_BD[unsafe] / np.where(peak > 0, peak, 1)
        unit_BD[unsafe] = scaled
        squared_B[unsafe] = np.einsum("bd,bd->b", scaled, scaled)
    present_B = squared_B > 0
    scale_B = np.zeros_like(squared_B)
    np.divide(1.0, np.sqrt(squared_B), out=scale_B, where=present_B)
    unit_BD *= scale_B[:, np.newaxis]
    return unit_BD, present_B


def from_dataset(dataset: "Dataset", rows: slice | Rows, modalities: Sequence[Modality]) -> ModelInputs:
    """Prepare some rows of a dataset folder; a modality that the folder lacks is absent for all of them.

    Raises:
        ValueError: A modality has another width than the model's, or a present vector holds NaN or infinity.
    """
    known = {modality.name for modality in dataset.manifest.modalities}
    names = [modality.name for modality in modalities if modality.name in known]
    if not names:
        wanted = [modality.name for modality in modalities]
        raise ValueError(f"{dataset.path}: has none of the model's modalities {wanted}, only {sorted(known)}")
    raw = {name: dataset.features(name)[rows] for name in names}
    presence = {name: np.asarray(dataset.presence(name)[rows]) for name in names}
    first_row = (rows.start or 0) if isinstance(rows, slice) else 0
    return prepare(raw, presence, modalities, first_row=first_row)


def pad_history(rows: Sequence[int] | Rows, *, length: int) -> tuple[Rows, Mask]:
    """Cut a history to its last `length` items and pad it at the end, for `[L]` row numbers and their mask.

    Padded places hold row 0; the mask is what makes them nothing.
    """
    last = np.asarray(rows, dtype=np.int64)[-length:]
    rows_L = np.zeros(length, dtype=np.int64)
    rows_L[: last.size] = last
    mask_L = np.zeros(length, dtype=np.bool_)
    mask_L[: last.size] = True
    return rows_L, mask_L


def ages_of(times_n: NDArray[Any]) -> Ages:
    """Return how long before the latest behaviour of a history each one was, in seconds `[n]`: not negative.

    From the history's own end, not from now: the same history is read the same whenever it is, and a target's time is
    no part of it.
    """
    ages_n: Ages = (times_n.max(initial=0) - times_n).astype(np.float32)
    return ages_n


def pad_ages(ages_n: Ages, *, length: int) -> Ages:
    """Cut ages to the last `length` and pad with zeros at the end, for `[L]`."""
    last = ages_n[-length:]
    ages_L = np.zeros(length, dtype=np.float32)
    ages_L[: last.size] = last
    return ages_L


def pad_vectors(history_nH: Vectors, *, length: int) -> tuple[Vectors, Mask]:
    """Cut history rows `[n, H]` to the last `length` and pad with zeros at the end, for `[L, H]` and their mask."""
    last = history_nH[-length:]
    history_LH = np.zeros((length, history_nH.shape[1]), dtype=np.float32)
    history_LH[: last.shape[0]] = last
    mask_L = np.zeros(length, dtype=np.bool_)
    mask_L[: last.shape[0]] = True
    return history_LH, mask_L
