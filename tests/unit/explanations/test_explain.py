"""What the methods of `index.explain` promise, on a linear model whose answers are known and on a small Demure."""

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from index.bundle import Bundle
from index.explain import METHODS, explain, modality_shares
from index.store import ArtifactStore
from tests import bundles
from tests.torch_bundle import TorchBundle
from training.models import DemureConfig, FeatureSpec

LENGTH, DIM = 5, 6


@pytest.fixture(scope="module")
def demure() -> TorchBundle:
    modalities = tuple(Modality(name=name, dim=4) for name in ("visual", "text", "category"))
    torch.manual_seed(0)
    model = DemureConfig(dim=DIM, history_length=LENGTH).build(FeatureSpec(modalities))
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.6)
    return TorchBundle(model)


@pytest.fixture(scope="module", params=[1, 3], ids=["one query", "three queries"])
def linear(request, toy_dataset, tmp_path_factory) -> Bundle:
    """A user is the mean of the items, an item the mean of its modalities, and the score an inner product."""
    store = ArtifactStore(tmp_path_factory.mktemp("linear"))
    version = bundles.make_bundle(store, toy_dataset, num_queries=request.param, history_length=LENGTH, dim=DIM)
    return Bundle.open(store.open_bundle(version)[0])


def inputs(num_items: int, num_candidates: int = 4, *, seed: int = 0, complete: bool = True) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "states_LMS": rng.normal(size=(num_items, 3, DIM)).astype(np.float32),
        "presence_LM": np.ones((num_items, 3), np.bool_) if complete else rng.random((num_items, 3)) < 0.6,
        "candidate_states_KMS": rng.normal(size=(num_candidates, 3, DIM)).astype(np.float32),
        "candidate_presence_KM": np.ones((num_candidates, 3), np.bool_),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_items", [0, 1, LENGTH, LENGTH + 2])
def test_every_method_gives_finite_numbers_of_the_right_shape_for_every_length(demure, method, num_items):
    arrays = explain(demure, method=method, **inputs(num_items, complete=False))
    assert arrays.scores_K.shape == arrays.residual_K.shape == (4,)
    assert arrays.interest_KM.shape == arrays.contributions_KM.shape == (4, 3)
    assert arrays.history_KL.shape == (4, num_items)
    assert arrays.grid_KLM.shape == (4, num_items, 3)
    for name in arrays.__slots__:
        assert np.isfinite(getattr(arrays, name)).all(), name
    if num_items == 0:
        assert not arrays.interest_KM.any()


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_explain_the_same_score(demure, method):
    given = inputs(3)
    arrays = explain(demure, method=method, **given)
    expected = explain(demure, method="decomposition", **given)
    np.testing.assert_allclose(arrays.scores_K, expected.scores_K, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_absent_modality_has_no_part(demure, method):
    given = inputs(4)
    given["presence_LM"][1, 2] = False
    given["presence_LM"][:, 0] = False
    given["presence_LM"][3] = False
    given["states_LMS"][1, 2] = np.nan
    arrays = explain(demure, method=method, **given)
    rounding = 1e-6 * np.abs(arrays.scores_K).max()  # rows of one batch may be summed in another order
    np.testing.assert_allclose(arrays.grid_KLM[:, ~given["presence_LM"]], 0, atol=rounding)
    np.testing.assert_allclose(arrays.interest_KM[:, 0], 0, atol=rounding)
    np.testing.assert_allclose(arrays.history_KL[:, 3], 0, atol=rounding)
    assert np.isfinite(arrays.grid_KLM).all()


@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_explained_together_as_alone(demure, method):
    given = inputs(4)
    together = explain(demure, method=method, **given)
    for row in range(4):
        one = {name: value[row : row + 1] if "candidate" in name else value for name, value in given.items()}
        alone = explain(demure, method=method, **one)
        for name in ("grid_KLM", "history_KL", "interest_KM", "contributions_KM"):
            found, expected = getattr(alone, name)[0], getattr(together, name)[row]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))


def test_a_linear_model_is_explained_exactly(linear):
    """There, gradient x input of a cell is what the cell adds, and Shapley's residual is the score of no history."""
    given = inputs(3)
    arrays = explain(linear, method="grad_x_input", **given)
    np.testing.assert_allclose(arrays.grid_KLM.sum(axis=(1, 2)), arrays.scores_K, atol=1e-5)
    np.testing.assert_allclose(arrays.grid_KLM.sum(axis=2), arrays.history_KL, atol=1e-5)
    shapley = explain(linear, method="shapley", **given)
    nothing = {**given, "states_LMS": given["states_LMS"][:0], "presence_LM": given["presence_LM"][:0]}
    empty = explain(linear, method="shapley", **nothing)
    np.testing.assert_allclose(shapley.residual_K, empty.scores_K, atol=1e-5)


def test_occlusion_is_the_score_lost_when_the_part_is_really_gone(demure):
    given = inputs(4)
    arrays = explain(demure, method="occlusion", **given)
    atol = 2e-5  # a difference of two scores, each rounded in its own order: 1.1e-5 was seen with AVX-512

    def lost(**changed):
        return arrays.scores_K - explain(demure, method="decomposition", **{**given, **changed}).scores_K

    def without(*where):
        presence = given["presence_LM"].copy()
        presence[where] = False
        return lost(presence_LM=presence)

    for item in range(4):
        np.testing.assert_allclose(arrays.history_KL[:, item], without(item), atol=atol)
        for column in range(3):
            np.testing.assert_allclose(arrays.grid_KLM[:, item, column], without(item, column), atol=atol)
    for column in range(3):
        np.testing.assert_allclose(arrays.interest_KM[:, column], without(slice(None), column), atol=atol)
        own = given["candidate_presence_KM"].copy()
        own[:, column] = False
        np.testing.assert_allclose(arrays.contributions_KM[:, column], lost(candidate_presence_KM=own), atol=atol)


def test_shapley_of_two_modalities_is_the_mean_of_joining_first_and_last(demure):
    given = inputs(4)
    given["presence_LM"][:, 2] = False
    arrays = explain(demure, method="shapley", **given)

    def score(*kept):
        presence = np.zeros_like(given["presence_LM"])
        presence[:, list(kept)] = True
        return explain(demure, method="decomposition", **{**given, "presence_LM": presence}).scores_K

    first = ((score(0) - score()) + (score(0, 1) - score(1))) / 2
    np.testing.assert_allclose(arrays.interest_KM[:, 0], first, atol=1e-5)
    np.testing.assert_allclose(arrays.residual_K, score(), atol=1e-5)
    assert not arrays.interest_KM[:, 2].any()


def test_shares_are_the_positive_part_of_the_mean():
    interest = np.array([[3.0, -1.0, 1.0], [1.0, -1.0, -3.0]], np.float32)
    shares = modality_shares(interest, scores_K=np.array([2.0, 2.0], np.float32))
    np.testing.assert_allclose(shares, [1.0, 0.0, 0.0])
    shares = modality_shares(np.array([[3.0, 1.0]], np.float32), scores_K=np.array([100.0], np.float32))
    np.testing.assert_allclose(shares, [0.75, 0.25])


def test_candidates_count_by_the_models_probability_of_them():
    interest, scores = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([np.log(3.0), 0.0], np.float32)
    np.testing.assert_allclose(modality_shares(interest, scores_K=scores), [0.75, 0.25])
    long = np.concatenate([interest[:1], np.repeat(interest[1:], 100, axis=0)])
    unlikely = np.concatenate([[20.0], np.zeros(100)]).astype(np.float32)
    assert modality_shares(long, scores_K=unlikely)[0] > 0.99


@pytest.mark.parametrize("interest", [[[0.0, 0.0]], [[-1.0, -2.0]]])
def test_where_no_modality_speaks_for_the_candidates_shares_are_equal(interest):
    shares = modality_shares(np.array(interest, np.float32), scores_K=np.zeros(1, np.float32))
    np.testing.assert_array_equal(shares, [0.5, 0.5])
