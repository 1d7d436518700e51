"""Splits: who is held out, and what of them is history."""

import numpy as np
import pytest

from index.metrics import NO_TARGET
from tests.unit.training.worlds import interactions
from training.config import ConfigError, parse_config, to_toml
from training.data.split import SplitConfig, all_users, held_out, interaction_groups, make_split, user_groups


def users_of(num):
    return interactions([[n % 20, (n + 1) % 20, (n + 2) % 20] for n in range(num)])


def test_users_are_split_eight_one_one_without_overlap():
    train, valid, test = user_groups(103, seed=0)
    assert [len(train), len(valid), len(test)] == [83, 10, 10]
    assert sorted([*train, *valid, *test]) == list(range(103))


def test_the_split_is_the_same_for_the_same_seed_only():
    assert user_groups(50, seed=1)[1].tolist() == user_groups(50, seed=1)[1].tolist()
    assert user_groups(50, seed=1)[1].tolist() != user_groups(50, seed=2)[1].tolist()


@pytest.mark.parametrize(("length", "history"), [(1, 0), (2, 1), (4, 3), (5, 4), (10, 8), (15, 12)])
def test_the_first_four_fifths_are_history(length, history):
    held = held_out(interactions([list(range(length))]), np.array([0]))
    assert held.histories[0].tolist() == list(range(history))
    assert held.targets_BT[0].tolist() == list(range(history, length))


def test_targets_do_not_repeat_and_users_without_any_are_left_out():
    data = interactions([[1, 2, 3, 4, 5, 6, 7, 8, 9, 9], [], [4, 5, 6, 7, 4]])
    held = all_users(data)
    assert held.users_B.tolist() == [0]  # user 2's only target was seen, so no list that masks seen items can hold it
    assert held.targets_BT.tolist() == [[9]]
    kept = all_users(data, seen="keep")
    assert kept.users_B.tolist() == [0, 2]
    assert kept.targets_BT.tolist() == [[9], [4]]


def test_target_lists_are_filled_to_one_length():
    held = all_users(interactions([list(range(10)), list(range(5))]))
    assert held.targets_BT.tolist() == [[8, 9], [4, NO_TARGET]]


def test_a_column_is_the_split_where_there_is_one():
    data = interactions([[1, 2, 3, 4], [5, 6, 7, 8]], splits=[[0, 1, 0, 2], [0, 0, 0, 1]])
    split = make_split(data, SplitConfig(), seed=0)
    assert [split.train.of(u).tolist() for u in split.train_users] == [[1, 3], [5, 6, 7]]
    assert split.valid.targets_BT.tolist() == [[2], [8]]
    assert (split.test.users_B.tolist(), split.test.targets_BT.tolist()) == ([0], [[4]])
    assert split.test.histories[0].tolist() == [1, 3]
    by_user = make_split(users_of(30), SplitConfig(), seed=0)
    assert len(by_user.test) == 3


def test_each_users_interactions_are_split_eight_one_one_at_random():
    data = interactions([list(range(20)) for _ in range(40)])
    split = make_split(data, SplitConfig(kind="interactions"), seed=0)
    lengths = split.train.lengths
    assert (lengths.tolist(), len(split.valid), len(split.test)) == ([16] * 40, 40, 40)
    for place in range(40):
        parts = [split.train.of(place), split.valid.targets_BT[place], split.test.targets_BT[place]]
        assert sorted(np.concatenate(parts)) == list(range(20))
        assert split.test.histories[place].tolist() == sorted(parts[0])  # time order stays
    other = make_split(data, SplitConfig(kind="interactions"), seed=1)
    assert split.train.item_E.tolist() != other.train.item_E.tolist()


def test_short_histories_keep_something_to_train_on_and_shares_are_right_on_the_whole():
    groups = interaction_groups(np.array([1] * 50 + [3] * 3000), seed=0)
    assert (groups[:50] == 0).all()
    shares = np.bincount(groups[50:], minlength=3) / 9000
    assert shares.tolist() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_five_folds_are_three_to_train_on_one_to_validate_and_one_to_test():
    data = interactions([list(range(20)) for _ in range(40)])
    folds = [make_split(data, SplitConfig(kind="folds", fold=fold), seed=0) for fold in range(5)]
    for fold, split in enumerate(folds):
        assert split.train.lengths.tolist() == [12] * 40
        assert np.array_equal(split.valid.targets_BT, folds[(fold + 1) % 5].test.targets_BT)
    tested = np.concatenate([split.test.targets_BT for split in folds], axis=1)
    assert np.sort(tested, axis=1).tolist() == [list(range(20))] * 40


def test_a_run_says_nothing_of_folds_unless_it_has_some():
    text = '[model]\nkind = "base"\n[split]\nkind = "{}"\nfold = 2\n'
    assert "fold" not in to_toml(parse_config(text.format("users")))
    config = parse_config(text.format("folds"))
    assert "fold = 2" in to_toml(config)
    assert parse_config(to_toml(config)) == config
    with pytest.raises(ConfigError, match=r"split: .*fold 5 is none of 5 folds, which are counted from 0"):
        parse_config(text.format("folds"), ["split.fold=5"])


def test_test_users_are_not_among_those_that_train():
    split = make_split(users_of(60), SplitConfig(kind="users"), seed=3)
    assert not set(split.train_users) & {*split.valid.users_B, *split.test.users_B}


def test_the_splits_own_seed_goes_before_the_runs():
    one = make_split(users_of(60), SplitConfig(seed=5), seed=1)
    other = make_split(users_of(60), SplitConfig(seed=5), seed=2)
    assert one.test.users_B.tolist() == other.test.users_B.tolist()


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        (users_of(3), SplitConfig(), "none of 3 users is left for validation"),
        (interactions([[1]] * 30), SplitConfig(), "no user to train on has two interactions"),
        (users_of(30), SplitConfig(kind="column"), "no column 'split'"),
    ],
)
def test_data_that_can_not_be_split_is_refused(data, config, message):
    with pytest.raises(ValueError, match=message):
        make_split(data, config, seed=0)


TIMES = [[10, 20, 400, 1_000, 5_000], [7, 7]]


def test_ages_of_held_out_users_are_counted_from_the_end_of_their_history_and_know_no_target():
    data = interactions([[1, 2, 3, 4, 5], [6, 7]], times=TIMES)
    held = held_out(data, np.array([0, 1]))
    assert [ages.tolist() for ages in held.ages] == [[990, 980, 600, 0], [0]]
    assert held_out(interactions([[1, 2, 3, 4, 5]]), np.array([0])).ages is None


def test_ages_go_with_the_histories_of_a_split_of_interactions():
    splits = [[0, 1, 0, 0, 2], [0, 1]]
    data = interactions([[1, 2, 3, 4, 5], [6, 7]], times=TIMES, splits=splits)
    split = make_split(data, SplitConfig(kind="column"), seed=0)
    assert [ages.tolist() for ages in split.valid.ages] == [[990, 600, 0], [0]]
    assert [ages.tolist() for ages in split.test.ages] == [[990, 600, 0]]
    assert split.train.times_of(0).tolist() == [10, 400, 1_000]
