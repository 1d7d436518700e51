"""Learned weights of edges, against dense matrices; softmax over segments, against torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.test_propagation import graph_of, graphs
from training.blocks.edges import Edges, segment_softmax

pytestmark = pytest.mark.filterwarnings("error")


def doubles(*shape) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@settings(max_examples=40, deadline=None)
@given(graphs)
def test_products_and_weighted_sums_and_their_gradients_are_the_dense_ones(case):
    num_users, num_items, pairs = case
    edges = Edges(graph_of(pairs, num_users=num_users, num_items=num_items))
    users, items, weight = doubles(num_users, 3), doubles(num_items, 3), doubles(len(edges.user_E))
    dense = torch.zeros(num_users, num_items, dtype=torch.float64).index_put((edges.user_E, edges.item_E), weight)
    for found, expected in (
        (edges.products(users, items), (users @ items.T)[edges.user_E, edges.item_E]),
        (edges.to_users(weight, items), dense @ items),
        (edges.to_items(weight, users), dense.T @ users),
    ):
        torch.testing.assert_close(found, expected)
        upstream, given_ = torch.randn_like(expected), (users, items, weight)
        grads, expected_grads = (
            torch.autograd.grad((one * upstream).sum(), given_, retain_graph=True, materialize_grads=True)
            for one in (found, expected)
        )
        for one, other in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(one, other)


logits = st.lists(
    st.tuples(st.integers(0, 4), st.floats(-1e4, 1e4, width=32) | st.just(float("-inf"))), min_size=1, max_size=20
)


@settings(max_examples=80, deadline=None)
@given(logits)
def test_a_segment_has_the_softmax_of_its_numbers_and_nothing_gets_nothing(case):
    segment = torch.tensor([place for place, _ in case])
    logit = torch.tensor([value for _, value in case], dtype=torch.float64, requires_grad=True)
    found, upstream = segment_softmax(logit, segment, count=6), torch.randn(len(case), dtype=torch.float64)
    (grad,) = torch.autograd.grad((found * upstream).sum(), logit)
    assert torch.isfinite(grad).all()
    for place in set(segment.tolist()):
        here = segment == place
        own = logit[here].detach().requires_grad_()
        if torch.isneginf(own).all():
            assert not found[here].any()
            assert not grad[here].any()
            continue
        expected = own.softmax(dim=0)
        torch.testing.assert_close(found[here], expected)
        torch.testing.assert_close(grad[here], torch.autograd.grad((expected * upstream[here]).sum(), own)[0])


def test_no_edges_have_no_softmax():
    assert segment_softmax(torch.zeros(0), torch.zeros(0, dtype=torch.int64), count=3).shape == (0,)
