"""Encoders whose weights are given by path."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from training.data.featurise.adapters import EncoderError, OnnxImageFeaturiser, Scaling, SentenceFeaturiser

PLAIN = {"scaling": Scaling.UNIT}


class CountingEncoder:
    """Speaks the interface of a sentence-transformers model: a text's vector counts its letters a and b."""

    def __init__(self):
        self.calls = []

    def encode(self, sentences, **options):
        self.calls.append((list(sentences), options))
        return np.array([[text.count("a"), text.count("b"), 1] for text in sentences], dtype=np.float32)


class TestSentences:
    def test_vectors_are_scaled_and_empty_texts_are_zeros(self):
        encoder = CountingEncoder()
        featurise = SentenceFeaturiser(encoder, source="counting")
        rows = featurise(["aab", "", "  ", "b"])
        assert featurise.dim == 3
        np.testing.assert_allclose(rows[0], np.array([2, 1, 1]) / np.sqrt(6), atol=1e-6)
        assert not rows[1:3].any()
        assert encoder.calls[-1][0] == ["aab", "b"]
        assert encoder.calls[-1][1]["convert_to_numpy"] is True

    def test_only_empty_texts_do_not_run_the_model(self):
        encoder = CountingEncoder()
        featurise = SentenceFeaturiser(encoder, source="counting")
        assert featurise([""]).shape == (1, 3)
        assert len(encoder.calls) == 1  # the one that told the width

    def test_without_the_package_the_error_says_how_to_get_it(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(EncoderError, match="pip install sentence-transformers"):
            SentenceFeaturiser.load(tmp_path)

    def test_a_path_that_is_no_model_is_named(self, monkeypatch, tmp_path):
        def refuse(path, **_):
            raise OSError("no modules.json")

        module = type(sys)("sentence_transformers")
        module.SentenceTransformer = refuse
        monkeypatch.setitem(sys.modules, "sentence_transformers", module)
        with pytest.raises(EncoderError, match="nowhere: is not a folder"):
            SentenceFeaturiser.load(tmp_path / "nowhere")
        with pytest.raises(EncoderError, match=r"can not be loaded: no modules\.json"):
            SentenceFeaturiser.load(tmp_path)

    def test_a_model_is_loaded_from_the_disk_only(self, monkeypatch, tmp_path):
        asked = {}
        module = type(sys)("sentence_transformers")
        module.SentenceTransformer = lambda path, **options: (asked.update(options, path=path), CountingEncoder())[1]
        monkeypatch.setitem(sys.modules, "sentence_transformers", module)
        assert SentenceFeaturiser.load(tmp_path).dim == 3
        assert asked == {"path": str(tmp_path), "device": "cpu", "local_files_only": True}


def graph(path, shape, *, axes=(2, 3), dtype=TensorProto.FLOAT, num_inputs=1):
    """Write a model whose feature is the mean of each colour, kept as `[N, 3, 1, 1]`-like."""
    inputs = [helper.make_tensor_value_info(f"pixels{i}", dtype, shape) for i in range(num_inputs)]
    outputs = [helper.make_tensor_value_info(name, dtype, None) for name in ("mean", "double")]
    nodes = [
        helper.make_node("ReduceMean", ["pixels0", "axes"], ["mean"], keepdims=int(axes == (2, 3))),
        helper.make_node("Add", ["mean", "mean"], ["double"]),
    ]
    constants = [helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)]
    model = helper.make_model(
        helper.make_graph(nodes, "means", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, path)
    return path


def unit(*values):
    return np.array(values) / np.linalg.norm(values)


class TestOnnx:
    @pytest.mark.parametrize(
        ("shape", "axes"),
        [
            (("n", 3, 32, 32), (2, 3)),
            (("n", 3, "h", "w"), (2, 3)),
            (("n", "c", "h", "w"), (2, 3)),
            (("n", 32, 32, 3), (1, 2)),
            (("n", "h", "w", 3), (1, 2)),
            ((1, 3, 32, 32), (2, 3)),
            ((2, 3, 32, 32), (2, 3)),
        ],
        ids=str,
    )
    def test_layout_size_and_batch_are_read_from_the_graph(self, tmp_path, shape, axes):
        featurise = OnnxImageFeaturiser(graph(tmp_path / "means.onnx", shape, axes=axes), **PLAIN)
        assert featurise.dim == 3
        pictures = [Image.new("RGB", size, colour) for size, colour in SOLID]
        rows = featurise(pictures)
        np.testing.assert_allclose(rows, [unit(*colour) for _, colour in SOLID], atol=1e-5)

    @pytest.mark.parametrize(
        ("scaling", "expected"),
        [
            (Scaling.UNIT, (1, 1, 0)),
            (Scaling.HALF, (1, 1, -1)),
            (Scaling.IMAGENET, (0.515 / 0.229, 0.544 / 0.224, -0.406 / 0.225)),
            (Scaling.CLIP, (0.51854534 / 0.26862954, 0.5421725 / 0.26130258, -0.40821073 / 0.27577711)),
        ],
    )
    def test_pixels_are_scaled_as_the_model_wants_them(self, tmp_path, scaling, expected):
        featurise = OnnxImageFeaturiser(graph(tmp_path / "means.onnx", ("n", 3, 8, 8)), scaling=scaling)
        (row,) = featurise([Image.new("RGB", (8, 8), (255, 255, 0))])
        np.testing.assert_allclose(row, unit(*expected), atol=1e-6)

    def test_a_wide_picture_is_cut_in_the_middle_and_not_squeezed(self, tmp_path):
        wide = Image.new("RGB", (96, 32), (255, 0, 0))
        wide.paste((0, 255, 0), (32, 0, 64, 32))
        featurise = OnnxImageFeaturiser(graph(tmp_path / "means.onnx", ("n", 3, 32, 32)), **PLAIN)
        np.testing.assert_allclose(featurise([wide])[0], [0, 1, 0], atol=0.02)

    def test_an_output_is_chosen_by_name(self, tmp_path):
        path = graph(tmp_path / "means.onnx", ("n", 3, 8, 8))
        assert "double" in OnnxImageFeaturiser(path, output="double").source
        with pytest.raises(EncoderError, match="has no output 'third'; it has mean, double"):
            OnnxImageFeaturiser(path, output="third")

    def test_no_pictures_give_no_rows(self, tmp_path):
        assert OnnxImageFeaturiser(graph(tmp_path / "means.onnx", ("n", 3, 8, 8)))([]).shape == (0, 3)

    @pytest.mark.parametrize(
        ("shape", "options", "message"),
        [
            (("n", 3, 8), {}, "expected one float"),
            (("n", 1, 8, 8), {}, "has 1 colours"),
            (("n", 3, 8, 16), {}, "not square"),
            (("n", 3, 8, 8), {"dtype": TensorProto.DOUBLE}, "expected one float"),
            (("n", 3, 8, 8), {"num_inputs": 2}, "has 2 inputs"),
        ],
    )
    def test_a_model_that_does_not_take_pictures_is_refused(self, tmp_path, shape, options, message):
        path = graph(tmp_path / "odd.onnx", shape, axes=(2, 3) if len(shape) == 4 else (1, 2), **options)
        with pytest.raises(EncoderError, match=rf"odd\.onnx: .*{message}"):
            OnnxImageFeaturiser(path)

    def test_a_file_that_is_no_model_is_named(self, tmp_path):
        path = tmp_path / "bad.onnx"
        path.write_bytes(b"nonsense")
        with pytest.raises(EncoderError, match=r"bad\.onnx: is not a readable ONNX model"):
            OnnxImageFeaturiser(path)


SOLID = [((32, 32), (255, 0, 0)), ((64, 40), (0, 0, 255)), ((10, 90), (255, 255, 0))]
