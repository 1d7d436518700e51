"""Training pairs: what follows what, and that the stream is a function of seed and step."""

import numpy as np
import pytest

from tests.unit.training.worlds import interactions
from training.data.batches import PairSampler, PairsConfig

HISTORIES = [[10, 11, 12, 13, 14], [3], [7, 8], [1, 2, 4, 5, 6, 9]]


def sampler(*, length=3, batch=4, seed=0, users=(0, 1, 2, 3), **pairs):
    return PairSampler(
        interactions(HISTORIES),
        np.array(users),
        PairsConfig(**pairs),
        history_length=length,
        batch_size=batch,
        seed=seed,
    )


def pairs(one, steps):
    found = []
    for step in steps:
        batch = one.batch(step)
        for user, history, mask, target in zip(
            batch.users_B, batch.history_BL, batch.mask_BL, batch.target_B, strict=True
        ):
            found.append((int(user), tuple(history[mask].tolist()), int(target)))
    return found


def every_pair(length):
    return sorted(
        (user, tuple(items[max(0, cut - length) : cut]), items[cut])
        for user, items in enumerate(HISTORIES)
        for cut in range(1, len(items))
    )


@pytest.mark.parametrize("length", [1, 3, 50])
def test_an_epoch_holds_every_position_once_with_the_items_before_it(length):
    one = sampler(length=length)
    assert one.pairs_per_epoch == 10
    assert one.steps_per_epoch == 3
    assert sorted(pairs(one, range(3))) == every_pair(length)
    assert sorted(pairs(one, range(3, 6))) == every_pair(length)
    assert pairs(one, range(3)) != pairs(one, range(3, 6))


def test_histories_are_padded_at_the_end():
    batch = sampler(length=4, batch=10).batch(0)
    assert (np.diff(batch.mask_BL.astype(int), axis=1) <= 0).all()
    assert (batch.history_BL[~batch.mask_BL] == 0).all()


def test_a_batch_depends_on_seed_and_step_and_not_on_what_was_asked_before():
    for by in ("position", "user"):
        one, other = sampler(by=by), sampler(by=by)
        for step in (5, 0, 4):
            other.batch(step)
        assert pairs(one, [4]) == pairs(other, [4])
        assert pairs(one, range(3)) != pairs(sampler(by=by, seed=1), range(3))


def test_by_user_every_user_comes_equally_often_and_every_cut_too():
    found = pairs(sampler(by="user", batch=5), range(600))
    assert set(found) == set(every_pair(3))
    counts = np.bincount([user for user, _, _ in found], minlength=4)
    assert counts[1] == 0
    assert counts[[0, 2, 3]] == pytest.approx(1000, rel=0.12)


def test_the_least_history_is_kept():
    assert {target for _, _, target in pairs(sampler(min_history=4), range(2))} == {14, 6, 9}


def test_users_who_are_not_to_train_never_come():
    assert {user for user, _, _ in pairs(sampler(users=(0, 2)), range(4))} == {0, 2}


def test_item_dropout_hides_items_but_never_all():
    one = sampler(length=5, batch=10, item_dropout=0.7)
    sizes, full = [], []
    for step in range(60):
        batch, whole = one.batch(step), sampler(length=5, batch=10).batch(step)
        assert not (batch.mask_BL & ~whole.mask_BL).any()
        sizes.append(batch.mask_BL.sum(axis=1))
        full.append(whole.mask_BL.sum(axis=1))
    assert np.min(sizes) == 1
    assert np.sum(sizes) < 0.6 * np.sum(full)


def test_data_without_a_pair_is_refused():
    with pytest.raises(ValueError, match="more than 6 interactions"):
        sampler(min_history=6)


TIMES = [[0, 5, 5, 1_000, 1_000_000_007], [9], [3, 4], [10, 20, 30, 40, 50, 60]]


@pytest.mark.parametrize("item_dropout", [0.0, 0.5])
def test_ages_are_counted_from_the_latest_item_before_the_target_whatever_is_cut_or_hidden(item_dropout):
    config = PairsConfig(item_dropout=item_dropout)
    data = interactions(HISTORIES, times=TIMES)
    batch = PairSampler(data, np.arange(4), config, history_length=3, batch_size=10, seed=0).batch(0)
    assert batch.age_BL.dtype == np.float32
    for user, history, ages, target in zip(batch.users_B, batch.history_BL, batch.age_BL, batch.target_B, strict=True):
        cut = HISTORIES[user].index(target)
        moments = TIMES[user][max(0, cut - 3) : cut]
        expected = [moments[-1] - moment for moment in moments]
        assert ages.tolist() == expected + [0] * (3 - len(expected))
        assert history[: len(expected)].tolist() == HISTORIES[user][max(0, cut - 3) : cut]


def test_without_times_no_ages_are_made():
    assert sampler().batch(0).age_BL is None
