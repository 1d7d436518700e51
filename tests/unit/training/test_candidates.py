"""Drawn candidates: whose they are, how many, never what a user had, and figures that say that they are of a sample."""

import numpy as np
import pytest
import torch

from tests.unit.training.worlds import interactions
from training.config import ConfigError, parse_config
from training.data.candidates import NO_CANDIDATE, SampledConfig, is_sampled, sampled_only, without_sampled
from training.data.split import SplitConfig, make_split
from training.evaluate import evaluate_scores

NUM_ITEMS = 50
DATA = interactions([[(n + step) % NUM_ITEMS for step in range(10)] for n in range(40)], num_items=NUM_ITEMS)
FOLDS = SplitConfig(kind="folds")


def split_of(data=DATA, config=FOLDS, **sampled):
    return make_split(data, config, seed=0, sampled=SampledConfig(**sampled))


def lists(held):
    return [row_C[row_C != NO_CANDIDATE].tolist() for row_C in held.candidates.rows_BC]


@pytest.mark.parametrize(("rule", "size"), [("total", 20), ("added", 22)])
def test_candidates_are_the_targets_and_items_that_the_user_never_had(rule, size):
    split = split_of(n=20, rule=rule)
    for held in (split.valid, split.test):
        for place, candidates in enumerate(lists(held)):
            targets = set(held.targets_BT[place].tolist())
            had = set(DATA.of(int(held.users_B[place])).tolist())
            assert candidates == sorted(set(candidates))
            assert len(candidates) == size
            assert set(candidates) & had == targets  # the other held-out part is no candidate either


def test_a_draw_depends_on_the_seed_and_the_user_alone():
    whole, part = (
        interactions(
            [DATA.of(user).tolist() for user in range(num_users)],
            num_items=NUM_ITEMS,
            splits=[[0] * 6 + [1] * 2 + [2] * 2] * num_users,
        )
        for num_users in (40, 7)
    )
    drawn = lists(make_split(whole, SplitConfig(), seed=0, sampled=SampledConfig(n=20)).test)
    assert lists(make_split(part, SplitConfig(), seed=1, sampled=SampledConfig(n=20)).test) == drawn[:7]
    assert lists(make_split(whole, SplitConfig(), seed=0, sampled=SampledConfig(n=20, seed=1)).test) != drawn
    assert len({tuple(candidates) for candidates in drawn}) == 40


def test_every_item_that_a_user_never_had_is_drawn_alike():
    data = interactions([[user % 2, 2, 3, 4, 5] for user in range(3000)], num_items=NUM_ITEMS)
    held = split_of(data, SplitConfig(kind="folds", seed=0), n=10, rule="added").test
    drawn = np.concatenate([[row for row in rows if row > 5] for rows in lists(held)])
    share_I = np.bincount(drawn, minlength=NUM_ITEMS)[6:] / len(held)
    assert share_I == pytest.approx(np.full(44, 10 / 45), abs=0.03)


def test_of_more_targets_than_candidates_all_are_ranked_and_none_is_added():
    data = interactions([list(range(40))] * 3, num_items=NUM_ITEMS)
    assert [len(rows) for rows in lists(split_of(data, n=5).test)] == [8, 8, 8]


def test_a_catalogue_that_is_no_larger_than_the_sample_is_refused():
    with pytest.raises(ValueError, match=r"eval.sampled.n is 50, and the catalogue has but 50 items to draw from"):
        split_of(n=50)


def test_among_all_that_a_user_never_had_the_figures_are_those_of_the_whole_catalogue():
    held = split_of(config=SplitConfig(kind="users"), n=NUM_ITEMS - 10, rule="added").test
    scores = torch.randn(len(held), NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    found = evaluate_scores(lambda piece: scores[piece].clone(), held, num_items=NUM_ITEMS, cutoffs=(1, 5, 45))
    assert len(found) == 42
    assert {name.removesuffix("_against_40"): value for name, value in sampled_only(found).items()} == pytest.approx(
        without_sampled(found)
    )


def test_among_fewer_candidates_as_much_is_found_or_more():
    held = split_of(n=15).test
    scores = torch.randn(len(held), NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    found = evaluate_scores(lambda piece: scores[piece].clone(), held, num_items=NUM_ITEMS, cutoffs=(5,))
    assert found["recall@5_of_15"] > found["recall@5"] > 0
    assert found["ndcg_untruncated@5_of_15"] > found["ndcg_untruncated@5"]


def test_where_all_scores_are_equal_targets_are_found_by_chance_only():
    histories = [np.random.default_rng(user).permutation(NUM_ITEMS)[:10].tolist() for user in range(400)]
    data = interactions(histories, num_items=NUM_ITEMS)
    held = split_of(data, n=20).test
    found = evaluate_scores(lambda piece: torch.zeros(400, NUM_ITEMS)[piece], held, num_items=NUM_ITEMS, cutoffs=(5,))
    assert found["recall@5_of_20"] == pytest.approx(5 / 20, abs=0.06)


def test_a_name_says_of_which_sample_it_is():
    assert SampledConfig().named("recall@10") == "recall@10_of_1000"
    assert SampledConfig(n=99, rule="added").named("ndcg_hits@5") == "ndcg_hits@5_against_99"
    assert is_sampled("ndcg_hits@5_against_99")
    assert not is_sampled("ndcg_hits@5")


TEXT = '[model]\nkind = "base"\n[eval]\ncutoffs = [10]\nmonitor = "recall@10"\n[eval.sampled]\nn = 100\n'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.monitor=recall@10_of_100", r"eval.monitor: .*is of a sample: what is selected is selected on the whole"),
        ("eval.sampled.n=9", r"eval: .*sampled.n = 9 is less than the cut-off 10"),
        ("eval.sampled.rule=half", r"eval.sampled.rule: Input should be 'total' or 'added'"),
        ("search.eval.sampled.n=[100, 200]", r"search.eval.sampled.n: is the same for all runs that are compared"),
    ],
)
def test_a_sample_never_selects_and_is_the_same_for_all(override, message):
    assert parse_config(TEXT).eval.sampled == SampledConfig(n=100)
    with pytest.raises(ConfigError, match=message):
        parse_config(TEXT, [override])
