"""Run a featuriser over many pictures or texts in bounded memory, telling which items had none."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from index.progress import Reporter, silent
from training.data.featurise.vectors import has_values

X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)

Batch = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Features `[B, D]` and presence `[B]`; rows of items without the modality are zero."""

BATCH_ROWS = 256


class Featuriser(Protocol[X_contra]):
    """Turns raw values into vectors, the same ones for the same value whatever the batch."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    @property
    def source(self) -> str:
        """What made the vectors, for the manifest."""
        ...

    def __call__(self, values: Sequence[X_contra], /) -> NDArray[np.float32]:
        """Return one L2-normalised row `[B, dim]` float32 a value."""
        ...


class PictureError(ValueError):
    """A picture file can not be decoded; names the file."""


def text_batches(
    texts: Iterable[str], featuriser: Featuriser[str], *, total: int, on_progress: Reporter = silent
) -> Iterator[Batch]:
    """Give (features, presence) batch by batch; an empty text, or one that gives a zero vector, is not present."""
    done = 0
    for batch in batched(texts, BATCH_ROWS):
        rows_BD = featuriser(batch)
        yield rows_BD, has_values(rows_BD)
        done += len(batch)
        on_progress("text features", done, total)


def image_batches(
    images: Iterable[Image.Image | Path | None],
    featuriser: Featuriser[Image.Image],
    *,
    total: int,
    on_progress: Reporter = silent,
) -> Iterator[Batch]:
    """Give (features, presence) batch by batch; None is an item without a picture.

    Raises:
        PictureError: A file is no picture, or is cut short.
    """
    done = 0
    for batch in batched(images, BATCH_ROWS):
        given = [row for row, image in enumerate(batch) if image is not None]
        rows_BD = np.zeros((len(batch), featuriser.dim), dtype=np.float32)
        if given:
            rows_BD[given] = featuriser([_picture(image) for image in batch if image is not None])
        # A picture of one flat colour has a vector all the same; one that has none is as good as missing.
        yield rows_BD, has_values(rows_BD)
        done += len(batch)
        on_progress("image features", done, total)


def batched(values: Iterable[X], size: int) -> Iterator[list[X]]:
    """Give consecutive lists of at most `size` values."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def _picture(image: Image.Image | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    try:
        with Image.open(image) as file:
            return file.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{image}: is not a readable picture: {error}") from error
