"""User encoders, imputers and the balance of new items, on numbers that can be checked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from training.factors.cold import Balance, balanced, balancing_shift, nearest_sample
from training.factors.encoders import AttentionEncoder, MeanEncoder
from training.factors.fold_in import FoldInMap, ItemTables, padded, pool
from training.factors.imputers import Imputer, NearestImputer
from training.factors.learned import learn
from training.factors.plan import imputer_items
from training.models.factors import FactorModel
from training.models.pairwise import MfBprConfig
from training.models.servable import FeatureSpec
from training.sections import LearnedConfig

DIM = 4


def encoder() -> MeanEncoder:
    torch.manual_seed(0)
    return MeanEncoder(torch.randn(DIM, DIM), torch.randn(DIM), torch.randn(DIM))


def test_attention_starts_as_the_map_that_it_is_made_from():
    start = encoder()
    items, mask = torch.randn(3, 5, DIM), torch.arange(5) < torch.tensor([0, 2, 5])[:, None]
    torch.testing.assert_close(AttentionEncoder(start, item_scale=2.0)(items, mask), start(items, mask))


def test_a_user_is_the_pooled_history_through_the_map_and_items_without_a_vector_are_none():
    items = torch.randn(6, DIM)
    items[2] = 0
    histories = [np.array([0, 1, 3, 4]), np.array([2, 5]), np.array([2]), np.array([], np.int64)]
    start = encoder()
    found = FoldInMap("affine", 3, start, None, None).queries(ItemTables(items), histories)
    expected = pool(items, histories, length=3) @ start.map_DD + start.offset_D
    torch.testing.assert_close(found[:2, 0], expected[:2])
    torch.testing.assert_close(expected[1], items[5] @ start.map_DD + start.offset_D)
    torch.testing.assert_close(found[2:, 0], start.default_D.expand(2, DIM))


def test_padding_keeps_the_last_items():
    rows, mask = padded([np.array([1, 2, 3]), np.array([], np.int64)], length=2)
    assert rows.tolist() == [[2, 3], [0, 0]]
    assert mask.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("compared", [100, 4])
@pytest.mark.parametrize("attentive", [False, True])
def test_training_finds_which_item_follows_which(attentive, compared):
    # Item 2k is followed by 2k + 1; the closed form knows nothing of it.
    items = torch.eye(8)
    start = MeanEncoder(torch.eye(8) + 0.1 * torch.randn(8, 8), torch.zeros(8), torch.ones(8))
    made = AttentionEncoder(start, item_scale=1.0) if attentive else start
    histories = [np.array([2 * k, 2 * k + 1]) for k in range(4)] + [np.array([3])]
    config = LearnedConfig(steps=1500, batch_size=16, compared=compared)
    learn(made, ItemTables(items), histories, history_length=3, config=config, seed=0)
    found = FoldInMap("softmax", 3, made, None, None).queries(ItemTables(items), [np.array([2 * k]) for k in range(4)])
    assert (found[:, 0] @ items.T).argmax(dim=-1).tolist() == [1, 3, 5, 7]
    torch.testing.assert_close(made.default_D.data, torch.ones(8))


def test_nothing_is_learned_from_histories_of_one_item():
    start = encoder()
    before = start.map_DD.clone()
    learn(start, ItemTables(torch.eye(DIM)), [np.array([1])], history_length=3, config=LearnedConfig(steps=2), seed=0)
    assert torch.equal(start.map_DD, before)


CONTENT = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
LEARNED = torch.tensor([[1.0], [2.0], [4.0], [8.0]])


def nearest(count: int) -> NearestImputer:
    return NearestImputer([2, 1], CONTENT, LEARNED, count=count)


def test_the_nearest_items_count_by_how_much_nearer_they_are_than_the_next():
    present = torch.ones(1, 2, dtype=torch.bool)
    features = [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0]])]  # cosines 1, .8, 0, 0
    assert nearest(1)(features, present).item() == pytest.approx(1.0)
    assert nearest(2)(features, present).item() == pytest.approx((1.0 * 1 + 0.8 * 2) / 1.8, rel=1e-5)


def test_of_equally_near_items_any_order_gives_the_same():
    present = torch.ones(1, 2, dtype=torch.bool)
    features = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]])]
    content = torch.cat([CONTENT, CONTENT[1:2]])
    learned = torch.cat([LEARNED, torch.tensor([[30.0]])])
    one = NearestImputer([2, 1], content, learned, count=2)(features, present)
    other = NearestImputer([2, 1], content.flip(0), learned.flip(0), count=2)(features, present)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert one.item() == pytest.approx(1.0, abs=1e-3)  # of two equal ones at the border, none


@pytest.mark.parametrize("unknown", [False, True])
def test_an_item_without_content_has_the_mean_and_is_shifted_only_where_none_has_content(unknown):
    imputer = Imputer(nearest(2), num_learned=1)
    features = [torch.zeros(2, 2), torch.tensor([[0.0], [1.0]])]
    present = torch.tensor([[False, False], [False, True]])
    before = imputer(features, present)
    assert before[0].item() == pytest.approx(LEARNED.mean().item())
    imputer.shift(torch.tensor([5.0]), unknown=unknown)
    moved = torch.tensor([[5.0 if unknown else 0.0], [5.0]])
    torch.testing.assert_close(imputer(features, present), before + moved)


def test_raw_vectors_give_what_conditioned_ones_gave():
    imputer = nearest(2)
    raw = [torch.randn(5, 3), torch.randn(5, 2)]
    maps = [(torch.randn(3), torch.randn(3, 2)), (torch.randn(2), torch.randn(2, 1))]
    present = torch.ones(5, 2, dtype=torch.bool)
    before = imputer([(x - mean) @ basis for x, (mean, basis) in zip(raw, maps, strict=True)], present)
    imputer.absorb(maps)
    torch.testing.assert_close(imputer(raw, present), before, rtol=1e-4, atol=1e-4)


def test_a_table_that_is_too_large_is_a_sample_of_it():
    items = torch.arange(100, 200)
    assert torch.equal(nearest_sample(items, width=10, seed=0, most=1000), items)
    sample = nearest_sample(items, width=10, seed=0, most=300)
    assert len(sample) == 30
    assert torch.equal(sample, torch.unique(sample))
    assert torch.isin(sample, items).all()


@pytest.mark.parametrize(("slope", "start", "sign"), [(1.0, 0.0, 1), (1.0, 5.0, -1), (0.01, 0.0, 1)])
def test_the_smallest_shift_that_balances_is_found(slope, start, sign):
    shift = balancing_shift(lambda size: start + slope * size)
    aim = (0.5 - start) / slope if sign > 0 else (2.0 - start) / slope
    assert shift * sign >= aim * sign
    assert shift == pytest.approx(aim, rel=0.02)


def test_what_is_balanced_or_can_not_be_is_left_alone():
    assert balancing_shift(lambda _: 1.0) == 0.0
    assert balancing_shift(lambda _: 0.1) == 0.0


USERS, TRAINED, FRESH, UNKNOWN = 40, 200, 60, 30


def balance_of(*, some_content: bool) -> tuple[Balance, SimpleNamespace]:
    """Balance a catalogue where the last items have no interactions, and the very last of them no content either."""
    torch.manual_seed(0)
    num_items = TRAINED + FRESH + UNKNOWN
    features = FeatureSpec((Modality(name="text", dim=2),))
    model = FactorModel(MfBprConfig(dim=DIM - 1), features, num_users=USERS, num_items=num_items)  # a bias is the last
    is_trained_I = torch.arange(num_items) < TRAINED
    data = SimpleNamespace(
        users=np.arange(USERS),
        num_items=num_items,
        degree_I=is_trained_I.float(),
        presence_IM=some_content * (torch.arange(num_items)[:, None] < TRAINED + FRESH),
        histories=lambda users: [np.array([0])] * len(users),
    )
    items_ID = torch.randn(num_items, DIM) + 1
    new_ID = 0.1 * torch.randn(num_items, DIM)
    new_ID[-UNKNOWN:] = 0.2  # as one: between two neighbouring shifts they are in no list, and in all
    fold_in = FoldInMap("affine", 3, MeanEncoder(torch.eye(DIM), torch.zeros(DIM), torch.ones(DIM)), None, None)
    with torch.no_grad():
        found = balanced(model, data, new_ID, ItemTables(items_ID), fold_in, seed=0)
    return found, data


def test_items_that_nothing_is_known_of_do_not_enter_the_balance():
    found, data = balance_of(some_content=True)
    assert not found.shifts_unknown
    assert found.num_items == FRESH + len(imputer_items(data, seed=0)[1][1::2])
    assert found.shift_F.sum() > 0
    assert 0.3 <= found.ratio <= 2.5


def test_where_no_item_has_content_all_new_ones_are_balanced():
    found, data = balance_of(some_content=False)
    assert found.shifts_unknown
    assert found.num_items == FRESH + UNKNOWN + len(imputer_items(data, seed=0)[1][1::2])
    assert found.ratio > 0.3
