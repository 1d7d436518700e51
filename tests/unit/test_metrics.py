"""Metrics against the golden cases, and the mistakes that published evaluators make."""

import numpy as np
import pytest

from index.metrics import METRICS, evaluate, mean_and_deviation, pad_targets, per_user

# rank, truth in chronological order, K; then recall, precision, hit, ndcg, hits, target_index, untruncated
CASES = [
    ([3, 7, 1, 9, 4], [4, 8, 3], 5, (2 / 3, 0.4, 1, 0.65082051856, 0.850344905535, 0.919720789148, 0.65082051856)),
    ([3, 7, 1, 9, 4], [8, 4], 5, (0.5, 0.2, 1, 0.237197712769, 0.386852807235, 0.630929753571, 0.237197712769)),
    ([3, 7, 1, 9, 4], [3], 3, (1, 1 / 3, 1, 1, 1, 1, 1)),
    ([3, 7, 1], [7, 1, 5, 6, 8], 3, (0.4, 2 / 3, 1, 0.530721273977, 0.693426403617, 1, 0.383566367371)),
    ([1, 2, 3], [9], 3, (0, 0, 0, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("rank", "truth", "k", "expected"), CASES)
def test_every_metric_has_its_golden_value(rank, truth, k, expected):
    found = per_user(np.array([rank]), pad_targets([np.array(truth)]), k=k)
    assert [found[name][0] for name in METRICS] == pytest.approx(expected, rel=1e-9)


def test_the_mean_is_over_users_and_their_lists_may_differ_in_length():
    ranked = np.array([[3, 7, 1, 9, 4], [3, 7, 1, 9, 4]])
    means = evaluate(ranked, pad_targets([np.array([4, 8, 3]), np.array([8, 4])]), cutoffs=(5,))
    assert means["recall@5"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert means["ndcg@5"] == pytest.approx((0.65082051856 + 0.237197712769) / 2)


def test_a_target_that_repeats_counts_once():
    found = per_user(np.array([[5, 6]]), pad_targets([np.array([5, 5, 9])]), k=2)
    assert found["recall"][0] == 0.5


def test_users_do_not_share_targets():
    found = per_user(np.array([[1, 2], [2, 1]]), pad_targets([np.array([2]), np.array([3])]), k=1)
    assert found["recall"].tolist() == [0, 0]


def test_nothing_recommended_is_no_hit_even_where_targets_are_padded():
    found = per_user(np.array([[-1, -1]]), pad_targets([np.array([0]), np.array([1, 2, 3])])[:1], k=2)
    assert found["recall"][0] == 0


def test_a_user_without_targets_is_refused():
    with pytest.raises(ValueError, match="user 1 has no target"):
        per_user(np.array([[1], [2]]), pad_targets([np.array([1]), np.array([], np.int64)]), k=1)


def test_a_list_shorter_than_the_cut_off_is_refused():
    with pytest.raises(ValueError, match="hold 2 items, the cut-off is 3"):
        per_user(np.array([[1, 2]]), pad_targets([np.array([1])]), k=3)


def test_the_deviation_is_that_of_a_sample():
    assert mean_and_deviation([{"a": 1.0}, {"a": 3.0}]) == {"a": (2.0, pytest.approx(2**0.5))}
    assert mean_and_deviation([{"a": 1.0}]) == {"a": (1.0, 0.0)}
