"""What every graph family must be, whatever it is made of: the tests enrol from the union.

The small graph has a user and an item without edges, an item without one modality and one without any.
"""

from typing import get_args

import pytest
import torch

from api_schemas.manifest import Modality
from tests.unit.training.test_propagation import graph_of
from training.models import FeatureSpec, GraphFamily, GraphInputs, GraphModel

FAMILIES = {family.model_fields["kind"].default: family for family in get_args(GraphFamily)}
WIDTHS = {"picture": 5, "text": 3}
PAIRS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 2), (3, 4)]
LONE_USER, LONE_ITEM, BARE_ITEM, NUM_USERS, NUM_ITEMS = 4, 3, 4, 5, 5


def inputs() -> GraphInputs:
    presence = torch.ones(NUM_ITEMS, len(WIDTHS), dtype=torch.bool)
    presence[1, 0] = presence[BARE_ITEM, 0] = presence[BARE_ITEM, 1] = False
    drawn = torch.Generator().manual_seed(0)
    content = [
        torch.randn(NUM_ITEMS, width, generator=drawn) * presence[:, m : m + 1]
        for m, width in enumerate(WIDTHS.values())
    ]
    features = FeatureSpec(tuple(Modality(name=name, dim=width) for name, width in WIDTHS.items()))
    return GraphInputs(graph_of(PAIRS, num_users=NUM_USERS, num_items=NUM_ITEMS), features, content, presence)


@pytest.fixture(params=FAMILIES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind) -> GraphModel:
    torch.manual_seed(0)
    return FAMILIES[kind](dim=8).build(inputs())


def test_the_parts_of_an_item_sum_to_it(model):
    parts, items = model.parts(), model.nodes().items_ID
    assert parts.shape == (NUM_ITEMS, model.num_parts, model.dim)
    torch.testing.assert_close(parts.sum(dim=1), items)
    torch.testing.assert_close(model.as_items(model.learned()), items)


def test_nodes_without_edges_and_items_without_content_are_finite_and_so_are_all_gradients(model):
    nodes = model.nodes(torch.Generator().manual_seed(0))
    for table in nodes:
        assert torch.isfinite(table).all()
    loss = (nodes.users_UD @ nodes.items_ID.T).square().sum()
    loss.backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


def test_some_rows_are_those_of_all(model):
    users_B, items_X = torch.tensor([3, 0, 3, LONE_USER]), torch.tensor([2, BARE_ITEM, 2, LONE_ITEM, 0])
    model.nodes()  # some families drop at random: the same draws, the same rows
    users, items = model.rows(users_B, items_X, torch.Generator().manual_seed(0))
    nodes = model.nodes(torch.Generator().manual_seed(0))
    torch.testing.assert_close(users, nodes.users_UD[users_B])
    torch.testing.assert_close(items, nodes.items_ID[items_X])


def test_every_table_has_a_row_for_each_user_or_item_and_counts_in_the_squares_of_its_rows(model):
    assert {len(table) for table in model.user_tables()} == {NUM_USERS}
    assert {len(table) for table in model.item_tables()} == {NUM_ITEMS}
    users_B, times_B, items_X = torch.tensor([0, 2]), torch.tensor([1.0, 3.0]), torch.tensor([1, 1, 4])
    expected = sum(table[0].square().sum() + 3 * table[2].square().sum() for table in model.user_tables())
    expected += sum(2 * table[1].square().sum() + table[4].square().sum() for table in model.item_tables())
    torch.testing.assert_close(model.own_squares(users_B, times_B, items_X), expected)


def test_a_vector_given_as_part_id_is_added_to_the_item(model):
    vector_D = torch.arange(model.dim, dtype=torch.float32)
    torch.testing.assert_close(model.as_items(model.as_learned(vector_D)), vector_D)
