"""Each graph family's propagation, against golden numbers and against dense matrices and loops."""

import pytest
import torch
import torch.nn.functional as F

from api_schemas.manifest import Modality
from tests.unit.training.test_propagation import GOLDEN_ITEMS, GOLDEN_PAIRS, GOLDEN_USERS, dense, graph_of
from training.blocks.co_interaction import co_interactions
from training.blocks.edges import Edges
from training.models import (
    DisenGcn,
    DisenGcnConfig,
    FeatureSpec,
    GraphInputs,
    Grcn,
    GrcnConfig,
    Huign,
    HuignConfig,
    Mmgcn,
    MmgcnConfig,
    Ngcf,
    NgcfConfig,
)
from training.models.grcn import routed
from training.models.huign import dependence

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


def test_routing_is_the_golden_one():
    edges = Edges(graph_of([(0, 0), (0, 2)], num_users=1, num_items=3))
    content = torch.tensor(
        [[0.274721127897, 0.961523947641], [-0.986393923832, 0.164398987305], [0.707106781187, 0.707106781187]]
    )
    preference, share = torch.full((1, 2), 0.707106781187), torch.zeros(2)
    for _ in range(3):
        preference, share = routed(edges, preference, content, torch.ones(2, dtype=torch.bool))
    close(share, [0.490741736391, 0.509258263609])
    close(preference[0], [0.541109511257, 0.840952137061])


def test_grcn_is_ids_over_the_refined_graph_beside_blocks_of_attention(inputs):
    """Node by node: attention over what has the modality, and the largest of attention times confidence."""
    model = Grcn(GrcnConfig(dim=3, content_dim=2, layers=2, rounds=2), inputs)
    with torch.no_grad():
        model.confidence_UM.normal_()
        model.confidence_IM.normal_()
    adjacency = torch.zeros(4, 3, dtype=torch.bool)
    adjacency[tuple(zip(*GOLDEN_PAIRS, strict=True))] = True
    to_users, to_items, blocks = [], [], []
    for m in range(2):
        unit = torch.cat([F.normalize(inputs.content[m], dim=1), PRESENCE[:, m : m + 1].float()], dim=1)
        content = F.normalize(F.leaky_relu(unit @ model.projections[m].T), dim=1)
        there = adjacency & PRESENCE[:, m]
        own = F.normalize(model.preferences[m], dim=1)
        for _ in range(2):
            share = torch.stack([_softmax(own[u] @ content.T, there[u]) for u in range(4)])
            own = F.normalize(own + share @ content, dim=1)
        of_users = torch.stack([_softmax(own[u] @ content.T, there[u]) for u in range(4)])
        of_items = torch.stack([_softmax(own @ content[i], there[:, i]) for i in range(3)])
        blocks.append((own + of_users @ content, content + of_items @ own))
        to_users.append(of_users * model.confidence_IM[:, m])
        to_items.append(of_items * model.confidence_UM[:, m])
    users_by_items = torch.stack(to_users).amax(dim=0).clamp_min(0) * adjacency
    items_by_users = torch.stack(to_items).amax(dim=0).clamp_min(0) * adjacency.T
    users, items = model.users_UD, model.ids_IF
    user_sum, item_sum = users, items
    for _ in range(2):
        users, items = users_by_items @ items, items_by_users @ users
        user_sum, item_sum = user_sum + users, item_sum + items
    nodes = model.nodes()
    torch.testing.assert_close(nodes.users_UD, torch.cat([user_sum, *(block[0] for block in blocks)], dim=1))
    torch.testing.assert_close(nodes.items_ID, torch.cat([item_sum, *(block[1] for block in blocks)], dim=1))
    assert not model.parts()[1, 1].any(), "an item has no block of a modality that it lacks"


def _softmax(logits, there):
    """Return the softmax over what is there, zero elsewhere."""
    if not there.any():
        return torch.zeros_like(logits)
    return logits.masked_fill(~there, -torch.inf).softmax(dim=0)


def test_disengcn_routes_each_edge_to_channels_by_loops(inputs):
    model = DisenGcn(DisenGcnConfig(dim=6, channels=2, rounds=2, layers=2, tau=0.5), inputs)
    neighbours = {node: [] for node in range(7)}
    for user, item in GOLDEN_PAIRS:
        neighbours[user].append(4 + item)
        neighbours[4 + item].append(user)
    nodes = torch.cat([model.users_UD, model.ids_IF])
    for layer in model.channels:
        z = F.normalize(F.leaky_relu(layer(nodes), 0.2).view(7, 2, 3), dim=-1)
        centre = z
        for _ in range(2):
            routed_to = []
            for node in range(7):
                total = z[node]
                for near in neighbours[node]:
                    share = torch.softmax((z[near] * centre[node]).sum(dim=-1) / 0.5, dim=0)
                    total = total + share[:, None] * z[near]
                routed_to.append(F.normalize(total, dim=-1))
            centre = torch.stack(routed_to)
        nodes = centre.flatten(start_dim=1)
    torch.testing.assert_close(torch.cat(tuple(model.nodes())), nodes)


def test_channels_that_do_not_share_the_width_are_refused(inputs):
    with pytest.raises(ValueError, match=r"model\.dim: is 7, which 2 channels can not share"):
        DisenGcnConfig(dim=7, channels=2).build(inputs)


def test_items_are_neighbours_by_the_users_they_share():
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 3), (3, 0), (3, 2), (4, 0), (4, 1)]
    graph = graph_of(pairs, num_users=5, num_items=5)
    whole = co_interactions(graph, neighbours=4) @ torch.eye(5)
    torch.testing.assert_close(whole[0], torch.tensor([0, 3 / 5, 2 / 5, 0, 0]))
    torch.testing.assert_close(whole[1], torch.tensor([3 / 4, 0, 1 / 4, 0, 0]))
    assert not whole[3:].any(), "an item that is alone has no neighbours"
    best = co_interactions(graph, neighbours=1) @ torch.eye(5)
    assert best[:3].argmax(dim=1).tolist() == [1, 0, 0]
    assert torch.equal(best.sum(dim=1), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))


def test_huign_is_levels_of_intents_beside_ids_and_a_user_weighs_them(inputs):
    model = Huign(HuignConfig(dim=3, layers=1, intents=(4, 2), neighbours=2), inputs)
    adjacency = dense(GOLDEN_PAIRS, **SIZES, kind="mean").gt(0).float()[:4, 4:]
    together = (adjacency.T @ adjacency).fill_diagonal_(0)
    near = together / together.sum(dim=1, keepdim=True)
    levels = []
    for m, own in enumerate(model._hierarchies):
        unit = torch.cat([F.normalize(inputs.content[m], dim=1), PRESENCE[:, m : m + 1].float()], dim=1)
        first = F.leaky_relu(own.project[0]((unit + near @ unit) / 2))
        fine = torch.softmax(own.assign[0](first), dim=1)
        intents = torch.stack([(fine[:, k : k + 1] * first).sum(dim=0) / fine[:, k].sum() for k in range(4)])
        between = fine.T @ near @ fine
        between = between / between.sum(dim=1, keepdim=True)
        second = F.leaky_relu(own.project[1](intents + between @ intents))
        levels.append(torch.cat([fine, fine @ torch.softmax(own.assign[1](second), dim=1)], dim=1))
    users, items = model.nodes()
    torch.testing.assert_close(items, torch.cat([levels[0] + levels[1], model.ids_IF], dim=1))
    torch.testing.assert_close(users, torch.cat([model.intents_UK, model.users_UD], dim=1))
    torch.testing.assert_close(model.parts()[:, 0, :6], levels[0])


def test_huigns_further_losses_are_of_the_last_rows_and_as_heavy_as_asked(inputs):
    parts = []
    for entropy, independence in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0)):
        torch.manual_seed(0)
        config = HuignConfig(dim=3, intents=(4, 2), entropy_weight=entropy, independence_weight=independence)
        model = Huign(config, inputs)
        users, items = torch.tensor([0, 1]), torch.tensor([2, 0])
        model.rows(users, items, torch.Generator())
        parts.append(model.auxiliary(users, items))
    assert all(0 < one.item() < 1 for one in parts[:2])
    torch.testing.assert_close(parts[2], 2 * parts[0] + 3 * parts[1])


def test_an_intent_that_no_item_belongs_to_leaves_everything_finite(inputs):
    model = Huign(HuignConfig(dim=3, intents=(4, 3, 2)), inputs)
    users, items = torch.tensor([0, 1]), torch.tensor([2, 0])
    for bias in (-87.0, -100.0, -1e4):
        with torch.no_grad():
            for hierarchy in model._hierarchies:
                for assign in hierarchy.assign:
                    assign.bias[0] = bias
        users_BD, items_BD = model.rows(users, items, torch.Generator())
        torch.autograd.backward((users_BD * items_BD).sum() + model.auxiliary(users, items))
        assert all(torch.isfinite(one.grad).all() for one in model.parameters())


def test_dependence_is_1_of_vectors_that_tell_the_same_and_less_of_others():
    one, drawn = torch.randn(1, 200), torch.randn(6, 200)
    assert dependence(torch.cat([one, 3 * one + 1, -one])).item() == pytest.approx(1, abs=1e-5)
    assert dependence(drawn).item() < 0.1
    constant = torch.zeros(3, 5, requires_grad=True)
    dependence(constant).backward()
    assert torch.isfinite(constant.grad).all()
