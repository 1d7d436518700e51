"""Interest scores (Eq. 7-8): the golden gradients, and the shortcut over modalities against plain autograd."""

import pytest
import torch

from tests.unit.training.test_attention import X, golden_model
from training.augment import AugmentConfig
from training.models import DemureConfig, FeatureSpec
from training.views import EncodedItems, Histories, interest_scores

ALPHA = {
    "interest_gradient": (
        [-0.146747981097, -0.124524042154],
        [[-0.026867086788, -0.0416852201576], [-0.0160317371288, -0.0200753232579]],
    ),
    "grad_x_input": (
        [-0.187150955215, 0.194226884715],
        [[0.00424195330945, -0.241895528788], [0.157932417851, 0.0348877635101]],
    ),
}


def scores(model, states, presence, history, mask, target, selector):
    items = EncodedItems(states, presence, model.fuse(states, presence))
    histories = Histories(history, mask, items.vectors_UD[history])
    query = model.encode_users(histories.vectors_BLD, mask)[:, 0]
    return interest_scores(
        model,
        items,
        histories,
        query_BD=query,
        target_BD=items.vectors_UD[target],
        config=AugmentConfig(selector=selector),
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("selector", ["interest_gradient", "grad_x_input"])
def test_scores_are_the_golden_ones(selector):
    found = scores(
        golden_model(),
        torch.tensor(X, dtype=torch.float64),
        torch.ones(3, 2, dtype=torch.bool),
        torch.tensor([[0, 1]]),
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([2]),
        selector,
    )
    for value, expected in zip(found, ALPHA[selector], strict=True):
        torch.testing.assert_close(value[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pooling", ["row", "column"])
@pytest.mark.parametrize("selector", ["interest_gradient", "grad_x_input"])
def test_modality_scores_are_those_of_a_backward_pass_per_occurrence(selector, pooling):
    torch.manual_seed(1)
    model = DemureConfig(dim=6, history_length=4, pooling=pooling).build(FeatureSpec(())).double()
    presence = torch.rand(9, 3) > 0.3
    presence[:, 0] = True
    states = torch.randn(9, 3, 6, dtype=torch.float64) * presence.unsqueeze(-1)
    history = torch.tensor([[1, 2, 1, 0], [5, 0, 0, 0], [8, 7, 6, 5]])  # items repeat, within and between users
    mask = torch.tensor([[True] * 3 + [False], [True] + [False] * 3, [True] * 4])
    target = torch.tensor([3, 4, 0])
    _, found = scores(model, states, presence, history, mask, target, selector)

    occurrences = states[history].requires_grad_()
    query = model.encode_users(model.fuse(occurrences, presence[history]), mask)[:, 0]
    psi = (query * model.fuse(states, presence)[target].detach()).sum()
    (gradient,) = torch.autograd.grad(psi, occurrences)
    expected = gradient.mean(-1) if selector == "interest_gradient" else (gradient * occurrences).sum(-1)
    kept = mask.unsqueeze(-1) & presence[history]
    torch.testing.assert_close(found[kept], expected[kept])


def test_chance_ignores_the_model_and_repeats_with_its_seed():
    arguments = (
        golden_model(),
        torch.tensor(X, dtype=torch.float64),
        torch.ones(3, 2, dtype=torch.bool),
        torch.tensor([[0, 1]]),
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([2]),
        "random",
    )
    for one, other in zip(scores(*arguments), scores(*arguments), strict=True):
        assert torch.equal(one, other)
