"""Row operations that the featurisers share."""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def unit_rows(rows_BD: Vectors) -> Vectors:
    """Return the rows scaled to length 1; a zero row stays zero."""
    length = np.linalg.norm(rows_BD, axis=1, keepdims=True)
    unit: Vectors = np.divide(rows_BD, length, out=np.zeros_like(rows_BD), where=length > 1e-12)
    return unit


def has_values(rows_BD: Vectors) -> NDArray[np.bool_]:
    """Tell which rows are not zero: `[B]`."""
    present_B: NDArray[np.bool_] = np.any(rows_BD, axis=1)
    return present_B
