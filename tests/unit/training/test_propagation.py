"""Propagation over the graph, against the dense matrix that it stands for and against golden numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.blocks.propagation import InteractionGraph, Nodes
from training.models import FeatureSpec, GraphInputs, LightGcnConfig

pytestmark = pytest.mark.filterwarnings("error")

GOLDEN_PAIRS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 2)]
GOLDEN_USERS = [[0.5, -0.2], [0.1, 0.8], [-0.3, 0.4], [0.6, 0.6]]
GOLDEN_ITEMS = [[0.9, 0.1], [-0.4, 0.7], [0.2, -0.5]]


def graph_of(pairs, *, num_users, num_items) -> InteractionGraph:
    user_E, item_E = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    return InteractionGraph(user_E, item_E, num_users=num_users, num_items=num_items)


def dense(pairs, *, num_users, num_items, kind) -> torch.Tensor:
    """Return the normalised adjacency of users and items `[U + I, U + I]`."""
    adjacency = torch.zeros(num_users + num_items, num_users + num_items, dtype=torch.float64)
    for user, item in pairs:
        adjacency[user, num_users + item] = adjacency[num_users + item, user] = 1
    degree = adjacency.sum(dim=1).clamp_min(1)
    if kind == "mean":
        return adjacency / degree[:, None]
    return adjacency / torch.sqrt(torch.outer(degree, degree))


graphs = st.integers(1, 5).flatmap(
    lambda users: st.integers(1, 5).flatmap(
        lambda items: st.tuples(
            st.just(users),
            st.just(items),
            st.lists(st.tuples(st.integers(0, users - 1), st.integers(0, items - 1)), max_size=12),
        )
    )
)


@settings(max_examples=60, deadline=None)
@given(graphs, st.integers(0, 4), st.sampled_from(["symmetric", "mean"]))
def test_the_mean_of_layers_and_its_gradient_are_the_dense_ones(case, count, kind):
    num_users, num_items, pairs = case
    sizes = {"num_users": num_users, "num_items": num_items}
    matrix = dense(pairs, **sizes, kind=kind)
    nodes = torch.randn(num_users + num_items, 3, dtype=torch.float64, requires_grad=True)
    layers = [nodes]
    for _ in range(count):
        layers.append(matrix @ layers[-1])
    expected = torch.stack(layers).mean(dim=0)
    weights = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), nodes)

    step = graph_of(pairs, **sizes).operator(kind, dtype=torch.float64)
    users, items = nodes[:num_users], nodes[num_users:]
    whole = step.mean(Nodes(users, items), count)
    by_side = [sum(two) for two in zip(step.mean_of_users(users, count), step.mean_of_items(items, count), strict=True)]
    for found in (torch.cat(whole), torch.cat(by_side)):
        torch.testing.assert_close(found, expected)
        (found_grad,) = torch.autograd.grad((found * weights).sum(), nodes)
        torch.testing.assert_close(found_grad, expected_grad)


def test_pairs_that_repeat_are_one_edge():
    once = graph_of([(0, 0), (1, 0)], num_users=2, num_items=1)
    twice = graph_of([(0, 0), (1, 0), (0, 0)], num_users=2, num_items=1)
    assert torch.equal(once.degree_I, twice.degree_I)
    items = torch.ones(1, 2)
    assert torch.equal(once.operator().to_users @ items, twice.operator().to_users @ items)


def test_the_normalised_adjacency_is_the_golden_one():
    step = graph_of(GOLDEN_PAIRS, num_users=4, num_items=3).operator(dtype=torch.float64)
    found = step.to_users @ torch.eye(3, dtype=torch.float64)
    assert found[0].tolist() == pytest.approx([0.5, 0.408248290464, 0.0], abs=1e-11)


def test_the_mean_over_layers_is_the_golden_one():
    users, items = (torch.tensor(table, dtype=torch.float64) for table in (GOLDEN_USERS, GOLDEN_ITEMS))
    found = graph_of(GOLDEN_PAIRS, num_users=4, num_items=3).operator(dtype=torch.float64).mean(Nodes(users, items), 2)
    expected = [[0.303212870399, 0.107285522271], [0.0649295689061, 0.455090186151]]
    torch.testing.assert_close(found.users_UD[:2], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_exact_fold_in_is_a_node_that_joins_while_all_others_stand_still(layers):
    graph = graph_of(GOLDEN_PAIRS, num_users=4, num_items=3)
    inputs = GraphInputs(graph, FeatureSpec(()), [], torch.zeros(3, 0, dtype=torch.bool))
    model = LightGcnConfig(dim=2, layers=layers).build(inputs)
    history = torch.tensor([0, 2])
    step = dense(GOLDEN_PAIRS, num_users=4, num_items=3, kind="symmetric").float()
    nodes, received = torch.cat([model.users_UD, model.ids_IF]), torch.zeros(2)
    for _ in range(layers):
        received = received + (nodes[4 + history] / (len(history) * graph.degree_I[history]).sqrt()[:, None]).sum(dim=0)
        nodes = step @ nodes
    rows = model.history_parts().sum(dim=1)
    torch.testing.assert_close(rows[history].sum(dim=0) / len(history) ** 0.5, received / (layers + 1))
