"""SLMRec's channels, losses and exact fold-in, against numbers computed by explicit loops in float64."""

import pytest
import torch

from api_schemas.manifest import Modality
from index.dataset import Dataset
from tests.unit.training.test_propagation import GOLDEN_ITEMS, GOLDEN_PAIRS, GOLDEN_USERS, graph_of
from training.config import parse_config
from training.data.catalogue import Catalogue
from training.data.conditioning import ConditioningConfig
from training.data.interactions import read_interactions
from training.data.split import SplitConfig, make_split
from training.factors import log_sum
from training.factors.contrast import agreement, among_batch, comparable, fac, masked_views
from training.factors.data import FactorData
from training.factors.encoders import ExactEncoder
from training.factors.graph_fit import SlmrecFit
from training.factors.log_sum import log_sum_exp
from training.factors.plan import Plan
from training.models import FeatureSpec, GraphInputs, Slmrec, SlmrecConfig

PICTURE, TEXT = [[0.2, 0.7], [-0.6, 0.1], [0.3, 0.3]], [[0.5, -0.4], [0.1, 0.9], [-0.2, 0.2]]
WEIGHTS = {
    "users_UD": GOLDEN_USERS,
    "ids_IF": GOLDEN_ITEMS,
    "fuse_users.weight": [[0.4, 0.1, -0.2, 0.3, 0.2, 0.1], [-0.1, 0.5, 0.3, 0.2, -0.3, 0.4]],
    "fuse_users.bias": [0.01, -0.02],
    "fuse_items.weight": [[0.3, -0.1, 0.4, 0.2, 0.1, -0.2], [0.2, 0.3, -0.1, 0.5, 0.2, 0.1]],
    "fuse_items.bias": [0.03, 0.0],
    "onward.0.weight": [[0.6, 0.2], [-0.1, 0.7]],
    "onward.0.bias": [0.0, 0.0],
    "onward.1.weight": [[0.3, 0.5]],
    "onward.1.bias": [0.0],
    "spaces.0.weight": [[0.5, -0.3], [0.2, 0.4]],
    "spaces.0.bias": [0.0, 0.0],
    "spaces.1.weight": [[0.7, -0.2]],
    "spaces.1.bias": [0.0],
}
BATCH_USERS, BATCH_ITEMS = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2])


def model_of(**settings) -> Slmrec:
    """Return the golden model: each item's content is a vector of its own, so the projection is its layer 0."""
    features = FeatureSpec((Modality(name="picture", dim=3), Modality(name="text", dim=3)))
    inputs = GraphInputs(
        graph_of(GOLDEN_PAIRS, num_users=4, num_items=3),
        features,
        [torch.eye(3)] * 2,
        torch.ones(3, 2, dtype=torch.bool),
    )
    model = Slmrec(SlmrecConfig(dim=2, layers=2, **{"scorer": "dot", **settings}), inputs)
    state = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    for m, layer_0 in enumerate((PICTURE, TEXT)):
        state[f"projections.{m}"] = torch.tensor([[*row, 0.0] for row in torch.tensor(layer_0).T.tolist()])
    model.load_state_dict(state)
    return model.requires_grad_(requires_grad=False)


@pytest.fixture
def model() -> Slmrec:
    return model_of()


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=3e-6, atol=3e-7)


def test_channels_and_fusion_are_the_golden_ones(model):
    users, items = model.channels(None, None)
    close(users.all()[1][:2], [[0.159329651035, 0.125635864178], [0.0513212925573, 0.482306738849]])
    close(users.all()[2][0], [0.304587585477, 0.0511687416351])
    nodes = model.nodes()
    close(nodes.users_UD[:2], [[0.213872920692, 0.0053387632527], [0.289372645701, 0.520374387462]])
    close(nodes.items_ID[:2], [[0.29461205796, 0.354312876281], [-0.132743908636, 0.363613564048]])
    close((nodes.users_UD @ nodes.items_ID.T)[0], [0.064901133871, -0.0264490807102, 0.0396333584316])
    assert len(items.all()) == 3


@pytest.mark.parametrize(("masked", "expected"), [(False, 1.21195793752), (True, 0.993966441505)])
def test_the_main_loss_is_the_golden_one(model, masked, expected):
    nodes = model.nodes()
    users, items = comparable(nodes.users_UD[BATCH_USERS], nodes.items_ID[BATCH_ITEMS], kind="cosine", tau=0.2)
    held = torch.tensor([[True, True, False], [False, True, True], [False, False, True]])
    places = {"place_V_B": torch.arange(3), "place_Y_B": torch.arange(3)}
    close(among_batch(users, items, **places, weight_Y=torch.ones(3), held_VY=held if masked else None), expected)


def test_items_and_users_that_repeat_in_a_batch_count_as_often():
    users, items = torch.randn(2, 5), torch.randn(3, 5)
    place_V, place_Y = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 2, 2, 1])
    literal = torch.nn.functional.cross_entropy(users[place_V] @ items[place_Y].T, torch.arange(4))
    weight_Y = torch.bincount(place_Y)
    found = among_batch(users, items, place_V_B=place_V, place_Y_B=place_Y, weight_Y=weight_Y, held_VY=None)
    torch.testing.assert_close(found, literal)


@pytest.mark.parametrize("rows_at_once", [1, 2, 128])
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_log_of_the_sum_and_its_gradients_are_those_of_autodiff(rows_at_once, is_masked, monkeypatch):
    monkeypatch.setattr(log_sum, "_USERS_AT_ONCE", rows_at_once)
    users, items = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    log_weight, upstream = torch.randn(7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    left_out = torch.rand(5, 7) < 0.5 if is_masked else torch.zeros(5, 7, dtype=torch.bool)
    left_out[:, 0] = False
    plain = torch.logsumexp((users @ items.T + log_weight).masked_fill(left_out, -torch.inf), dim=-1)
    found = log_sum_exp(users, items, log_weight_Y=log_weight, left_out_VY=left_out if is_masked else None)
    torch.testing.assert_close(found, plain)
    expected = torch.autograd.grad((plain * upstream).sum(), (users, items))
    for one, other in zip(torch.autograd.grad((found * upstream).sum(), (users, items)), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sum_over_nothing_has_no_gradient_and_no_nan():
    users, items = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    everything = torch.ones(2, 2, dtype=torch.bool)
    loss = among_batch(
        users, items, place_V_B=torch.arange(2), place_Y_B=torch.arange(2), weight_Y=torch.ones(2), held_VY=everything
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(users.grad).all()


@pytest.mark.parametrize(("kind", "expected"), [("dot", 2.22261039153), ("cosine", 8.67974039409)])
def test_fac_is_the_golden_one(model, kind, expected):
    channels = model.channels(None, BATCH_ITEMS)[1].all()
    close(fac(model, channels, kind=kind, tau=0.2), expected)


def test_fm_is_the_golden_one(model):
    users, items = model.channels(BATCH_USERS, BATCH_ITEMS)
    close(agreement(model, masked_views(users, items, (1, 0)), tau=0.2), 1.09462470988)


def test_the_exact_fold_in_is_the_golden_one(model):
    rows = model.history_parts().sum(dim=1)
    close(rows[:2] * 3, [[0.482713418539, -0.0658481193786], [0.240824773554, 0.555189049157]])
    encoder = ExactEncoder(torch.eye(2), model.fold_in_offset(), torch.zeros(2))
    found = encoder(rows[torch.tensor([[0, 2, 1]])], torch.tensor([[True, True, False]]))[0]
    close(found, [0.199719679421, 0.0839945230483])
    close(model.nodes().items_ID @ found, [0.0886001668225, 0.00402997700821, 0.0626790247532])


@pytest.mark.parametrize("settings", [{}, {"scorer": "cosine"}], ids=["dot", "cosine"])
def test_parts_sum_to_the_items_and_content_is_apart_from_ids(settings):
    model = model_of(**settings)
    parts, items = model.parts(), model.nodes().items_ID
    torch.testing.assert_close(parts.sum(dim=1), items)
    assert model.extra_parts == ("id", "bias")
    for m in range(2):
        model.projections[m].zero_()
    without = model.parts()
    if not settings:  # under cosine all parts are divided by the length of the whole
        close(without[:, 2:], parts[:, 2:])
    assert not without[:, :2].any()


def test_under_cosine_both_sides_have_length_1():
    nodes = model_of(scorer="cosine").nodes()
    for table in nodes:
        torch.testing.assert_close(table.norm(dim=-1), torch.ones(len(table)))


def view_of(model, where, *, share, chance):
    """Return one of FD's views of the batch."""
    if where == "messages":
        return model.without_messages(BATCH_USERS, BATCH_ITEMS, share=share, chance=chance)
    channels = model.channels(BATCH_USERS, BATCH_ITEMS)
    return model.without_features(*channels, BATCH_USERS, BATCH_ITEMS, share=share, chance=chance)


@pytest.mark.parametrize("where", ["messages", "features"])
def test_without_dropout_the_two_ways_through_the_channels_agree(model, where):
    users, items = model.channels(BATCH_USERS, BATCH_ITEMS)
    dropped = view_of(model, where, share=0.0, chance=torch.Generator())
    for plain, one in zip((users.all(), items.all()), dropped, strict=True):
        for left, right in zip(plain, one, strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("where", ["messages", "features"])
def test_dropout_leaves_the_mean_and_is_drawn_anew(model, where):
    chance = torch.Generator().manual_seed(0)
    draws = [view_of(model, where, share=0.3, chance=chance)[1][1] for _ in range(4000)]
    assert not torch.equal(draws[0], draws[1])
    expected = model.channels(None, BATCH_ITEMS)[1].all()[1]
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), expected, atol=0.01, rtol=0)


@pytest.fixture
def stage(toy_dataset):
    """The stage that trains SLMRec on the toy, with these settings of the model."""
    dataset = Dataset.open(toy_dataset)
    split = make_split(read_interactions(dataset), SplitConfig(kind="interactions"), seed=0)
    catalogue = Catalogue(dataset)
    catalogue.condition(ConditioningConfig(kind="raw"))
    data = FactorData(split.train, split.train_users, catalogue, seed=0)

    def made(*overrides: str) -> SlmrecFit:
        config = parse_config('[model]\nkind = "slmrec"\ndim = 8\n[optim]\nbatch_size = 100\n', overrides)
        return Plan(config, data, catalogue.features).stages[0].make(0, {})

    return made


def test_corrected_for_popularity_a_small_batch_sums_to_what_the_catalogue_would(stage):
    """The mean over many batches of a batch's sum, on a model that does not learn."""
    made = stage("model.correct_popularity=true", "model.mask_positives=false")
    data = made._data
    items = torch.arange(data.num_items)[data.degree_I > 0]
    share = data.degree_I / data.num_pairs
    drawn = torch.multinomial(share, 200 * 100, replacement=True, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(data.num_items)
    for batch in drawn.view(200, 100):
        found, count = torch.unique(batch, return_counts=True)
        total[found] += made._weights(found, count, num_pairs=100)
    torch.testing.assert_close(total[items] / 200, torch.ones(len(items)), atol=0.35, rtol=0)


def test_drawn_negatives_are_no_items_of_the_self_supervised_tasks(stage):
    alone = stage("model.main_weight=0.0", "model.fac_weight=1.0", "model.fm_weight=1.0", "model.fd_weight=1.0")
    drawn = stage(
        "model.main_weight=0.0", "model.fac_weight=1.0", "model.fm_weight=1.0", "model.fd_weight=0.0",
        "model.negatives=50",
    )  # fmt: skip
    torch.testing.assert_close(drawn.losses(3)["fac"], alone.losses(3)["fac"])


def test_a_task_without_a_weight_costs_nothing_and_all_of_them_are_told(stage):
    assert set(stage("model.fac_weight=0.0").losses(0)) == {"total", "main"}
    told = stage("model.fm_weight=0.5", "model.fd_weight=0.25").losses(0)
    expected = told["main"] + 0.1 * told["fac"] + 0.5 * told["fm"] + 0.25 * told["fd"]
    torch.testing.assert_close(told["total"], expected)
