"""The k best by log-sum-exp over several queries are found, though every search is by one inner product."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import find
from index.exact import ExactIndex
from index.features import Rows, Vectors
from index.find import find_best
from index.ranking import over_queries, score_all, score_rows
from index.scan import ScanIndex
from index.search import FlatIndex
from index.selection import Selection

KINDS = ("normal", "queries alike", "one query large", "few values", "all the same", "zeros")


def draw(kind: str, rng: np.random.Generator, *, num: int, dim: int, num_queries: int) -> tuple[Vectors, Vectors]:
    table, queries = rng.standard_normal((num, dim)), rng.standard_normal((3, num_queries, dim))
    if kind == "queries alike":
        queries[:] = queries[:, :1] + 1e-3 * queries
    elif kind == "one query large":
        queries[:, 0] *= 30
    elif kind == "few values":
        table, queries = rng.integers(-1, 2, table.shape), rng.integers(-1, 2, queries.shape)
    elif kind == "all the same":
        table[:] = table[0]
    elif kind == "zeros":
        table[:] = 0
    return table.astype(np.float32), queries.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    index=st.sampled_from([FlatIndex, ScanIndex]),
    scale=st.sampled_from([1e-3, 1.0, 20.0]),
    num=st.integers(1, 400),
    dim=st.sampled_from([1, 3, 16]),
    num_queries=st.integers(1, 4),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    k=st.sampled_from([1, 2, 7, 40, 500]),
    few=st.sampled_from([0, 2_048]),
    never=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_answer_is_that_of_scoring_every_row(kind, index, scale, num, dim, num_queries, share, k, few, never, seed):
    rng = np.random.default_rng(seed)
    table, queries = draw(kind, rng, num=num, dim=dim, num_queries=num_queries)
    table *= np.float32(scale)
    mask = np.ones(num, bool) if share == 1 else rng.random(num) < share
    allowed = None if share == 1 else Selection(mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "FEW_ROWS", few)
        if never:  # score all rows: widen to the end instead
            patch.setattr(find, "SCORE_ALL_FROM", 0)
            patch.setattr(find, "WIDER", 1_000)
        scores, rows = find_best(
            index(table), table, queries, k=k, refine=1, allowed=allowed, fallback=None, scorer="logsumexp"
        )
    products = np.einsum("nd,bqd->bqn", table.astype(np.float64), queries.astype(np.float64))
    every = np.where(mask, np.logaddexp.reduce(products, axis=1), -np.inf)
    count = min(k, int(mask.sum()))
    allowed_off = 1e-5 * (1 + np.abs(products).max(initial=0))
    for user in range(len(queries)):
        assert len(np.unique(rows[user, :count])) == count
        assert mask[rows[user, :count]].all()
        assert (rows[user, count:] == -1).all()
        assert np.isneginf(scores[user, count:]).all()
        np.testing.assert_allclose(scores[user, :count], every[user, rows[user, :count]], rtol=0, atol=allowed_off)
        best = np.sort(every[user])[::-1][:count]
        np.testing.assert_allclose(every[user, rows[user, :count]], best, rtol=0, atol=allowed_off)
        assert (np.diff(scores[user, :count]) <= 0).all()


class Counted(FlatIndex):
    """Counts how many rows it was asked for."""

    def __init__(self, table_ND: Vectors) -> None:
        super().__init__(table_ND)
        self.asked: list[int] = []

    def search(self, queries_BD: Vectors, *, k: int, allowed: Selection | None) -> tuple[Vectors, Rows]:
        self.asked.append(k)
        return super().search(queries_BD, k=k, allowed=allowed)


def best(index: FlatIndex, table: Vectors, queries: Vectors, *, k: int) -> Rows:
    return find_best(index, table, queries, k=k, refine=1, allowed=None, fallback=None, scorer="logsumexp")[1]


def liked_by_all(num: int) -> Vectors:
    """Row 0 is nobody's best: each of three queries has two rows that it likes more; the others nobody likes."""
    table = np.full((num, 3), -1, np.float32)
    table[0] = 1.0
    table[1:7] = 1.05 * np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    return table


@pytest.mark.parametrize(("num", "asked"), [(4_000, [1, 4]), (30, [1])])
def test_an_item_that_every_query_likes_a_little_beats_those_that_one_likes_most(num, asked):
    """Found by asking for more, or, where the catalogue is small, by scoring all of it."""
    table = liked_by_all(num)
    index = Counted(table)
    assert best(index, table, np.eye(3, dtype=np.float32)[None], k=1).tolist() == [[0]]
    assert index.asked == asked


def test_a_search_that_is_enough_is_not_widened():
    table = np.arange(4_000, 0, -1, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    index = Counted(table)
    assert best(index, table, np.eye(3, dtype=np.float32)[None], k=10).tolist() == [list(range(10))]
    assert index.asked == [10]


def test_the_log_of_the_sum_is_stable_and_between_its_bounds():
    products = np.array([[-2e4, 0.0], [1e4, 1e4], [-1e4, -1e4 - 1], [5.0, 5.0]], np.float32)
    scores = over_queries(products, axis=1, scorer="logsumexp")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.logaddexp.reduce(products.astype(np.float64), axis=1), rtol=1e-6)
    largest = over_queries(products, axis=1, scorer="max")
    assert (scores >= largest).all()
    assert (scores <= largest + math.log(2) + 1e-3).all()


def test_one_query_alone_is_its_inner_product():
    rng = np.random.default_rng(0)
    table, query = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((1, 4)).astype(np.float32)
    rows = np.arange(50)
    expected = table @ query[0]
    for scorer in ("max", "logsumexp"):
        np.testing.assert_allclose(score_rows(table, query, rows, scorer=scorer), expected, atol=1e-6)
        np.testing.assert_allclose(score_all(table, query, scorer=scorer), expected, atol=1e-6)


def test_the_golden_score_of_macridvae_is_the_sum_over_its_concepts_as_queries():
    tau, wanted = 0.1, [[0.919145030018, 0.393919298579], [-0.110431526075, 0.993883734674]]
    vectors = [[0.993883734674, 0.110431526075], [0.242535625036, 0.970142500145], [-0.707106781187, 0.707106781187]]
    first, second = (
        [0.999992193668, 0.0131968106614, 5.84965160353e-07],
        [7.80633167017e-06, 0.986803189339, 0.999999415035],
    )
    queries = np.concatenate([np.array(wanted) / tau, np.eye(2)], axis=1)
    items = np.concatenate([vectors, np.log(np.stack([first, second], axis=1))], axis=1)
    expected, bounds = [9.57023623852, 9.36144977352, 7.80868750947], [9.57023623797, 9.36096805777, 7.80868750946]
    products = items @ queries.T
    np.testing.assert_allclose(over_queries(products, axis=1, scorer="logsumexp"), expected, rtol=1e-9)
    np.testing.assert_allclose(over_queries(products, axis=1, scorer="max"), bounds, rtol=1e-9)
    twin = ExactIndex(items, scorer="logsumexp").score_all(queries[None])
    np.testing.assert_allclose(twin[0], expected, rtol=1e-9)
