"""A hand-made picture descriptor: colours, their places, edges and texture. Needs no weights and no download.

Shapes: `B` pictures, `S` side in pixels, `C` colour channels, `G` cells of a grid, `F` frequency bins.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.featurise.vectors import Vectors, unit_rows

_SIDE = 64
_HUES, _SATURATIONS, _VALUES = 8, 3, 3
_COLOUR_GRID = 4
_ORIENTATIONS = 9
_EDGE_GRID = 2
_RINGS, _SECTORS = 6, 6


class ImageDescriptor:
    """Colour histogram, grid of mean colours, histograms of oriented gradients, and a polar power spectrum.

    Each part is centred and scaled to length 1, so that none outweighs the others, and the whole is scaled to length
    1. Oriented gradients follow Dalal and Triggs (CVPR 2005) without block normalisation; the spectrum is what tells
    stripes from dots whatever their colour.
    """

    source = "hand-made picture descriptor: colour histogram and grid, oriented gradients, polar power spectrum"
    dim = (
        _HUES * _SATURATIONS * _VALUES
        + 3 * _COLOUR_GRID**2
        + _ORIENTATIONS * (_EDGE_GRID**2 + 1)
        + _RINGS * _SECTORS
    )  # fmt: skip

    def __call__(self, images: Sequence[Image.Image]) -> Vectors:
        """Return one L2-normalised row `[B, dim]` float32 a picture, of whatever size and mode."""
        if not images:
            return np.empty((0, self.dim), dtype=np.float32)
        small = [image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX) for image in images]
        rgb_BSSC = np.stack([np.asarray(image) for image in small])
        hsv_BSSC = np.stack([np.asarray(image.convert("HSV")) for image in small])
        gray_BSS = rgb_BSSC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255.0
        parts = [
            _colour_histogram(hsv_BSSC),
            _colour_grid(rgb_BSSC),
            _oriented_gradients(gray_BSS),
            _power_spectrum(gray_BSS),
        ]
        return unit_rows(np.concatenate([unit_rows(_centred(part)) for part in parts], axis=1))


def _colour_histogram(hsv_BSSC: NDArray[np.uint8]) -> Vectors:
    batch = len(hsv_BSSC)
    hue, saturation, value = (hsv_BSSC[..., channel].astype(np.int32) for channel in range(3))
    # A grey pixel has no hue: it goes to hue 0 of the lowest saturation.
    hue = np.where(saturation < 24, 0, hue * _HUES // 256)
    index = (hue * _SATURATIONS + saturation * _SATURATIONS // 256) * _VALUES + value * _VALUES // 256
    return _root(_histograms(index.reshape(batch, -1), None, _HUES * _SATURATIONS * _VALUES))


def _colour_grid(rgb_BSSC: NDArray[np.uint8]) -> Vectors:
    batch, cell = len(rgb_BSSC), _SIDE // _COLOUR_GRID
    cells = rgb_BSSC.reshape(batch, _COLOUR_GRID, cell, _COLOUR_GRID, cell, 3)
    mean = cells.mean(axis=(2, 4), dtype=np.float32).reshape(batch, -1, 3) / 255.0
    red, green, blue = mean[..., 0], mean[..., 1], mean[..., 2]
    # Opponent colours: brightness and hue in separate numbers, as in the receptive fields that they are named after.
    opponent = np.stack([(red + green + blue) / 3 - 0.5, red - green, (red + green) / 2 - blue], axis=-1)
    return opponent.reshape(batch, -1)


def _oriented_gradients(gray_BSS: Vectors) -> Vectors:
    batch = len(gray_BSS)
    dy = np.zeros_like(gray_BSS)
    dx = np.zeros_like(gray_BSS)
    dy[:, 1:-1] = gray_BSS[:, 2:] - gray_BSS[:, :-2]
    dx[:, :, 1:-1] = gray_BSS[:, :, 2:] - gray_BSS[:, :, :-2]
    magnitude = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx) * (_ORIENTATIONS / np.pi)  # half circle: an edge and its reverse are one
    orientation = np.floor(angle).astype(np.int32) % _ORIENTATIONS
    cell = np.arange(_SIDE) * _EDGE_GRID // _SIDE
    grid_SS = cell[:, None] * _EDGE_GRID + cell[None, :]
    index = grid_SS * _ORIENTATIONS + orientation
    num_bins = _EDGE_GRID**2 * _ORIENTATIONS
    cells = _histograms(index.reshape(batch, -1), magnitude.reshape(batch, -1), num_bins)
    whole = cells.reshape(batch, -1, _ORIENTATIONS).sum(axis=1)
    return _root(np.concatenate([cells, whole], axis=1))


def _spectrum_bins() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which entries of a flattened half spectrum count, and into which ring and sector `[F]` each goes."""
    frequency_y = np.fft.fftfreq(_SIDE) * _SIDE
    frequency_x = np.fft.rfftfreq(_SIDE) * _SIDE
    radius = np.hypot(frequency_y[:, None], frequency_x[None, :])
    angle = np.arctan2(frequency_y[:, None], frequency_x[None, :])  # -pi/2 .. pi/2
    ring = np.floor(np.log2(np.maximum(radius, 1)) * _RINGS / np.log2(_SIDE / 2)).astype(np.intp)
    # Sectors are centred on the axes, so that a horizontal stripe does not fall on a border.
    sector = np.floor((angle / np.pi + 0.5) * _SECTORS + 0.5).astype(np.intp) % _SECTORS
    counted = np.flatnonzero((radius.ravel() >= 1) & (ring.ravel() < _RINGS))
    return counted, (ring * _SECTORS + sector).ravel()[counted]


_COUNTED, _BIN = _spectrum_bins()


def _power_spectrum(gray_BSS: Vectors) -> Vectors:
    spectrum = np.abs(np.fft.rfft2(gray_BSS)).reshape(len(gray_BSS), -1)[:, _COUNTED].astype(np.float32)
    bins = np.broadcast_to(_BIN, spectrum.shape)
    return _root(_histograms(bins, spectrum, _RINGS * _SECTORS))


def _histograms(index: NDArray[np.integer], weights: Vectors | None, num_bins: int) -> Vectors:
    """Return one histogram a row: `[B, num_bins]`."""
    batch = len(index)
    flat = (index + np.arange(batch)[:, None] * num_bins).ravel()
    counts = np.bincount(flat, None if weights is None else weights.ravel(), minlength=batch * num_bins)
    return counts.reshape(batch, num_bins).astype(np.float32)


def _root(histograms: Vectors) -> Vectors:
    """Take the square root, so that a large flat area does not drown all else."""
    root: Vectors = np.sqrt(histograms)
    return root


def _centred(part: Vectors) -> Vectors:
    """Subtract each row's mean: what all pictures share would make all of them look alike."""
    centred: Vectors = part - part.mean(axis=1, keepdims=True)
    return centred
