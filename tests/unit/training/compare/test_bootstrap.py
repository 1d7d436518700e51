"""The paired bootstrap: known answers."""

import numpy as np
import pytest

from training.compare.bootstrap import Sample, paired_bootstrap

USERS = np.arange(400)


def runs(*values_by_seed, users=USERS):
    return [Sample(users, np.asarray(values_B, np.float64)) for values_B in values_by_seed]


def test_equal_models_have_p_of_one_and_no_difference():
    value_B = np.random.default_rng(0).random(400)
    found = paired_bootstrap(runs(value_B, value_B[::-1]), runs(value_B, value_B[::-1]))
    assert (found.difference, found.interval, found.relative, found.p) == (0.0, (0.0, 0.0), 0.0, 1.0)


def test_a_model_that_is_clearly_better_has_a_small_p_and_an_interval_around_the_truth():
    rng = np.random.default_rng(1)
    theirs = rng.random(400)
    ours = theirs + 0.1 + rng.normal(0, 0.2, 400)
    found = paired_bootstrap(runs(ours), runs(theirs))
    assert found.p < 0.001
    assert found.interval[0] < 0.1 < found.interval[1]
    # The normal law's interval, 1.96 standard errors on either side, is what this many users come to.
    half = 1.96 * (ours - theirs).std() / 20
    assert found.interval == pytest.approx((found.difference - half, found.difference + half), abs=0.002)
    assert found.relative == pytest.approx((ours.mean() - theirs.mean()) / theirs.mean())
    assert found.relative_interval[0] < found.relative < found.relative_interval[1]


def test_the_two_sides_mirror_each_other():
    rng = np.random.default_rng(2)
    a, b = rng.random(400), rng.random(400)
    there, back = paired_bootstrap(runs(a), runs(b)), paired_bootstrap(runs(b), runs(a))
    assert there.p == back.p
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))


def test_under_no_difference_small_values_of_p_are_as_rare_as_they_say():
    rng = np.random.default_rng(3)
    users = np.arange(60)
    found = [
        paired_bootstrap(
            runs(rng.normal(1, 1, 60), users=users), runs(rng.normal(1, 1, 60), users=users), resamples=300
        ).p
        for _ in range(200)
    ]
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.11
    assert 0.4 < np.mean(found) < 0.6


def test_seeds_are_no_further_users():
    rng = np.random.default_rng(4)
    ours, theirs = rng.random(400), rng.random(400)
    once, thrice = paired_bootstrap(runs(ours), runs(theirs)), paired_bootstrap(runs(*[ours] * 3), runs(*[theirs] * 3))
    assert thrice.interval == pytest.approx(once.interval)
    assert thrice.p == pytest.approx(once.p)


def test_seeds_with_other_test_users_are_averaged_seed_by_seed():
    few, many = np.arange(10), np.arange(5, 400)
    ours = [Sample(few, np.ones(10)), Sample(many, np.zeros(395))]
    theirs = [Sample(few, np.zeros(10)), Sample(many, np.zeros(395))]
    found = paired_bootstrap(ours, theirs)
    assert found.difference == pytest.approx(0.5)
    assert found.relative is None


def test_runs_on_different_users_are_not_paired():
    with pytest.raises(ValueError, match="different users"):
        paired_bootstrap(runs(np.ones(400)), runs(np.ones(400), users=USERS + 1))
    with pytest.raises(ValueError, match="can not be paired"):
        paired_bootstrap(runs(np.ones(400)), [])
