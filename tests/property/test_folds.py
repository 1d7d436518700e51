"""Folds of interactions: nothing is lost or tested twice, shares are fair, nobody is tested with nothing learned."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.interactions import TEST, TRAIN, VALID
from training.data.split import fold_groups, interaction_folds

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=20).map(np.array)
SEEDS = st.integers(0, 2**31 - 1)


@given(length_U=LENGTHS, num=st.integers(3, 8), seed=SEEDS)
def test_every_interaction_is_tested_in_one_fold_and_validates_in_the_one_before(length_U, num, seed):
    fold_E = interaction_folds(length_U, num=num, seed=seed)
    groups_FE = np.stack([fold_groups(fold_E, test=test, num=num) for test in range(num)])
    assert groups_FE.shape == (num, length_U.sum())
    assert ((groups_FE == TEST).sum(axis=0) == 1).all()
    assert ((groups_FE == VALID) == np.roll(groups_FE == TEST, -1, axis=0)).all()


@given(length_U=LENGTHS, num=st.integers(3, 8), seed=SEEDS)
def test_a_users_folds_differ_by_at_most_one_and_one_of_two_interactions_is_there_to_train_on(length_U, num, seed):
    fold_E = interaction_folds(length_U, num=num, seed=seed)
    for folds in np.split(fold_E, np.cumsum(length_U)[:-1]):
        sizes = np.bincount(folds, minlength=num)
        assert sizes.max() - sizes.min() <= 1
        if len(folds) >= 3 or (len(folds) == 2 and num > 3):
            assert all((fold_groups(folds, test=test, num=num) == TRAIN).any() for test in range(num))


@given(seed=SEEDS, length=st.integers(1, 8))
def test_folds_are_of_one_size_on_the_whole_for_short_histories_too(seed, length):
    sizes = np.bincount(interaction_folds(np.full(2000, length), num=5, seed=seed), minlength=5)
    assert np.abs(sizes / (2000 * length) - 0.2).max() < 0.05


@given(length_U=LENGTHS, seed=SEEDS)
def test_a_seed_gives_the_same_folds(length_U, seed):
    first, second = (interaction_folds(length_U, num=5, seed=seed) for _ in range(2))
    assert np.array_equal(first, second)
