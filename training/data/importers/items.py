"""Write the items of an import with all their modalities: texts, categories, pictures and ready-made feature files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from index.dataset_write import DatasetWriter
from index.progress import Reporter, silent
from training.data.featurise import CategoryFeaturiser, Featuriser, HashedText, ImageDescriptor
from training.data.featurise.batches import BATCH_ROWS, Batch, batched, image_batches, text_batches
from training.data.importers.sources import SourceError

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A ready-made modality: a `.npy` of vectors, and whose they are."""

    name: str
    path: Path
    """`[rows, D]` floating point."""
    ids: Path | None = None
    """One item id a line, in the order of the rows; None: the rows are in the order of the items."""


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """Where the modalities come from beyond the item table itself."""

    images: Path | None = None
    """Folder of pictures named by item id; they become the modality `visual`."""
    files: tuple[FeatureFile, ...] = ()
    """A file takes the place of the built-in modality of the same name."""
    image_featuriser: Featuriser[Image.Image] = field(default_factory=ImageDescriptor)
    text_featuriser: Featuriser[str] = field(default_factory=HashedText)


@dataclass(frozen=True, slots=True)
class SourceItems:
    """The items of a source in row order."""

    table: pa.Table
    """As items.parquet has it."""
    texts: Sequence[str]
    """What the text modality is made of; empty strings where there is none."""


def write_items(
    writer: DatasetWriter, items: SourceItems, options: FeatureOptions, *, on_progress: Reporter = silent
) -> None:
    """Write items.parquet and the features of every modality that the source has.

    Raises:
        SourceError: A feature file does not fit the items, or there is nothing to make any modality of.
        PictureError: A picture can not be decoded.
    """
    writer.add_items(items.table)
    num = items.table.num_rows
    item_ids = items.table["item_id"].to_pylist()
    given = {file.name for file in options.files}
    for file in options.files:
        _write_file(writer, file, item_ids)
    if options.images is not None and "visual" not in given:
        image = options.image_featuriser
        pictures = _pictures(options.images, item_ids)
        batches = image_batches(pictures, image, total=num, on_progress=on_progress)
        writer.add_modality("visual", dim=image.dim, batches=batches, source=image.source)
    if any(items.texts) and "text" not in given:
        text = options.text_featuriser
        batches = text_batches(items.texts, text, total=num, on_progress=on_progress)
        writer.add_modality("text", dim=text.dim, batches=batches, source=text.source)
    if "categories" in items.table.column_names and "category" not in given:
        names = [values or [] for values in items.table["categories"].to_pylist()]
        category = CategoryFeaturiser.fit(names)
        if category.dim:
            batches = category.batches(batched(names, BATCH_ROWS))
            writer.add_modality("category", dim=category.dim, batches=batches, source=category.source)
    if not writer.modality_names:
        raise SourceError(Path("items"), "no text, category, picture or feature file to make a modality of")


def _write_file(writer: DatasetWriter, file: FeatureFile, item_ids: Sequence[str]) -> None:
    vectors = _vectors(file)
    row_N = np.arange(len(item_ids))
    if file.ids is not None:
        row_N = _rows_of(file, file.ids, len(vectors), item_ids)
    elif len(vectors) != len(item_ids):
        raise SourceError(file.path, f"has {len(vectors)} rows for {len(item_ids)} items, and no file of ids beside it")
    batches = _file_batches(file, vectors, row_N)
    dtype = np.float16 if vectors.dtype == np.float16 else np.float32
    source = f"feature file {file.path.name}"
    writer.add_modality(file.name, dim=vectors.shape[1], batches=batches, dtype=dtype, source=source)


def _vectors(file: FeatureFile) -> NDArray[np.floating]:
    try:
        vectors = np.load(file.path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise SourceError(file.path, "file is missing") from error
    except (ValueError, OSError, EOFError) as error:
        raise SourceError(file.path, f"is not a readable .npy file: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        found = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "a .npz archive"
        raise SourceError(file.path, f"is {found}, expected one floating point array [rows, dim]")
    return vectors


def _rows_of(file: FeatureFile, ids_path: Path, num_rows: int, item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the row of each item in the file, -1 where it has none: `[N]`."""
    try:
        ids = ids_path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(ids_path, f"is not a readable list of ids: {error}") from error
    if len(ids) != num_rows:
        raise SourceError(ids_path, f"has {len(ids)} lines, but {file.path.name} has {num_rows} rows")
    rows: dict[str, int] = {}
    for row, item_id in enumerate(ids):
        if rows.setdefault(item_id, row) != row:
            raise SourceError(ids_path, f"item {item_id!r} appears again", line=row + 1)
    return np.array([rows.get(item_id, -1) for item_id in item_ids], dtype=np.int64)


def _file_batches(file: FeatureFile, vectors: NDArray[np.floating], row_N: NDArray[np.int64]) -> Iterator[Batch]:
    for start in range(0, len(row_N), BATCH_ROWS):
        row_B = row_N[start : start + BATCH_ROWS]
        rows_BD = np.zeros((len(row_B), vectors.shape[1]), dtype=np.float32)
        has_B = row_B >= 0
        with np.errstate(over="ignore"):  # what float32 can not hold becomes infinite, and is told below
            rows_BD[has_B] = vectors[row_B[has_B]]
        bad_B = ~np.isfinite(rows_BD).all(axis=1)
        if bad_B.any():
            at = int(np.argmax(bad_B))
            column = int(np.argmax(~np.isfinite(rows_BD[at])))
            detail = f"row {row_B[at]}, column {column}: value is {rows_BD[at, column]}, expected a finite number"
            raise SourceError(file.path, detail)
        yield rows_BD, has_B & rows_BD.any(axis=1)


def _pictures(folder: Path, item_ids: Sequence[str]) -> Iterator[Path | None]:
    if not folder.is_dir():
        raise SourceError(folder, "is not a folder of pictures")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURE_SUFFIXES}
    return (files.get(item_id) for item_id in item_ids)
