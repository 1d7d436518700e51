"""What every content family must do: the tests enrol from the union. Id-based ones: test_factor_models.py."""

from typing import get_args

import pytest
import torch

from api_schemas.manifest import Modality
from training.models import ContentFamily, FeatureSpec

FAMILIES = get_args(ContentFamily)
DIMS = (7, 4, 3)
B, L = 6, 5
TRAINED = torch.tensor([True, True, False, True, True, True])
"""Which items are known where ids are learned; the fifth has no content, only what is learned of it."""


CASES = [
    *((family, option) for family in FAMILIES for option in ("", "ids")),
    *((family, "positions") for family in FAMILIES if "positions" in family.model_fields),
]


def name_of(case) -> str:
    family, option = case
    kind = family.model_fields["kind"].default
    return f"{kind}-{option}" if option else kind


def built(family, **settings):
    modalities = tuple(Modality(name=f"m{m}", dim=dim) for m, dim in enumerate(DIMS))
    return family(dim=8, history_length=L, **settings).build(FeatureSpec(modalities, TRAINED))


@pytest.fixture(params=CASES, ids=name_of)
def model(request):
    torch.manual_seed(0)
    family, option = request.param
    model = built(family, **({option: True} if option else {}))
    with torch.no_grad():
        for value in model.parameters():  # nothing stays at an initial zero that could hide a mistake
            value.add_(torch.randn_like(value), alpha=0.1)
    return model.double().eval()


@pytest.fixture
def raw():
    torch.manual_seed(1)
    return [torch.nn.functional.normalize(torch.randn(B, dim, dtype=torch.float64), dim=-1) for dim in DIMS]


@pytest.fixture
def presence():
    present = torch.ones(B, len(DIMS), dtype=torch.bool)
    present[1, 0] = present[2, 1] = present[3, :2] = False
    present[4] = False
    return present


def test_shapes_are_those_the_model_says(model, raw, presence):
    states = model.project(raw, presence)
    assert states.shape == (B, len(model.part_names), model.state_dim)
    items = model.fuse(states, model.part_presence(presence))
    assert items.shape == (B, model.dim)
    queries = model.encode_users(items[None], torch.ones(1, B, dtype=torch.bool))
    assert queries.shape == (1, model.num_queries, model.dim)


def test_an_absent_modality_leaks_nothing(model, raw, presence):
    changed = [values.clone() for values in raw]
    changed[0][1] = 100.0
    states = model.project(changed, presence)
    assert torch.equal(states[1, 0], torch.zeros(model.state_dim, dtype=torch.float64))
    torch.testing.assert_close(model.encode_items(changed, presence), model.encode_items(raw, presence))


def test_an_item_without_any_modality_is_finite(model, raw, presence):
    assert torch.isfinite(model.encode_items(raw, presence)[4]).all()


def test_a_batch_is_its_items_one_by_one(model, raw, presence):
    together = model.encode_items(raw, presence)
    alone = torch.cat([model.encode_items([x[b : b + 1] for x in raw], presence[b : b + 1]) for b in range(B)])
    torch.testing.assert_close(together, alone)
    model.train()
    torch.testing.assert_close(model.encode_items(raw, presence), together)  # no statistics over the batch
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_padding_changes_nothing_and_length_is_free(model, raw, presence):
    items = model.encode_items(raw, presence)[:3]
    for padding in (0, 1, 20):
        filler = torch.full((1, padding, model.dim), 1e3, dtype=torch.float64)
        mask = torch.tensor([[True] * 3 + [False] * padding])
        found = model.encode_users(torch.cat([items[None], filler], dim=1), mask)
        torch.testing.assert_close(found, model.encode_users(items[None], mask[:, :3]))


def test_the_order_of_a_history_matters_where_the_model_says_so(model, raw, presence):
    items, mask = model.encode_items(raw, presence)[None, :4], torch.ones(1, 4, dtype=torch.bool)
    there, back = model.encode_users(items, mask), model.encode_users(items.flip(1), mask)
    assert torch.allclose(there, back) != model.reads_order


def test_what_lies_between_items_changes_nothing(model, raw, presence):
    items = model.encode_items(raw, presence)[:3]
    filler = torch.full((1, model.dim), 1e3, dtype=torch.float64)
    holes = torch.cat([items[:1], filler, items[1:2], items[2:3], filler])
    mask = torch.tensor([[True, False, True, True, False]])
    expected = model.encode_users(items[None], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(model.encode_users(holes[None], mask), expected)


def test_a_longer_history_counts_by_its_last_items_where_order_does(model, raw, presence):
    items, mask = model.encode_items(raw, presence), torch.ones(1, B, dtype=torch.bool)
    last = model.encode_users(items[None, B - L :], mask[:, :L])
    assert torch.allclose(model.encode_users(items[None], mask), last) == model.reads_order


DAY = 86_400.0
AGES = torch.tensor([[900 * DAY, 30 * DAY, 3 * DAY, 0.0]], dtype=torch.float64)


def test_ages_count_where_the_model_says_so_and_the_configuration_says_it_too(model, raw, presence):
    items, mask = model.encode_items(raw, presence)[None, :4], torch.ones(1, 4, dtype=torch.bool)
    without, aged = model.encode_users(items, mask), model.encode_users(items, mask, AGES)
    assert torch.allclose(without, aged) != model.reads_ages
    torch.testing.assert_close(model.encode_users(items, mask, torch.zeros_like(AGES)), without)
    kinds = {family.model_fields["kind"].default: family for family in FAMILIES}
    assert {type(built(one)): one.reads_ages for one in kinds.values()}[type(model)] == model.reads_ages


def test_ages_in_padding_and_holes_change_nothing(model, raw, presence):
    items, mask = model.encode_items(raw, presence)[None, :4], torch.tensor([[True, False, True, False]])
    expected = model.encode_users(items[:, [0, 2]], mask[:, [0, 2]], AGES[:, [0, 2]])
    for junk in (0.0, 1e12):
        ages = torch.where(mask, AGES, junk)
        torch.testing.assert_close(model.encode_users(items, mask, ages), expected)


def test_when_a_history_is_read_changes_nothing(model, raw, presence):
    items, mask = model.encode_items(raw, presence)[None, :4], torch.ones(1, 4, dtype=torch.bool)
    later = model.encode_users(items, mask, AGES + 50 * DAY)
    torch.testing.assert_close(later, model.encode_users(items, mask, AGES))


def test_an_empty_history_gives_one_learned_answer(model):
    mask = torch.zeros(2, L, dtype=torch.bool)
    queries = model.encode_users(torch.randn(2, L, model.dim, dtype=torch.float64), mask)
    assert torch.equal(queries[0], queries[1])
    assert torch.isfinite(queries).all()
    queries.sum().backward()
    learned = [value for value in model.parameters() if value.grad is not None and value.grad.any()]
    assert learned


def test_gradients_are_finite_next_to_empty_histories_and_empty_items(model, raw, presence):
    items = model.encode_items(raw, presence)
    mask = torch.tensor([[True] * B, [False] * B])
    model.encode_users(items.expand(2, -1, -1), mask).square().sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_the_parts_of_an_item_sum_to_it_and_an_absent_one_has_none(model, raw, presence):
    states, presence = model.parts_of(raw, presence, None)
    parts = model.modality_parts(states, presence)
    torch.testing.assert_close(parts.sum(dim=1), model.fuse(states, presence))
    assert not parts[~presence].any()


def test_slopes_are_derivatives_of_the_fusion(model, raw, presence):
    states, presence = model.parts_of(raw, presence, None)
    states = states.detach()
    direction = torch.randn_like(states)
    slopes = model.fusion_slopes(states, presence, direction)
    step = 1e-6
    for m in range(len(model.part_names)):
        moved = torch.zeros_like(states)
        moved[:, m] = step * direction[:, m]
        change = (model.fuse(states + moved, presence) - model.fuse(states - moved, presence)) / (2 * step)
        torch.testing.assert_close(slopes[:, m], change * presence[:, m, None], atol=1e-7, rtol=1e-5)


def test_leading_dimensions_are_free(model, raw, presence):
    states, presence = model.parts_of(raw, presence, None)
    folded = model.fuse(states.view(2, 3, *states.shape[1:]), presence.view(2, 3, -1))
    torch.testing.assert_close(folded.view(B, -1), model.fuse(states, presence))


@pytest.fixture(params=FAMILIES, ids=lambda family: family.model_fields["kind"].default)
def with_ids(request):
    torch.manual_seed(0)
    model = built(request.param, ids=True, id_dropout=0.5).double()
    with torch.no_grad():
        model.ids.unknown_S.normal_()
    return model


def test_what_is_not_trained_and_what_is_new_is_known_by_its_content_alone(with_ids, raw, presence):
    assert with_ids.part_names == ("m0", "m1", "m2", "id")
    known = with_ids.fuse(*with_ids.parts_of(raw, presence, None))
    new = with_ids.encode_items(raw, presence)
    has_content = presence.any(dim=1)
    torch.testing.assert_close(known[~TRAINED & has_content], new[~TRAINED & has_content])
    assert ((known - new).abs().amax(dim=1) > 1e-3)[TRAINED].all()


def test_items_by_their_rows_are_those_of_the_whole_catalogue(with_ids, raw, presence):
    rows = torch.tensor([4, 0, 2])
    some = with_ids.parts_of([values[rows] for values in raw], presence[rows], rows)
    for found, whole in zip(some, with_ids.parts_of(raw, presence, None), strict=True):
        torch.testing.assert_close(found, whole[rows])


def test_a_step_hides_a_share_of_the_ids_by_chance_and_they_get_no_gradient(with_ids, raw, presence):
    known = with_ids.parts_of(raw, presence, None)[0]
    kept = []
    for seed in range(200):
        states, _ = with_ids.parts_of(raw, presence, None, chance=torch.Generator().manual_seed(seed))
        assert torch.equal(states[:, :-1], known[:, :-1])
        is_own = (states[:, -1] == with_ids.ids.ids_IS).all(dim=1)
        assert torch.equal(states[:, -1][~is_own], with_ids.ids.unknown_S.expand(int((~is_own).sum()), -1))
        kept.append(is_own)
    share = torch.stack(kept).double().mean(dim=0)
    assert not share[~TRAINED].any()
    assert (share[TRAINED] - 0.5).abs().max() < 0.15
    states[:, -1].sum().backward()
    assert torch.equal(with_ids.ids.ids_IS.grad.any(dim=1), kept[-1])
