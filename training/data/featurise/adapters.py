"""Stronger encoders with weights given by path: sentence-transformers for texts, any ONNX vision model for pictures.

Nothing is downloaded, and neither package is needed unless it is used.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.featurise.vectors import Vectors, unit_rows


class Scaling(StrEnum):
    """How a vision model wants its colours, after they are brought to 0..1."""

    IMAGENET = "imagenet"
    CLIP = "clip"
    HALF = "half"
    """To -1..1."""
    UNIT = "unit"
    """As they are."""


_Colours = tuple[float, float, float]
_MEAN_AND_STD: dict[Scaling, tuple[_Colours, _Colours]] = {
    Scaling.IMAGENET: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Scaling.CLIP: ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    Scaling.HALF: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    Scaling.UNIT: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class EncoderError(ValueError):
    """An encoder can not be loaded or does not fit its use; names its path."""


class SentenceEncoder(Protocol):
    """The part of `sentence_transformers.SentenceTransformer` that is used."""

    def encode(self, sentences: list[str], /, **options: Any) -> NDArray[np.floating]:  # noqa: ANN401  # their signature
        """Return one vector a sentence."""
        ...


class SentenceFeaturiser:
    """Texts through a sentence-transformers model."""

    def __init__(self, model: SentenceEncoder, *, source: str) -> None:
        self._model = model
        self.source = source
        self.dim = int(self._encode(["dimension"]).shape[1])

    @classmethod
    def load(cls, path: Path) -> "SentenceFeaturiser":
        """Load a model folder from the disk, on the CPU.

        Raises:
            EncoderError: The package is not installed, or the folder holds no such model.
        """
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            hint = "install it with: pip install sentence-transformers"
            raise EncoderError(f"{path}: needs the package sentence-transformers; {hint}") from error
        if not path.is_dir():
            raise EncoderError(f"{path}: is not a folder of a sentence-transformers model")
        try:
            model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise EncoderError(f"{path}: can not be loaded: {error}") from error
        return cls(model, source=f"sentence-transformers model {path.name}")

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return one L2-normalised row `[B, dim]` float32 a text; an empty text gives a row of zeros."""
        rows_BD = np.zeros((len(texts), self.dim), dtype=np.float32)
        filled = [row for row, text in enumerate(texts) if text.strip()]
        if filled:
            rows_BD[filled] = self._encode([texts[row] for row in filled])
        return unit_rows(rows_BD)

    def _encode(self, texts: list[str]) -> Vectors:
        vectors = self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


class OnnxImageFeaturiser:
    """Pictures through a vision model in ONNX; the input's layout and size are read from the graph.

    Pictures are scaled so that they cover the input's square, cut in the middle, brought to 0..1 and standardised. An
    output of more than two dimensions is averaged over all but the first two (global average pooling).
    """

    def __init__(
        self,
        path: Path,
        *,
        side: int = 224,
        scaling: Scaling = Scaling.IMAGENET,
        output: str | None = None,
        num_threads: int = 1,
    ) -> None:
        """Open the graph.

        Args:
            path: The `.onnx` file.
            side: Of the input in pixels, where the graph leaves it free.
            scaling: What the model was trained with.
            output: Name of the output that is the feature; None: the first.
            num_threads: That one call may use.

        Raises:
            EncoderError: The file is no ONNX model, or its input is no batch of colour pictures.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own that it does not export
            raise EncoderError(f"{path}: is not a readable ONNX model: {error}") from error
        self._path = path
        self._input = self._session.get_inputs()[0]
        self._layout, self._side = self._read_input(side)
        self._batch = self._input.shape[0] if isinstance(self._input.shape[0], int) else None
        names = [one.name for one in self._session.get_outputs()]
        if output is not None and output not in names:
            raise EncoderError(f"{path}: has no output {output!r}; it has {', '.join(names)}")
        self._output = output or names[0]
        mean, std = _MEAN_AND_STD[scaling]
        self._mean, self._std = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
        self.source = f"ONNX model {path.name}, output {self._output}"
        self.dim = self._run(np.zeros((1, self._side, self._side, 3), dtype=np.float32)).shape[1]

    def __call__(self, images: Sequence[Image.Image]) -> Vectors:
        """Return one L2-normalised row `[B, dim]` float32 a picture."""
        if not images:
            return np.empty((0, self.dim), dtype=np.float32)
        pixels_BSSC = np.stack([self._pixels(image) for image in images])
        return unit_rows(self._run((pixels_BSSC - self._mean) / self._std))

    def _read_input(self, side: int) -> tuple[Literal["NCHW", "NHWC"], int]:
        shape = self._input.shape
        num = len(self._session.get_inputs())
        if num != 1 or len(shape) != 4 or self._input.type != "tensor(float)":
            found = f"has {num} inputs, the first is {self._input.type} {shape}"
            raise EncoderError(f"{self._path}: {found}; expected one float [N, 3, H, W]")
        layout: Literal["NCHW", "NHWC"] = "NHWC" if shape[3] == 3 and shape[1] != 3 else "NCHW"
        height, width = shape[1:3] if layout == "NHWC" else shape[2:4]
        if layout == "NCHW" and shape[1] not in (3, None) and isinstance(shape[1], int):
            raise EncoderError(f"{self._path}: its input {shape} has {shape[1]} colours, expected 3")
        if isinstance(height, int) and isinstance(width, int) and height != width:
            raise EncoderError(f"{self._path}: its input {shape} is not square")
        return layout, height if isinstance(height, int) else side

    def _pixels(self, image: Image.Image) -> Vectors:
        scale = self._side / min(image.size)
        size = tuple(max(self._side, round(length * scale)) for length in image.size)
        image = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)
        left, top = (size[0] - self._side) // 2, (size[1] - self._side) // 2
        cut = image.crop((left, top, left + self._side, top + self._side))
        return np.asarray(cut, dtype=np.float32) / np.float32(255)

    def _run(self, pixels_BSSC: Vectors) -> Vectors:
        data = pixels_BSSC if self._layout == "NHWC" else np.ascontiguousarray(pixels_BSSC.transpose(0, 3, 1, 2))
        # A graph with a fixed batch takes exactly so many pictures at a time: the last batch is filled up.
        step = self._batch or len(data)
        parts = []
        for start in range(0, len(data), step):
            batch = data[start : start + step]
            filled = np.concatenate([batch, np.zeros((step - len(batch), *batch.shape[1:]), dtype=np.float32)])
            (found,) = self._session.run([self._output], {self._input.name: filled})
            parts.append(np.asarray(found, dtype=np.float32)[: len(batch)])
        rows = np.concatenate(parts)
        return rows.reshape(*rows.shape[:2], -1).mean(axis=2) if rows.ndim > 2 else rows
