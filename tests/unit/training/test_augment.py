"""Which parts are replaced and by what: golden counts, choices and laws, then what a draw must never do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment import (
    AugmentConfig,
    draw_replacements,
    num_replaced,
    replaced_parts,
    replacement_weights,
    select_highest,
)

ALPHA_ITEMS = torch.tensor([[0.9, -0.1, 0.4, 0.2, 0.05]])
ALPHA_SLOTS = torch.tensor([[[0.1, 0.7], [0.3, 0.2], [0.6, 0.0], [-0.2, 0.5], [0.4, 0.9]]])
SIMILARITY = torch.tensor([[2.0, 0.0, -1.0], [2.0, 2.0, 6.0]])


def parts(polarity, *, mask=None, present=None):
    config = AugmentConfig(gamma_items=0.4, gamma_modalities=0.3)
    mask = torch.ones(1, 5, dtype=torch.bool) if mask is None else mask
    present = torch.ones(1, 5, 2, dtype=torch.bool) if present is None else present
    items, slots = replaced_parts(
        ALPHA_ITEMS, ALPHA_SLOTS, mask_BL=mask, present_BLM=present, polarity=polarity, config=config
    )
    return items[0].nonzero().flatten().tolist(), slots[0].nonzero().tolist()


def normalised(weights):
    return weights / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    ("polarity", "items", "slots"), [("negative", [0, 2], [[4, 1]]), ("positive", [1, 4], [[3, 0]])]
)
def test_choices_are_the_golden_ones(polarity, items, slots):
    assert parts(polarity) == (items, slots)


def test_counts_use_the_true_length_and_not_the_padded_one():
    mask = torch.tensor([[True, True, True, False, False]])
    items, slots = parts("negative", mask=mask)
    assert items == [0]  # floor(3 x 0.4)
    assert slots == [[2, 0]]  # floor(2 x 2 x 0.3)


def test_an_absent_modality_is_no_slot():
    present = torch.ones(1, 5, 2, dtype=torch.bool)
    present[0, 4, 1] = False
    assert parts("negative", present=present)[1] == [[3, 1]]


def test_a_product_that_is_whole_is_not_rounded_down():
    assert num_replaced(torch.tensor([100, 10]), 0.29).tolist() == [29, 2]
    assert num_replaced(torch.tensor([100]), 0.57).tolist() == [57]  # 56.99999999999999 in floating point


def test_all_eligible_places_are_taken_when_there_are_fewer():
    chosen = select_highest(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, False, True]]), torch.tensor([3]))
    assert chosen.tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("polarity", "expected"),
    [("positive", [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]), ("negative", [[0.0, 0.4, 0.6], [0.5, 0.5, 0.0]])],
)
def test_minmax_laws_are_the_golden_ones(polarity, expected):
    law = normalised(replacement_weights(SIMILARITY, law="minmax", polarity=polarity))
    torch.testing.assert_close(law, torch.tensor(expected))


@pytest.mark.parametrize("law", ["minmax", "minmax_softmax", "softmax", "uniform"])
@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_a_constant_row_becomes_uniform(law, polarity):
    weights = normalised(replacement_weights(torch.ones(1, 3), law=law, polarity=polarity))
    torch.testing.assert_close(weights, torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize(("polarity", "sign"), [("positive", 1.0), ("negative", -1.0)])
def test_softmax_laws_are_softmax_of_likeness_over_temperature(polarity, sign):
    found = normalised(replacement_weights(SIMILARITY * 100, law="softmax", polarity=polarity, temperature=50.0))
    torch.testing.assert_close(found, torch.softmax(sign * SIMILARITY * 2, dim=-1))
    p = torch.tensor([[1.0, 1 / 3, 0.0], [0.0, 0.0, 1.0]])
    found = normalised(replacement_weights(SIMILARITY, law="minmax_softmax", polarity=polarity, temperature=0.5))
    torch.testing.assert_close(found, torch.softmax(sign * p * 2, dim=-1))


@pytest.mark.parametrize("law", ["minmax", "minmax_softmax", "softmax", "uniform"])
def test_what_can_not_replace_has_no_weight_and_no_part_in_the_range(law):
    available = torch.tensor([True, False, True])
    weights = replacement_weights(
        torch.tensor([[2.0, 99.0, -1.0]]), law=law, polarity="positive", available_P=available
    )
    assert weights[0, 1] == 0
    assert weights[0, 0] > 0
    if law == "minmax":
        assert weights.tolist() == [[1.0, 0.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6), st.floats(0, 1))
def test_a_draw_is_never_the_users_own_never_weightless_and_none_only_if_none_is_left(seed, size, users, share):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, size, generator=generator) * (torch.rand(3, size, generator=generator) > 0.4)
    forbidden = torch.rand(users, size, generator=generator) < share
    row, user = torch.randint(3, (50,), generator=generator), torch.randint(users, (50,), generator=generator)
    chosen = draw_replacements(weights, row, forbidden_BP=forbidden, user_S=user, generator=generator)
    allowed = (weights[row] > 0) & ~forbidden[user]
    for slot, place in enumerate(chosen.tolist()):
        assert allowed[slot, place] if place >= 0 else not allowed[slot].any()


def test_draws_follow_the_law_of_what_is_left():
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 0.0, 0.0, 1.0]])
    forbidden = torch.tensor([[False, False, False, True], [True, False, False, False]])
    num = 40_000
    row, user = torch.tensor([0, 0, 1, 1]).repeat(num), torch.tensor([0, 1, 0, 1]).repeat(num)
    generator = torch.Generator().manual_seed(3)
    chosen = draw_replacements(weights, row, forbidden_BP=forbidden, user_S=user, generator=generator).view(-1, 4)
    expected = [[1 / 6, 2 / 6, 3 / 6, 0], [0, 2 / 9, 3 / 9, 4 / 9], [1, 0, 0, 0], [0, 0, 0, 1]]
    for column, law in enumerate(expected):
        found = torch.bincount(chosen[:, column], minlength=4) / num
        assert found.tolist() == pytest.approx(law, abs=0.01)
