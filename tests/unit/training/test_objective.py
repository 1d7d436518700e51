"""The step's loss: every way to compute it agrees, and every parameter learns from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from index.dataset import Dataset
from training import objective as module
from training.augment import AugmentConfig
from training.data.batches import PairSampler, PairsConfig
from training.data.catalogue import Catalogue
from training.data.conditioning import ConditioningConfig
from training.data.interactions import read_interactions
from training.data.negatives import FullSoftmaxConfig, SampledSoftmaxConfig
from training.models import DemureConfig
from training.objective import Objective

FULL, VIEWS = FullSoftmaxConfig(), AugmentConfig(pool_size=16)


class World:
    def __init__(self, folder, *, negatives=FULL, augment=VIEWS, ids=False):
        dataset = Dataset.open(folder)
        self.interactions = read_interactions(dataset)
        users = np.arange(self.interactions.num_users)
        catalogue = Catalogue(dataset)
        catalogue.condition(ConditioningConfig())
        torch.manual_seed(0)
        features = replace(catalogue.features, trained_I=torch.ones(catalogue.num_items, dtype=torch.bool))
        self.model = DemureConfig(dim=8, history_length=6, ids=ids).build(features)
        self.sampler = PairSampler(self.interactions, users, PairsConfig(), history_length=6, batch_size=32, seed=0)
        self.objective = Objective(
            self.model,
            catalogue,
            self.interactions,
            train_users=users,
            negatives=negatives,
            augment=augment,
            device=torch.device("cpu"),
        )

    def losses(self, *, with_views=True):
        generator = torch.Generator().manual_seed(0)
        return self.objective(self.sampler.batch(0), generator=generator, with_views=with_views)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("negatives", [FULL, SampledSoftmaxConfig(count=40, log_q=True)])
def test_every_parameter_gets_a_gradient(toy_dataset, negatives, ids):
    world = World(toy_dataset, negatives=negatives, ids=ids)
    world.losses()["total"].backward()
    without = [name for name, value in world.model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


@pytest.mark.parametrize("ids", [False, True])
def test_encoding_only_what_a_step_touches_changes_nothing(toy_dataset, monkeypatch, ids):
    negatives = SampledSoftmaxConfig(law="log_uniform", count=20, log_q=True)
    whole = World(toy_dataset, negatives=negatives, ids=ids)
    monkeypatch.setattr(module, "_ENCODE_WHOLE_BELOW", 0)
    part = World(toy_dataset, negatives=negatives, ids=ids)
    gradients = []
    for world in (whole, part):
        losses = world.losses()
        losses["total"].backward()
        gradients.append([losses["total"].detach(), *(value.grad for value in world.model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_total_is_equation_15_and_the_default_query(toy_dataset):
    augment = AugmentConfig(pool_size=16, lambda_softmax=0.3, lambda_contrast=0.7, views=2)
    losses = World(toy_dataset, augment=augment).losses()
    expected = losses["softmax"] + 0.3 * losses["view_softmax"] + 0.7 * losses["contrast"] + losses["default"]
    torch.testing.assert_close(losses["total"].detach(), expected)


def test_views_leave_the_softmax_of_the_users_as_it_is(toy_dataset):
    plain = World(toy_dataset, augment=None).losses()
    for share in (0.3, 1.0):
        viewed = World(toy_dataset, augment=AugmentConfig(share=share)).losses()
        torch.testing.assert_close(viewed["softmax"], plain["softmax"])
    warming_up = World(toy_dataset).losses(with_views=False)
    assert "contrast" not in warming_up
    torch.testing.assert_close(warming_up["total"], plain["total"])


def test_the_default_query_moves_no_other_parameter(toy_dataset):
    world = World(toy_dataset, augment=None)
    losses = world.losses()
    query = world.model.default_query
    with_default = torch.autograd.grad(losses["total"], list(world.model.parameters()))
    query.requires_grad_(False)
    query += 5.0
    without = torch.autograd.grad(world.losses()["total"], [p for p in world.model.parameters() if p is not query])
    others = [g for g, p in zip(with_default, world.model.parameters(), strict=True) if p is not query]
    for one, other in zip(others, without, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("selector", ["interest_gradient", "grad_x_input", "random"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_every_option_of_the_views_gives_a_finite_loss(toy_dataset, selector, similarity):
    augment = AugmentConfig(
        selector=selector, similarity=similarity, law="minmax_softmax", law_temperature=0.1, replacement="cross"
    )
    losses = World(toy_dataset, augment=augment).losses()
    assert all(torch.isfinite(loss) for loss in losses.values())
