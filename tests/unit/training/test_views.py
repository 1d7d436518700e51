"""Views of histories: what changes, what does not, and where gradients go."""

import pytest
import torch

from training.augment import AugmentConfig
from training.models import DemureConfig, FeatureSpec
from training.views import EncodedItems, Histories, Pool, Replacer, make_view

NUM_ITEMS, NUM_MODALITIES, DIM = 30, 3, 8


class World:
    def __init__(self, *, seed=0, **config):
        torch.manual_seed(seed)
        self.config = AugmentConfig(**config)
        self.model = DemureConfig(dim=DIM).build(FeatureSpec(()))
        self.presence = torch.rand(NUM_ITEMS, NUM_MODALITIES) > 0.15
        self.presence[:, 1] = True
        self.states = (torch.randn(NUM_ITEMS, NUM_MODALITIES, DIM) * self.presence.unsqueeze(-1)).requires_grad_()
        self.items = EncodedItems(self.states, self.presence, self.model.fuse(self.states, self.presence))
        self.history = torch.randint(10, (6, 10))  # histories from items 0..9, the pool beyond
        self.mask = torch.arange(10) < torch.tensor([10, 7, 5, 3, 1, 10]).unsqueeze(-1)
        self.histories = Histories(self.history, self.mask, self.items.vectors_UD[self.history])
        self.pool = torch.arange(10, NUM_ITEMS)
        self.own = torch.rand(6, len(self.pool)) < 0.3
        self.scores = torch.rand(6, 10), torch.rand(6, 10, NUM_MODALITIES)

    def view(self, polarity):
        replacer = Replacer(
            self.items, Pool(self.pool, self.own), config=self.config, generator=torch.Generator().manual_seed(1)
        )
        return make_view(
            self.model,
            self.items,
            self.histories,
            replacer,
            item_score_BL=self.scores[0],
            slot_score_BLM=self.scores[1],
            polarity=polarity,
            config=self.config,
        )


@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_whole_items_give_way_to_pool_items_that_are_not_the_users_own(polarity):
    world = World(gamma_items=0.4, gamma_modalities=0)
    view = world.view(polarity)
    vectors = world.items.vectors_UD
    for user in range(6):
        length = int(world.mask[user].sum())
        changed = [
            place for place in range(10) if not torch.equal(view[user, place], vectors[world.history[user, place]])
        ]
        order = torch.argsort(world.scores[0][user, :length], descending=polarity == "negative")
        assert sorted(changed) == sorted(order[: int(length * 0.4 + 1e-9)].tolist())
        for place in changed:
            (source,) = (vectors == view[user, place]).all(dim=-1).nonzero().flatten().tolist()
            assert source >= 10
            assert not world.own[user, source - 10]


def test_modalities_give_way_only_in_items_that_stay_and_to_their_own_kind():
    world = World(gamma_items=0.0, gamma_modalities=0.4)
    seen = []
    fuse = world.model.fuse
    world.model.fuse = lambda states, presence: seen.append((states, presence)) or fuse(states, presence)
    world.view("negative")
    (states, presence) = seen[-1]
    flat = world.states.detach().flatten(end_dim=1)
    for item in range(len(states)):
        for modality in range(NUM_MODALITIES):
            if not presence[item, modality]:
                continue
            sources = (flat == states[item, modality].detach()).all(dim=-1).nonzero().flatten() % NUM_MODALITIES
            assert sources.tolist() == [modality]


def test_across_kinds_a_modality_may_give_way_to_another():
    world = World(gamma_items=0.0, gamma_modalities=0.9, replacement="cross")
    seen = []
    fuse = world.model.fuse
    world.model.fuse = lambda states, presence: seen.append(states) or fuse(states, presence)
    world.view("positive")
    flat = world.states.detach().flatten(end_dim=1)
    kinds = [
        (flat == state).all(dim=-1).nonzero().flatten()[0].item() % NUM_MODALITIES != modality
        for states in seen[-1].detach()
        for modality, state in enumerate(states)
        if state.abs().sum() > 0
    ]
    assert 0.3 < sum(kinds) / len(kinds) < 0.9


def test_both_levels_together_leave_the_rest_alone():
    world = World(gamma_items=0.3, gamma_modalities=0.2)
    view = world.view("negative")
    assert torch.equal(view[4], world.histories.vectors_BLD[4])  # one item: floor(0.3) = floor(0.2 x slots) = 0
    padding = ~world.mask
    assert torch.equal(view[padding], world.histories.vectors_BLD[padding])
    assert not torch.equal(view[0], world.histories.vectors_BLD[0])


def test_nothing_is_replaced_where_the_whole_pool_is_the_users_own():
    world = World()
    world.own[:] = True
    torch.testing.assert_close(world.view("negative"), world.histories.vectors_BLD)


def test_gradients_reach_pool_items_and_kept_items():
    world = World(gamma_items=0.5, gamma_modalities=0.3)
    world.view("positive").square().sum().backward()
    touched = world.states.grad.abs().sum(dim=(1, 2)) > 0
    assert touched[10:].any()
    assert touched[:10].any()


def test_a_view_repeats_with_its_seed():
    assert torch.equal(World(seed=4).view("positive"), World(seed=4).view("positive"))
