"""Raw arrays become model inputs: length 1, presence settled, nothing that is not finite."""

import numpy as np
import pytest

from api_schemas.manifest import Modality
from index.dataset import Dataset
from index.features import from_dataset, pad_history, pad_vectors, prepare

TWO = [Modality(name="visual", dim=3), Modality(name="text", dim=2)]


def test_rows_get_length_one_whatever_their_dtype_and_the_caller_keeps_its_array():
    raw = {"visual": np.array([[3, 4, 0], [0, 0, 2]], np.float16), "text": np.array([[5, 12], [-1, 0]], np.float32)}
    kept = {name: values.copy() for name, values in raw.items()}
    inputs = prepare(raw, {}, TWO)
    np.testing.assert_allclose(inputs.features[0], [[0.6, 0.8, 0], [0, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(inputs.features[1], [[5 / 13, 12 / 13], [-1, 0]], rtol=1e-6)
    assert all(values.dtype == np.float32 and values.flags.c_contiguous for values in inputs.features)
    assert inputs.presence.all()
    assert len(inputs) == 2
    for name, values in kept.items():
        np.testing.assert_array_equal(raw[name], values)


def test_zeros_and_what_is_flagged_away_are_absent_and_zero():
    visual = np.array([[0, 0, 0], [1, 2, 3], [np.nan, np.inf, 1]], np.float32)
    flags = np.array([True, False, False])
    inputs = prepare({"visual": visual, "text": np.ones((3, 2), np.float32)}, {"visual": flags}, TWO)
    np.testing.assert_array_equal(inputs.presence, [[False, True]] * 3)
    np.testing.assert_array_equal(inputs.features[0], np.zeros((3, 3)))


def test_a_modality_that_is_not_given_is_absent():
    inputs = prepare({"text": np.ones((4, 2), np.float32)}, {}, TWO)
    np.testing.assert_array_equal(inputs.presence, [[False, True]] * 4)
    assert inputs.features[0].shape == (4, 3)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e15, 1e30, 3e38])
def test_very_small_and_very_large_vectors_keep_their_direction(scale):
    raw = (np.array([[1, -1, 0.5]]) * scale).astype(np.float32)
    inputs = prepare({"visual": raw}, {}, TWO)
    assert inputs.presence[0, 0]
    np.testing.assert_allclose(inputs.features[0], [[2 / 3, -2 / 3, 1 / 3]], rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_modality_and_row(value):
    raw = np.ones((5, 2), np.float32)
    raw[3, 1] = value
    with pytest.raises(ValueError, match="text: row 103 holds NaN or infinity"):
        prepare({"text": raw}, {}, TWO, first_row=100)


def test_wrong_shapes_are_refused_and_named():
    with pytest.raises(ValueError, match=r"text: shape \(2, 3\), expected \(2, 2\)"):
        prepare({"text": np.ones((2, 3), np.float32)}, {}, TWO)
    with pytest.raises(ValueError, match="differ in length"):
        prepare({"text": np.ones((2, 2), np.float32), "visual": np.ones((3, 3), np.float32)}, {}, TWO)
    with pytest.raises(ValueError, match="text: presence has dtype int64"):
        prepare({"text": np.ones((2, 2), np.float32)}, {"text": np.ones(2, np.int64)}, TWO)


def test_no_items_are_no_trouble():
    inputs = prepare({"text": np.zeros((0, 2), np.float32)}, {}, TWO)
    assert len(inputs) == 0
    assert inputs.presence.shape == (0, 2)


def test_rows_of_a_dataset_are_prepared_alike_by_slice_and_by_number(toy_dataset):
    dataset = Dataset.open(toy_dataset)
    modalities = [Modality(name=one.name, dim=one.dim) for one in dataset.manifest.modalities]
    by_slice = from_dataset(dataset, slice(10, 20), modalities)
    by_number = from_dataset(dataset, np.arange(10, 20), modalities)
    for left, right in zip(by_slice.features, by_number.features, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(by_slice.presence, by_number.presence)
    assert not by_slice.presence[3].all()  # item 13 lacks its text


def test_a_dataset_without_any_of_the_models_modalities_is_refused(toy_dataset):
    with pytest.raises(ValueError, match="has none of the model's modalities"):
        from_dataset(Dataset.open(toy_dataset), slice(0, 3), [Modality(name="sound", dim=4)])


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
def test_a_history_keeps_its_last_items_and_is_padded_at_the_end(count):
    rows, mask = pad_history(list(range(100, 100 + count)), length=5)
    real = list(range(100, 100 + count))[-5:]
    assert rows.tolist() == real + [0] * (5 - len(real))
    assert mask.tolist() == [True] * len(real) + [False] * (5 - len(real))
    vectors, vector_mask = pad_vectors(np.arange(count * 2, dtype=np.float32).reshape(count, 2), length=5)
    assert vectors.shape == (5, 2)
    np.testing.assert_array_equal(vector_mask, mask)
    np.testing.assert_array_equal(vectors[len(real) :], 0)
    if count:
        np.testing.assert_array_equal(vectors[len(real) - 1], [2 * count - 2, 2 * count - 1])
