"""Covers drawn with Pillow: a style fixes the palette, the shape and the pattern, chance the rest.

A cover is a function of its style and of a row of uniform numbers, so that the same item can be drawn small for its
features and large for people.
"""

import colorsys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

NUM_UNIFORMS = 64
"""Uniform numbers that one cover may use."""

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CoverStyle:
    """What the covers of one style have in common."""

    name: str
    hues: tuple[float, float]
    """Hue of background and of figures, 0..1; each cover is a little off."""
    saturation: float
    value: tuple[float, float]
    """Brightness of background and of figures."""
    pattern: Callable[["_Canvas"], None]


class _Canvas:
    """One cover under way: a square picture and the chance left to it."""

    def __init__(self, style: CoverStyle, uniforms: Sequence[float], side: int) -> None:
        self.side = side
        self._uniforms: Iterator[float] = iter(uniforms)
        self._style = style
        self._hue_shift = 0.06 * (self.chance() - 0.5)
        self.image = Image.new("RGB", (side, side), self.colour(0))
        self.draw = ImageDraw.Draw(self.image)

    def chance(self) -> float:
        """Return the next uniform number."""
        return next(self._uniforms)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance()

    def colour(self, layer: int) -> Colour:
        """Return a colour of the background (0) or of the figures (1), a little different each time."""
        hue = (self._style.hues[layer] + self._hue_shift + 0.03 * (self.chance() - 0.5)) % 1.0
        saturation = min(1.0, self._style.saturation * self.between(0.85, 1.15))
        value = min(1.0, self._style.value[layer] * self.between(0.9, 1.1))
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        return round(255 * red), round(255 * green), round(255 * blue)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def circle(self, centre: Point, radius: float, colour: Colour, *, width: float | None = None) -> None:
        """Draw a disc, or a ring of a width."""
        x, y = centre
        box = [(x - radius) * self.side, (y - radius) * self.side, (x + radius) * self.side, (y + radius) * self.side]
        if width is None:
            self.draw.ellipse(box, fill=colour)
        else:
            self.draw.ellipse(box, outline=colour, width=max(1, round(width * self.side)))


def _stripes(canvas: _Canvas) -> None:
    num = 4 + int(3 * canvas.chance())
    offset, thickness = canvas.chance() / num, canvas.between(0.4, 0.55) / num
    for stripe in range(num):
        y = offset + stripe / num
        canvas.polygon([(0, y), (1, y), (1, y + thickness), (0, y + thickness)], canvas.colour(1))


def _diagonals(canvas: _Canvas) -> None:
    num = 4 + int(3 * canvas.chance())
    offset, thickness = canvas.chance() / num, canvas.between(0.4, 0.55) / num
    for stripe in range(-num, num):
        x = offset + stripe / num
        canvas.polygon([(x, 0), (x + thickness, 0), (x + 1 + thickness, 1), (x + 1, 1)], canvas.colour(1))


def _grid(canvas: _Canvas) -> None:
    num = 4 + 2 * int(2 * canvas.chance())
    colours = [canvas.colour(1) for _ in range(3)]
    for row in range(num):
        for column in range(row % 2, num, 2):
            x, y = column / num, row / num
            cell = [(x, y), (x + 1 / num, y), (x + 1 / num, y + 1 / num), (x, y + 1 / num)]
            canvas.polygon(cell, colours[(row + column) % 3])


def _discs(canvas: _Canvas) -> None:
    for _ in range(5):
        canvas.circle((canvas.chance(), canvas.chance()), canvas.between(0.12, 0.26), canvas.colour(1))


def _dots(canvas: _Canvas) -> None:
    num = 5 + int(3 * canvas.chance())
    radius, shift = canvas.between(0.2, 0.3) / num, canvas.chance() / num
    colour = canvas.colour(1)
    for row in range(num + 1):
        for column in range(num + 1):
            x = (column + 0.5 * (row % 2)) / num
            canvas.circle((x, row / num + shift - 0.5 / num), radius, colour)


def _arches(canvas: _Canvas) -> None:
    centre = (canvas.between(0.3, 0.7), canvas.between(0.9, 1.1))
    num = 4 + int(2 * canvas.chance())
    colours = [canvas.colour(1) for _ in range(2)]
    for ring in range(num):
        canvas.circle(centre, (ring + 1) / num, colours[ring % 2], width=0.45 / num)


def _triangles(canvas: _Canvas) -> None:
    for _ in range(4):
        x, y, size = canvas.chance(), canvas.between(0.5, 1.0), canvas.between(0.4, 0.7)
        canvas.polygon([(x - size / 2, y), (x + size / 2, y), (x, y - size)], canvas.colour(1))


def _diamonds(canvas: _Canvas) -> None:
    num = 3 + int(2 * canvas.chance())
    half = canvas.between(0.3, 0.42) / num
    colour = canvas.colour(1)
    for row in range(num):
        for column in range(num):
            x, y = (column + 0.5) / num, (row + 0.5) / num
            canvas.polygon([(x - half, y), (x, y - 1.3 * half), (x + half, y), (x, y + 1.3 * half)], colour)


COVER_STYLES: tuple[CoverStyle, ...] = (
    CoverStyle("sunset stripes", (0.04, 0.11), 0.85, (0.75, 0.98), _stripes),
    CoverStyle("ocean discs", (0.58, 0.50), 0.75, (0.45, 0.85), _discs),
    CoverStyle("forest peaks", (0.36, 0.28), 0.65, (0.85, 0.40), _triangles),
    CoverStyle("ink squares", (0.00, 0.00), 0.04, (0.92, 0.20), _grid),
    CoverStyle("neon diagonals", (0.75, 0.90), 0.95, (0.18, 0.98), _diagonals),
    CoverStyle("pastel dots", (0.93, 0.47), 0.22, (0.97, 0.90), _dots),
    CoverStyle("clay arches", (0.09, 0.03), 0.55, (0.90, 0.60), _arches),
    CoverStyle("royal diamonds", (0.76, 0.14), 0.70, (0.38, 0.88), _diamonds),
)


def draw_cover(style: CoverStyle, uniforms: NDArray[np.float64], *, side: int) -> Image.Image:
    """Draw one cover.

    Args:
        style: What it has in common with others.
        uniforms: `[NUM_UNIFORMS]` in [0, 1): the same ones give the same cover.
        side: In pixels.
    """
    canvas = _Canvas(style, uniforms.tolist(), side)
    style.pattern(canvas)
    return canvas.image
