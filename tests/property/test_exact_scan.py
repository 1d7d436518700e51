"""The scan in 8-bit integers loses no row, whatever the vectors look like."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.exact import ExactIndex
from index.scan import ScanIndex
from index.scan_graph import integer_product
from index.selection import Selection


def vectors(kind: str, rng: np.random.Generator, num: int, dim: int) -> np.ndarray:
    values = rng.standard_normal((num, dim))
    if kind == "heavy tails":
        values = rng.standard_cauchy((num, dim))
    elif kind == "shared direction":
        values += 50
    elif kind == "few values":
        values = rng.integers(-1, 2, (num, dim))
    elif kind == "one large":
        values[rng.integers(num)] *= 1e4
    elif kind == "uneven dimensions":
        values *= 10.0 ** rng.integers(-6, 3, dim)
    elif kind == "clusters":
        values = values[rng.integers(0, min(3, num), num)] + 1e-4 * rng.standard_normal((num, dim))
    elif kind == "all the same":
        values[:] = values[0]
    elif kind == "zeros":
        values[:] = 0
    return values


KINDS = (
    "normal",
    "heavy tails",
    "shared direction",
    "few values",
    "one large",
    "uneven dimensions",
    "clusters",
    "all the same",
    "zeros",
)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
    num=st.integers(1, 700),
    dim=st.sampled_from([1, 3, 8, 33]),
    share=st.sampled_from([0.02, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([1, 2, 10, 100, 700]),
)
def test_the_scores_found_are_the_largest_there_are(kind, scale, num, dim, share, seed, k):
    rng = np.random.default_rng(seed)
    table = (scale * vectors(kind, rng, num, dim)).astype(np.float32)
    queries = vectors(rng.choice(KINDS[:6]), rng, 5, dim).astype(np.float32)
    queries[0] = 0
    queries[1] = table[rng.integers(num)]
    mask = rng.random(num) < share
    mask[rng.integers(num)] = True
    allowed = None if share == 1 else Selection(mask)
    count = min(k, num if allowed is None else allowed.count)
    scores, rows = ScanIndex(table).search(queries, k=count, allowed=allowed)
    expected, _ = ExactIndex(table).search(queries[:, None], k=count, allowed_N=None if allowed is None else mask)
    exact = np.einsum("bkd,bd->bk", table[rows].astype(np.float64), queries.astype(np.float64))
    size = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(table, axis=1).max() + 1e-30
    np.testing.assert_array_less(np.abs(scores - expected) / size, 1e-6)
    np.testing.assert_array_less(np.abs(scores - exact) / size, 1e-6)
    assert all(len(np.unique(one)) == count for one in rows)
    assert allowed is None or mask[rows].all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_equal_scores_come_in_the_order_of_their_rows():
    table = np.ones((1000, 4), np.float32)
    table[500] *= 2
    _, rows = ScanIndex(table).search(np.ones((1, 4), np.float32), k=5, allowed=None)
    assert rows.tolist() == [[500, 0, 1, 2, 3]]


def test_many_queries_are_taken_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    table, queries = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal((40, 8)).astype(np.float32)
    whole = ScanIndex(table).search(queries, k=7, allowed=None)
    monkeypatch.setattr("index.scan._MAX_PRODUCTS", 1000)
    parts = ScanIndex(table).search(queries, k=7, allowed=None)
    np.testing.assert_array_equal(whole[1], parts[1])


@pytest.mark.parametrize(("dim", "num_items"), [(1, 1), (3, 200), (64, 20_000)])
def test_the_graph_is_valid_onnx_and_its_product_is_that_of_the_integers(dim, num_items):
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (dim, num_items)).astype(np.int8)
    content = integer_product(codes, zero_point=64)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    queries = rng.integers(1, 128, (3, dim)).astype(np.uint8)
    queries[0] = 127  # the largest sums there can be
    codes[:, 0] = 127
    session = ort.InferenceSession(integer_product(codes, zero_point=64), providers=["CPUExecutionProvider"])
    (products,) = session.run(["products"], {"queries": queries})
    np.testing.assert_array_equal(products, (queries.astype(np.int32) - 64) @ codes.astype(np.int32))
