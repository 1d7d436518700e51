"""The items of a generated data set: what each looks like, is about and is, decided independently of one another.

Items are prints on things to buy: the picture's style (visual), what it is about (text) and the thing that it is
printed on (category) have nothing to do with each other, so that each modality carries information of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from training.data.generator import covers, texts
from training.data.generator.covers import COVER_STYLES, draw_cover
from training.data.generator.texts import TOPICS, write_text

MODALITIES = ("visual", "text", "category")
NUM_STYLES = 8
"""In every modality, so that no modality says more about a user than another."""

KINDS: dict[str, tuple[str, str, str]] = {
    "Mugs": ("Enamel mugs", "Tea mugs", "Espresso cups"),
    "Posters": ("Framed posters", "Large posters", "Postcards"),
    "Notebooks": ("Lined notebooks", "Sketchbooks", "Diaries"),
    "Bags": ("Tote bags", "Backpacks", "Pouches"),
    "Cushions": ("Square cushions", "Round cushions", "Bolsters"),
    "Puzzles": ("500 pieces", "1000 pieces", "Wooden puzzles"),
    "Shirts": ("T-shirts", "Sweatshirts", "Long sleeves"),
    "Lamps": ("Desk lamps", "Lampshades", "Night lights"),
}
STYLE_NAMES: dict[str, tuple[str, ...]] = {
    "visual": tuple(style.name for style in COVER_STYLES),
    "text": tuple(topic.name for topic in TOPICS),
    "category": tuple(KINDS),
}
_BRANDS = ("Ada & Finn", "Bluebird", "Corner Press", "Dovetail", "Elm Street", "Fable")

_CHUNK = 1024
"""Items whose chance is drawn together; part of what a seed means."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The latent styles of all items: `styles[modality]` is `[N]`, -1 where the item lacks the modality."""

    seed: int
    num_items: int
    styles: dict[str, NDArray[np.int8]]

    @property
    def item_ids(self) -> list[str]:
        """External ids in row order."""
        return [item_id(row) for row in range(self.num_items)]


def item_id(row: int) -> str:
    """Return the external id of a row."""
    return f"item-{row:06d}"


def make_catalogue(*, num_items: int, seed: int, missing_share: float) -> Catalogue:
    """Decide the style of every item in every modality, equally many of each, and which items lack one.

    Args:
        num_items: N.
        seed: Of everything about the items.
        missing_share: Of the items lack a cover, and as many others lack a text.
    """
    rng = np.random.default_rng([seed, 0])
    styles = {name: rng.permutation(np.arange(num_items) % NUM_STYLES).astype(np.int8) for name in MODALITIES}
    lacking = rng.random(num_items)
    styles["visual"][lacking < missing_share] = -1
    styles["text"][lacking > 1 - missing_share] = -1
    return Catalogue(seed=seed, num_items=num_items, styles=styles)


def covers_of(catalogue: Catalogue, *, side: int) -> Iterator[Image.Image | None]:
    """Draw all covers in row order; None where an item has none."""
    for start, uniforms in _chance(catalogue, 1, covers.NUM_UNIFORMS):
        for row, numbers in enumerate(uniforms, start=start):
            style = catalogue.styles["visual"][row]
            yield draw_cover(COVER_STYLES[style], numbers, side=side) if style >= 0 else None


def item_tables(catalogue: Catalogue, *, image_url: Callable[[int], str | None]) -> Iterator[pa.Table]:
    """Give the rows of items.parquet in order.

    Args:
        catalogue: The items.
        image_url: Gives the address of a row's cover, None where covers are not kept.
    """
    kinds = list(KINDS)
    for start, uniforms in _chance(catalogue, 2, texts.NUM_UNIFORMS + 5):
        rows = range(start, start + len(uniforms))
        written = []
        for row, numbers in zip(rows, uniforms, strict=True):
            topic = catalogue.styles["text"][row]
            written.append(write_text(TOPICS[topic], numbers) if topic >= 0 else (f"Design no. {row}", ""))
        kind, brand, price, year, available = uniforms[:, texts.NUM_UNIFORMS :].T
        of_kind = [kinds[style] for style in catalogue.styles["category"][start : start + len(uniforms)]]
        has_cover = catalogue.styles["visual"][start : start + len(uniforms)] >= 0
        yield pa.table(
            {
                "item_id": [item_id(row) for row in rows],
                "title": [title for title, _ in written],
                "description": [description for _, description in written],
                "image_url": pa.array(
                    [image_url(row) if shown else None for row, shown in zip(rows, has_cover, strict=True)],
                    pa.string(),
                ),
                "categories": [
                    [name, KINDS[name][int(number * 3)]] for name, number in zip(of_kind, kind, strict=True)
                ],
                "brand": [_BRANDS[int(number * len(_BRANDS))] for number in brand],
                "price": np.round(5 + 45 * price**2, 2),
                "year": (2018 + 8 * year).astype(np.int64),
                "available": available > 0.05,
            }
        )


def truth_table(catalogue: Catalogue) -> pa.Table:
    """Return item_id and the name of the item's style in every modality, null where it lacks the modality."""
    columns: dict[str, list[str] | list[str | None]] = {"item_id": catalogue.item_ids}
    for name in MODALITIES:
        names = STYLE_NAMES[name]
        columns[name] = [names[style] if style >= 0 else None for style in catalogue.styles[name]]
    return pa.table(columns)


def _chance(catalogue: Catalogue, purpose: int, width: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Give (first row, uniforms `[rows, width]`) chunk by chunk; a chunk's numbers depend on nothing before it."""
    for start in range(0, catalogue.num_items, _CHUNK):
        rng = np.random.default_rng([catalogue.seed, purpose, start])
        yield start, rng.random((min(_CHUNK, catalogue.num_items - start), width))
