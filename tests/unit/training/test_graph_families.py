"""Each graph family's propagation, against golden numbers and against dense matrices and loops."""

import pytest
import torch
import torch.nn.functional as F

from api_schemas.manifest import Modality
from tests.unit.training.test_propagation import GOLDEN_ITEMS, GOLDEN_PAIRS, GOLDEN_USERS, dense, graph_of
from training.models import FeatureSpec, GraphInputs, Mmgcn, MmgcnConfig, Ngcf, NgcfConfig

SIZES = {"num_users": 4, "num_items": 3}
PRESENCE = torch.tensor([[True, True], [True, False], [True, True]])


@pytest.fixture
def inputs() -> GraphInputs:
    """The golden graph, with two modalities of which one item lacks the second."""
    drawn = torch.Generator().manual_seed(3)
    content = [torch.randn(3, width, generator=drawn) * PRESENCE[:, m : m + 1] for m, width in enumerate((4, 2))]
    features = FeatureSpec((Modality(name="picture", dim=4), Modality(name="text", dim=2)))
    return GraphInputs(graph_of(GOLDEN_PAIRS, **SIZES), features, content, PRESENCE)


def golden_ids(model) -> None:
    model.load_state_dict({"users_UD": torch.tensor(GOLDEN_USERS), "ids_IF": torch.tensor(GOLDEN_ITEMS)}, strict=False)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=3e-6, atol=3e-7)


def test_a_layer_of_ngcf_is_the_golden_one(inputs):
    model = Ngcf(NgcfConfig(dim=2, layers=1), inputs).requires_grad_(requires_grad=False)
    golden_ids(model)
    model.sums[0].copy_(torch.tensor([[0.5, 0.2], [-0.1, 0.6]]))
    model.products[0].copy_(torch.tensor([[0.3, -0.4], [0.2, 0.1]]))
    users, items = model.nodes()
    close(users[0], [0.5, -0.2, 0.99872884566, 0.0504052859082])
    close(users[3], [0.6, 0.6, 0.97681729349, 0.214074695231])
    close(items[1], [-0.4, 0.7, -0.0102363293018, 0.999947607409])
    expected = [[1.4298397093, -0.299820672303, 1.18626297476], [0.483936518883, 1.47620375932, 0.102217921176]]
    close((users @ items.T)[:2], expected)


def test_ngcf_goes_on_from_what_a_layer_gives_before_its_length_is_1(inputs):
    model = Ngcf(NgcfConfig(dim=3, layers=2), inputs)
    adjacency = dense(GOLDEN_PAIRS, **SIZES, kind="symmetric").float()
    nodes = torch.cat([model.users_UD, model.ids_IF])
    layers = [nodes]
    for sums, products in zip(model.sums, model.products, strict=True):
        received = adjacency @ nodes
        nodes = F.leaky_relu((received + nodes) @ sums.T + (received * nodes) @ products.T, 0.2)
        layers.append(nodes / nodes.norm(dim=1, keepdim=True))
    torch.testing.assert_close(torch.cat(tuple(model.nodes())), torch.cat(layers, dim=1))


def test_ngcf_drops_in_training_only_and_draws_from_the_step(inputs):
    model = Ngcf(NgcfConfig(dim=16, layers=1, dropout=0.5), inputs)
    first, again = (model.nodes(torch.Generator().manual_seed(seed)).users_UD for seed in (0, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.nodes(torch.Generator().manual_seed(1)).users_UD)
    assert (first[:, 16:] == 0).any()
    assert torch.equal(first[:, :16], model.users_UD), "layer 0 is left alone"
    assert not (model.nodes().users_UD == 0).any()


def test_mmgcn_is_the_mean_of_dense_networks(inputs):
    model = Mmgcn(MmgcnConfig(dim=3, layers=2), inputs)
    mean = dense(GOLDEN_PAIRS, **SIZES, kind="mean").float()
    ids, last = torch.cat([model.users_UD, model.ids_IF]), []
    for m, (network, preference) in enumerate(zip(model.networks, model.preferences, strict=True)):
        unit = F.normalize(inputs.content[m], dim=1)
        projected = unit @ network.project[:, :-1].T + PRESENCE[:, m : m + 1] * network.project[:, -1]
        nodes = F.normalize(torch.cat([preference, projected]), dim=1)
        for weight, own, combine in zip(network.neighbours, network.own, network.combine, strict=True):
            near = F.leaky_relu(mean @ (nodes @ weight.T))
            nodes = F.leaky_relu(combine(torch.cat([near, F.leaky_relu(own(nodes)) + ids], dim=1)))
        last.append(nodes)
    torch.testing.assert_close(torch.cat(tuple(model.nodes())), torch.stack(last).mean(dim=0))
    torch.testing.assert_close(model.parts()[:, 1], last[1][4:] / 2)


def test_mmgcn_as_published_never_moves_its_tables_and_has_no_l2_on_them(inputs):
    model = Mmgcn(MmgcnConfig(dim=3, published_tables=True), inputs)
    tables = ("users_UD", "ids_IF", "preferences.0", "preferences.1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(tables) <= set(before)
    assert not set(tables) & {name for name, _ in model.named_parameters()}
    assert model.tables() == []
    optimiser = torch.optim.Adam([{"params": model.tables()}, {"params": model.shared()}], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        nodes = model.nodes()
        torch.autograd.backward((nodes.users_UD @ nodes.items_ID.T).sum())
        optimiser.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in tables)
    assert not torch.equal(after["networks.0.project"], before["networks.0.project"])
    assert model.own_squares(torch.tensor([0]), torch.ones(1), torch.tensor([0])) == 0


def test_a_family_of_content_needs_some(inputs):
    with pytest.raises(ValueError, match="modalities"):
        MmgcnConfig(modalities=())
    with pytest.raises(ValueError, match="'sound' is not among"):
        MmgcnConfig(modalities=("sound",)).build(inputs)
