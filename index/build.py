"""From a factory string and a table of vectors to a trained, filled index on disk."""

import math
import re
from pathlib import Path

import faiss
import numpy as np

from index.features import Vectors
from index.progress import Reporter, silent
from index.tables import Table

_ADD_ROWS = 32_768
_TRAIN_ROWS_A_LIST = 40
"""FAISS warns below 39."""


def num_lists(factory: str) -> int:
    """Return how many lists the inverted file of a resolved factory string has; 0 when there is none."""
    found = re.search(r"IVF(\d+)", factory)
    return int(found[1]) if found else 0


def resolve_factory(factory: str, *, num_items: int, dim: int) -> str:
    """Fill `{nlist}` and `{dim}` into a factory string.

    Four times the square root of N lists, as FAISS advises, as a power of two, and not so many that there would be too
    few items to train them.

    Raises:
        ValueError: It asks for another name.
    """
    wanted = min(4 * math.sqrt(num_items), num_items / _TRAIN_ROWS_A_LIST)
    nlist = 1 << max(0, int(math.log2(max(1.0, wanted))))
    try:
        return factory.format(nlist=nlist, dim=dim)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"factory: {factory!r} has another placeholder than {{nlist}} and {{dim}}: {error}") from error


def build_index(
    factory: str,
    table: Table,
    path: Path,
    *,
    train_rows: int,
    num_threads: int,
    seed: int,
    report: Reporter = silent,
) -> None:
    """Train and fill the index that `factory` describes, and write it to `path`.

    Args:
        factory: Resolved FAISS factory string.
        table: Candidate vectors `[N, D]`; read in pieces.
        path: Where to.
        train_rows: How many vectors, drawn at random, it is trained on; more where its lists ask for more.
        num_threads: For training and adding.
        seed: Of the draw.
        report: Hears of the progress.

    Raises:
        ValueError: FAISS does not know the factory string, or can not build it for so many vectors of this width.
    """
    vectors_ND: Vectors = table.array
    num_items, dim = vectors_ND.shape
    faiss.omp_set_num_threads(num_threads)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        num_sampled = max(train_rows, _TRAIN_ROWS_A_LIST * num_lists(factory))
        sample = np.random.default_rng(seed).permutation(num_items)[:num_sampled]
        report("train index", 0, len(sample))
        index.train(vectors_ND[np.sort(sample)])
        report("train index", len(sample), len(sample))
        for start in range(0, num_items, _ADD_ROWS):
            index.add(vectors_ND[start : start + _ADD_ROWS])
            table.release()
            report("fill index", min(start + _ADD_ROWS, num_items), num_items)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1][:300]
        raise ValueError(f"factory: {factory!r} can not be built for {num_items} vectors of {dim}: {reason}") from error
    faiss.write_index(index, str(path))
