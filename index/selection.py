"""Selection: which rows of a snapshot may be answered, in the forms that the searches need."""

from collections.abc import Sequence
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

from index.features import Mask, Rows


class Selection:
    """An immutable set of rows. Its other forms are made when they are first needed."""

    def __init__(self, mask_N: Mask) -> None:
        """Take over a mask `[N]`, which must not be changed afterwards."""
        self.mask_N = mask_N.view()
        self.mask_N.setflags(write=False)

    @cached_property
    def count(self) -> int:
        """How many rows are in it."""
        return int(np.count_nonzero(self.mask_N))

    @cached_property
    def rows(self) -> Rows:
        """The rows that are in it, ascending."""
        return np.flatnonzero(self.mask_N)

    @cached_property
    def _bits(self) -> NDArray[np.uint8]:
        return np.packbits(self.mask_N, bitorder="little")

    @cached_property
    def selector(self) -> faiss.IDSelector:
        """The same for FAISS; valid as long as this object is held."""
        return faiss.IDSelectorBitmap(self.mask_N.size, faiss.swig_ptr(self._bits))

    def without(self, rows: Sequence[int] | Rows) -> "Selection":
        """Return a selection that has all of this one but some rows."""
        mask_N = self.mask_N.copy()
        mask_N[np.asarray(rows, dtype=np.int64)] = False
        return Selection(mask_N)
