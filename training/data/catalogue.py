"""The catalogue's vectors as tensors: whole in memory where it fits, else read row by row from the mapped files.

Legend: `N` items asked for, `M` modalities, `D_m` raw width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from api_schemas.manifest import Modality
from index.dataset import Dataset
from index.features import ModelInputs, from_dataset
from training.data.conditioning import ConditioningConfig, InputMap, fit
from training.models import FeatureSpec

_RESIDENT_BYTES = 4 << 30
"""Larger catalogues stay on disk."""

_CHUNK_ROWS = 16_384


class Catalogue:
    """Model inputs of items by row, as `index.features` prepares them for training and serving alike.

    They are raw until `condition` is called.
    """

    def __init__(self, dataset: Dataset, *, device: torch.device | None = None) -> None:
        self._dataset = dataset
        self._device = device
        self._modalities = tuple(Modality(name=m.name, dim=m.dim) for m in dataset.manifest.modalities)
        self.maps: list[InputMap] = []
        """What was done to the raw vectors, for the model to absorb."""
        self.num_items = dataset.num_items
        row_bytes = 4 * sum(modality.dim for modality in self._modalities)
        self._resident = self._load(slice(0, self.num_items)) if self.num_items * row_bytes <= _RESIDENT_BYTES else None

    @property
    def features(self) -> FeatureSpec:
        """Return names and widths of what `inputs` gives."""
        if not self.maps:
            return FeatureSpec(self._modalities)
        pairs = zip(self._modalities, self.maps, strict=True)
        return FeatureSpec(tuple(Modality(name=modality.name, dim=one.width) for modality, one in pairs))

    def condition(self, config: ConditioningConfig) -> None:
        """Fit a map on the raw vectors and give mapped ones from now on."""
        self.take(fit(config, self.chunks(), dims=[modality.dim for modality in self._modalities]))

    def take(self, maps: list[InputMap]) -> None:
        """Give mapped vectors from now on, in place of raw ones: one map for each modality."""
        if self._resident is not None:
            features, presence_NM = self._resident
            self._resident = [one(raw) for one, raw in zip(maps, features, strict=True)], presence_NM
        self.maps = maps

    def inputs(self, rows_N: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return vectors per modality `[N, D_m]` and presence `[N, M]` of some rows, or of all for None.

        Raises:
            ValueError: A present vector holds NaN or infinity; names modality and row.
        """
        if self._resident is None:
            rows = slice(0, self.num_items) if rows_N is None else rows_N.cpu().numpy()
            return self._load(rows)
        features, presence_NM = self._resident
        if rows_N is None:
            return features, presence_NM
        return [feature[rows_N] for feature in features], presence_NM[rows_N]

    def chunks(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Give the whole catalogue in order, in pieces of bounded size."""
        return map(self.inputs, self.rows_of_chunks())

    def rows_of_chunks(self) -> Iterator[Tensor]:
        """Give the rows of these pieces."""
        for start in range(0, self.num_items, _CHUNK_ROWS):
            yield torch.arange(start, min(start + _CHUNK_ROWS, self.num_items), device=self._device)

    def _load(self, rows: slice | NDArray[np.int64]) -> tuple[list[Tensor], Tensor]:
        inputs: ModelInputs = from_dataset(self._dataset, rows, self._modalities)
        features = [torch.from_numpy(vectors).to(self._device) for vectors in inputs.features]
        if self.maps:
            features = [one(raw) for one, raw in zip(self.maps, features, strict=True)]
        return features, torch.from_numpy(inputs.presence).to(self._device)
