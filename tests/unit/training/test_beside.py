"""A network and SLIT side by side: scores are those of both, and new items have the network's alone."""

import pytest
import torch

from api_schemas.manifest import Modality
from training.explainers import BesideExplainer, Explainer
from training.factors.encoders import DecayedSumEncoder
from training.models import BaseConfig, FeatureSpec, MindConfig
from training.models.beside import Beside

NUM_ITEMS, LENGTH = 7, 4
MODALITIES = (Modality(name="text", dim=5), Modality(name="visual", dim=3))
GAIN = 3.0


@pytest.fixture(params=[2, 9], ids=["narrow", "wider-than-the-network"])
def both(request) -> Beside:
    return beside(BaseConfig(dim=8, history_length=LENGTH, positions=True), num_directions=request.param)


def beside(config, *, num_directions: int) -> Beside:
    torch.manual_seed(0)
    network = config.build(FeatureSpec(MODALITIES)).double().eval()
    rows, items = torch.randn(2, NUM_ITEMS, num_directions, dtype=torch.float64)
    trained = torch.arange(NUM_ITEMS) != 2
    linear = DecayedSumEncoder(num_directions, half_life=2.0).double()
    made = Beside(network, linear, rows, items, trained_I=trained, gain=GAIN).double().eval()
    made.given = (rows, items)
    return made.requires_grad_(requires_grad=False)


@pytest.fixture
def catalogue() -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(1)
    presence = torch.ones(NUM_ITEMS, 2, dtype=torch.bool)
    presence[4] = False  # known for what followed it alone
    return [torch.randn(NUM_ITEMS, one.dim, dtype=torch.float64) for one in MODALITIES], presence


def test_scores_are_those_of_both(both, catalogue):
    states, presence = both.parts_of(*catalogue, None)
    history, mask = torch.tensor([[0, 3, 5, 1]]), torch.tensor([[True, True, True, False]])
    queries = both.encode_users(both.history_rows(states, presence)[history], mask)
    inner = both.network.encode_items(*catalogue)
    rows, items = both.given
    expected = both.network.encode_users(inner[history], mask)[0, 0] @ inner.T
    weights = GAIN * (rows[[0, 3, 5]] @ items.T)
    linear = (torch.tensor([0.5, 0.5**0.5, 1.0], dtype=torch.float64)[:, None] * weights).sum(dim=0)
    linear[2] = 0  # nobody had it
    torch.testing.assert_close(both.score(queries, both.fuse(states, presence))[0], expected + linear)


def test_parts_sum_to_the_vector_and_the_row_and_the_last_is_what_follows_what(both, catalogue):
    states, presence = both.parts_of(*catalogue, None)
    for whole, parts in ((both.fuse, both.modality_parts), (both.history_rows, both.history_parts)):
        split = parts(states, presence)
        torch.testing.assert_close(split.sum(dim=-2), whole(states, presence))
        assert split.shape == (NUM_ITEMS, 3, both.dim)
        assert not split[..., -1, : both.network.dim].any()
        assert not split[..., :-1, both.network.dim :].any()


def test_a_new_item_stands_on_its_content(both, catalogue):
    new = both.encode_items(*catalogue)
    torch.testing.assert_close(new[:, : both.network.dim], both.network.encode_items(*catalogue))
    assert not new[:, both.network.dim :].any()
    known, _ = both.table()
    assert known.tolist() == [0, 1, 3, 4, 5, 6]


def test_a_past_item_without_content_is_none_to_the_network(both, catalogue):
    states, presence = both.parts_of(*catalogue, None)
    rows = both.history_rows(states, presence)
    width = both.network.dim
    with_it = both.encode_users(rows[None, [0, 4, 5]], torch.ones(1, 3, dtype=torch.bool))
    without = both.encode_users(rows[None, [0, 5]], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(with_it[..., :width], without[..., :width])
    assert (with_it - without)[..., width:].abs().max() > 1e-3


@pytest.mark.parametrize("num_directions", [2, 9])
@pytest.mark.parametrize("config", [BaseConfig, MindConfig])
def test_each_differentiated_by_itself_is_the_derivative_of_both(config, num_directions, catalogue):
    model = beside(config(dim=8, history_length=LENGTH), num_directions=num_directions)
    states, presence = model.parts_of(*catalogue, None)
    history, mask = torch.tensor([[0, 3, 5, 1], [4, 2, 6, 6]]), torch.tensor([[True] * 4, [True, True, True, False]])
    presence = presence[history].clone()
    presence[0, 1, -1] = presence[1, 2, 0] = False
    candidates = states[:5], torch.ones(5, 3, dtype=torch.bool)
    given = (states[history], presence, mask, *candidates)
    for found, expected in zip(BesideExplainer(model)(*given), Explainer(model)(*given), strict=True):
        torch.testing.assert_close(found, expected)
