"""Categories as vectors: one coordinate a category."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.data.featurise.vectors import has_values

_MAX_CATEGORIES = 1024


class CategoryFeaturiser:
    """Multi-hot rows over a fixed list of categories, scaled to length 1."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self.dim = len(self.vocabulary)
        self._column = {name: column for column, name in enumerate(self.vocabulary)}

    @classmethod
    def fit(cls, categories: Iterable[Sequence[str]]) -> Self:
        """Take the categories that occur, at most the 1,024 most frequent ones, in alphabetical order."""
        counts = Counter(name for names in categories for name in set(names))
        frequent = sorted(counts, key=lambda name: (-counts[name], name))[:_MAX_CATEGORIES]
        return cls(sorted(frequent))

    @property
    def source(self) -> str:
        """What the columns mean."""
        return f"multi-hot: {', '.join(self.vocabulary)}"

    def __call__(self, categories: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Return `[B, dim]` float32; an item without a category of the list gets a row of zeros."""
        rows_BD = np.zeros((len(categories), self.dim), dtype=np.float32)
        for row, names in enumerate(categories):
            columns = [self._column[name] for name in names if name in self._column]
            if columns:
                rows_BD[row, columns] = 1 / np.sqrt(len(set(columns)))
        return rows_BD

    def batches(
        self, categories: Iterable[Sequence[Sequence[str]]]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Give (features, presence) for batches of items; an item without a known category lacks the modality."""
        for batch in categories:
            rows_BD = self(batch)
            yield rows_BD, has_values(rows_BD)
