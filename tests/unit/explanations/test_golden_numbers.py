"""Interest scores, splits and occlusions against numbers computed by explicit loops and central differences in float64.

The model has two modalities, width 2 and a history of two items; the candidate is a third item.
"""

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from index.explain import explain
from tests.torch_bundle import TorchBundle
from training.models import BaseConfig, FeatureSpec

STATES = np.array(
    [[[1.0, 0.5], [-0.5, 1.0]], [[0.2, -1.0], [0.8, 0.3]], [[1.5, -0.5], [0.4, 0.6]]],
    dtype=np.float32,
)
WEIGHTS = {
    "modality_pool.f": [[0.5, -0.2], [0.1, 0.4]],
    "modality_pool.g": [[0.3, 0.1], [-0.4, 0.6]],
    "modality_pool.h": [[1.0, 0.2], [-0.3, 0.8]],
    "item_pool.f": [[0.7, 0.0], [0.2, 0.5]],
    "item_pool.g": [[0.4, -0.1], [0.3, 0.2]],
    "item_pool.h": [[0.9, -0.1], [0.25, 1.1]],
    # The network of the numbers has three hidden units; the fourth is dead.
    "feed_forward.layers.0": [[0.6, -0.4], [0.3, 0.7], [-0.5, 0.2], [0.0, 0.0]],
    "feed_forward.layers.2": [[0.8, -0.2, 0.4, 0.0], [0.1, 0.9, -0.3, 0.0]],
}
BIASES = {"feed_forward.layers.0": [0.1, 0.0, 0.05, 0.0], "feed_forward.layers.2": [0.0, 0.02]}

SCORE = 0.0697043911932
ALPHA_ITEMS = [-0.146747981097, -0.124524042154]
ALPHA_MODALITIES = [[-0.026867086788, -0.0416852201576], [-0.0160317371288, -0.0200753232579]]
GRAD_X_INPUT_ITEMS = [-0.187150955215, 0.194226884715]
GRAD_X_INPUT_MODALITIES = [[0.00424195330945, -0.241895528788], [0.157932417851, 0.0348877635101]]
OCCLUSION_ITEMS = [-0.301325740041, 0.271186563323]
OCCLUSION_MODALITIES = [[0.125174397712, -0.209659099457], [0.102691585074, -0.101631374721]]
SPLIT = [-0.00795314361348, 0.0776575348066]


@pytest.fixture(scope="module")
def bundle() -> TorchBundle:
    """The model of the numbers, with room for a third item in the history."""
    modalities = (Modality(name="visual", dim=2), Modality(name="text", dim=2))
    model = BaseConfig(dim=2, history_length=3, scale="none", pooling="row", expansion=2).build(FeatureSpec(modalities))
    state = model.state_dict()
    for name, weight in WEIGHTS.items():
        state[f"{name}.weight"] = torch.tensor(weight)
    for name, bias in BIASES.items():
        state[f"{name}.bias"] = torch.tensor(bias)
    model.load_state_dict(state)
    return TorchBundle(model)


def found(bundle: TorchBundle, method: str):
    everything = np.ones((3, 2), dtype=np.bool_)
    return explain(
        bundle,
        method=method,
        states_LMS=STATES[:2],
        presence_LM=everything[:2],
        candidate_states_KMS=STATES[2:],
        candidate_presence_KM=everything[2:],
    )


def close(values, expected) -> None:
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_interest_gradients_are_the_signed_means_of_equations_7_and_8(bundle):
    arrays = found(bundle, "interest_gradient")
    close(arrays.scores_K, [SCORE])
    close(arrays.history_KL[0], ALPHA_ITEMS)
    close(arrays.grid_KLM[0], ALPHA_MODALITIES)


def test_gradient_x_input_is_the_gradient_times_item_vectors_and_states(bundle):
    arrays = found(bundle, "grad_x_input")
    close(arrays.history_KL[0], GRAD_X_INPUT_ITEMS)
    close(arrays.grid_KLM[0], GRAD_X_INPUT_MODALITIES)
    close(arrays.interest_KM[0], np.sum(GRAD_X_INPUT_MODALITIES, axis=0))
    assert not arrays.additive


def test_occlusion_is_the_score_lost_with_each_part(bundle):
    arrays = found(bundle, "occlusion")
    close(arrays.scores_K, [SCORE])
    close(arrays.history_KL[0], OCCLUSION_ITEMS)
    close(arrays.grid_KLM[0], OCCLUSION_MODALITIES)
    assert not arrays.additive


def test_decomposition_splits_the_score_over_the_candidates_modalities(bundle):
    arrays = found(bundle, "decomposition")
    close(arrays.contributions_KM[0], SPLIT)
    close(arrays.residual_K, [0.0])
    assert arrays.additive
