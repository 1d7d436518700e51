"""MacridVAE: scores against golden numbers, the loss against its plain form, live histories against training's."""

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from index.dataset import Dataset
from tests.factor_runs import config_of
from training.config import ConfigError, parse_config, to_toml
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import make_split
from training.factors import multinomial as multinomial_module
from training.factors.concept_encoder import ConceptEncoder
from training.factors.concept_fit import ConceptFit, pooled, prior_distance
from training.factors.data import FactorData
from training.factors.fold_in import FoldInMap, ItemTables
from training.factors.imputers import Imputer, LinearImputer
from training.factors.losses import Positives
from training.factors.multinomial import multinomial
from training.factors.plan import Plan
from training.factors.served_concepts import ServedConcepts
from training.models import MacridVae, MacridVaeConfig, over_queries
from training.models.macridvae import unit

CORES = [[0.980580675691, 0.196116135138], [-0.287347885566, 0.957826285221]]
ITEMS = [[0.993883734674, 0.110431526075], [0.242535625036, 0.970142500145], [-0.707106781187, 0.707106781187]]
WANTED = [[0.919145030018, 0.393919298579], [-0.110431526075, 0.993883734674]]
SHARES = [[0.999992193668, 7.80633167017e-06], [0.0131968106614, 0.986803189339], [5.84965160353e-07, 0.999999415035]]
SCORES, BOUNDS = [9.57023623852, 9.36144977352, 7.80868750947], [9.57023623797, 9.36096805777, 7.80868750946]


def golden() -> MacridVae:
    """Return the golden model; lengths of items and concepts change nothing."""
    model = MacridVaeConfig(dim=2, concepts=2, hidden=3).build(num_items=3).double()
    with torch.no_grad():
        model.concepts.cores_QF.copy_(3 * torch.tensor(CORES))
        model.ids_IF.copy_(torch.tensor(ITEMS, dtype=torch.float64) * torch.tensor([[0.1], [2.0], [7.0]]))
    return model.requires_grad_(requires_grad=False)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=3e-6, atol=3e-7)


def test_concepts_and_scores_are_the_golden_ones():
    model = golden()
    close(model.concepts.log_shares(unit(model.ids_IF)).exp(), SHARES)
    queries_1QD = model.concepts.queries(5 * torch.tensor([WANTED], dtype=torch.float64))
    products_QI = queries_1QD[0] @ model.items(torch.empty(0)).T
    close(over_queries(products_QI, dim=0, scorer=model.scorer), SCORES)
    close(over_queries(products_QI, dim=0, scorer="max"), BOUNDS)


def test_what_is_added_to_new_items_raises_every_users_score_alike():
    model = golden()
    queries_BQD = model.concepts.queries(torch.randn(4, 2, 2, dtype=torch.float64))
    items_ID = model.items(torch.empty(0))
    raised_F = model.as_learned(queries_BQD.mean(dim=(0, 1)))
    close(raised_F, [*[0.0] * 5, 1.0])
    scores = [
        over_queries(queries_BQD @ table_ID.T, dim=1, scorer="logsumexp")
        for table_ID in (items_ID, items_ID + model.as_items(raised_F * 0.7))
    ]
    close(scores[1], scores[0] + 0.7)


@pytest.mark.parametrize("rows_at_once", [1, 4, 128])
def test_the_likelihood_and_its_gradients_are_those_of_the_plain_form(rows_at_once, monkeypatch):
    monkeypatch.setattr(multinomial_module, "_ROWS_AT_ONCE", rows_at_once)
    torch.manual_seed(0)
    queries = (3 * torch.randn(5, 2, 3, dtype=torch.float64)).requires_grad_()
    items = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    place, column = torch.tensor([0, 0, 1, 3, 3, 3, 4]), torch.tensor([1, 6, 0, 2, 2, 5, 6])  # a pair twice, nobody's
    weight = torch.rand(7, dtype=torch.float64)
    scores = torch.logsumexp(queries @ items.T, dim=1)
    expected = -(weight * torch.log_softmax(scores, dim=-1)[place, column]).sum()
    found = multinomial(queries, items, Positives(place, column, weight))
    torch.testing.assert_close(found, expected)
    gradients, plain = (torch.autograd.grad(2 * one, [queries, items]) for one in (found, expected))
    torch.testing.assert_close(gradients, plain)


def test_large_scores_stay_finite():
    queries, items = torch.full((1, 2, 1), 1e4, requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = multinomial(queries, items, Positives(torch.tensor([0]), torch.tensor([1]), torch.ones(1)))
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(torch.autograd.grad(loss, queries)[0]).all()


def test_the_distance_from_the_prior_is_that_of_normal_laws_of_one_mean():
    log_ratio, prior = torch.linspace(-2, 2, 9), torch.distributions.Normal(0.0, 0.075)
    read = torch.distributions.Normal(0.0, 0.075 * torch.exp(log_ratio / 2))
    torch.testing.assert_close(prior_distance(log_ratio), torch.distributions.kl_divergence(read, prior))


@pytest.fixture
def stage(toy_dataset) -> ConceptFit:
    """A stage on the toy, in float64, with concepts that matter."""
    config = config_of("macridvae", "optim.batch_size=50", "model.kl_epochs=2", "model.dropout=0.3", "model.tau=0.5")
    dataset = Dataset.open(toy_dataset)
    split = make_split(read_interactions(dataset), config.split, seed=0, seen=config.eval.seen)
    catalogue = Catalogue(dataset)
    catalogue.condition(config.conditioning)
    plan = Plan(config, FactorData(split.train, split.train_users, catalogue, seed=0), catalogue.features)
    made = plan.stages[0].make(0, {})
    assert isinstance(made, ConceptFit)
    made.module.double()
    return made


def test_a_step_is_the_plain_form_of_the_paper(stage):
    """Every user's history as a row of the catalogue's width, each concept after the other, as in the paper."""
    step = 1
    loss, batch, _ = stage._step(step)
    model, family = stage.module, stage._family
    chance = stage._data.chance(stage._number, step)
    kept_XQ = torch.rand(len(batch.items_X), family.concepts, generator=chance) >= family.dropout
    noise = torch.randn(len(batch.users_B), family.concepts, family.dim, generator=chance) * family.prior_std
    has = torch.zeros(len(batch.users_B), len(model.ids_IF), dtype=torch.float64)
    has[batch.place_X, batch.items_X] = 1
    items = torch.nn.functional.normalize(model.ids_IF)
    cores = torch.nn.functional.normalize(model.concepts.cores_QF)
    shares = torch.softmax(items @ cores.T / family.tau, dim=-1)
    likely, distance = 0, 0
    for k in range(family.concepts):
        masked = torch.nn.functional.normalize(has * shares[:, k])
        kept = torch.zeros_like(has)
        kept[batch.place_X, batch.items_X] = kept_XQ[:, k].double() / (1 - family.dropout)
        hidden = torch.tanh((masked * kept) @ model.first_IH + model.concepts.first_H)
        mean = torch.nn.functional.normalize(hidden @ model.concepts.mean_HF + model.concepts.mean_F)
        log_ratio = hidden @ model.concepts.spread_HF + model.concepts.spread_F
        wanted = torch.nn.functional.normalize(mean + noise[:, k] * torch.exp(log_ratio / 2))
        likely = likely + shares[:, k] * torch.exp(wanted @ items.T / family.tau)
        distance = distance + 0.5 * (log_ratio.exp() - log_ratio - 1).sum()
    log_likelihood = (has * torch.log(likely / likely.sum(dim=-1, keepdim=True))).sum()
    beta = family.kl_weight * step / (2 * 3)  # of two epochs of three steps
    expected = (beta * distance - log_likelihood) / has.sum()
    torch.testing.assert_close(loss, expected)
    parameters = dict(model.named_parameters())
    found, plain = (torch.autograd.grad(one, list(parameters.values())) for one in (loss, expected))
    for name, one, other in zip(parameters, found, plain, strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_beta_rises_to_its_weight_and_stays(stage):
    assert [stage._beta(step) for step in (0, 3, 6, 100)] == pytest.approx([0, 0.1, 0.2, 0.2])


def test_a_live_history_is_read_as_training_reads_it_and_of_none_there_is_an_answer(stage):
    model, batch = stage.module.requires_grad_(requires_grad=False), stage._step(0)[1]
    shares_XQ = model.concepts.log_shares(unit(model.ids_IF)).exp()[batch.items_X]
    pooled_BQH = pooled(batch, shares_XQ, model.first_IH, dropout=0.0, chance=torch.Generator())
    expected_BQD = model.concepts.queries(model.concepts.read(pooled_BQH)[0])
    encoder = FoldInMap("exact", 100, ConceptEncoder(model.concepts), None, None)
    tables = ItemTables(model.items(torch.empty(0)), model.history_rows(torch.empty(0)))
    histories = [batch.items_X[batch.place_X == user].numpy() for user in range(len(batch.users_B))]
    torch.testing.assert_close(encoder.queries(tables, histories), expected_BQD)
    nothing_BQD = encoder.queries(tables, [np.zeros(0, np.int64)])
    torch.testing.assert_close(nothing_BQD[0], model.concepts.queries(model.concepts.read(pooled_BQH[:1] * 0)[0])[0])
    assert encoder.queries(tables, []).shape == (0, *nothing_BQD.shape[1:])


def test_an_empty_history_has_a_finite_gradient():
    encoder = ConceptEncoder(golden().concepts)
    rows = torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True)
    encoder.queries(rows, torch.zeros(1, 4, dtype=torch.bool)).sum().backward()
    assert not rows.grad.any()


def test_served_items_are_the_models_and_what_is_predicted_is_one_too():
    model = golden().float()
    widths, num_inputs = [4, 2], 4 + 2 + 2 + 1
    modalities = [Modality(name=name, dim=width) for name, width in zip(("text", "visual"), widths, strict=True)]
    torch.manual_seed(0)
    imputer = Imputer(LinearImputer(widths, torch.randn(num_inputs, 2 + 3 + 1)), num_learned=2 + 3 + 1)
    served = ServedConcepts(
        model, modalities, history_length=5, imputer=imputer, users=ConceptEncoder(model.concepts)
    ).requires_grad_(requires_grad=False)
    states_IPS = torch.zeros(3, 3, 6)
    states_IPS[:, -1:] = served.warm_states(model.learned())
    presence_IP = torch.ones(3, 3, dtype=torch.bool)
    close(served.fuse(states_IPS, presence_IP), model.items(torch.empty(0)))
    close(served.history_rows(states_IPS, presence_IP), model.history_rows(torch.empty(0)))
    close(served.modality_parts(states_IPS, presence_IP).sum(dim=-2), model.items(torch.empty(0)))
    presence_IP[:, -1] = False
    assert not served.fuse(states_IPS, presence_IP).any()
    assert not served.history_rows(states_IPS, presence_IP).any()
    features, presence_BM = [torch.randn(4, width) for width in widths], torch.ones(4, 2, dtype=torch.bool)
    new_BD = served.encode_items(features, presence_BM)
    torch.testing.assert_close(new_BD[:, :2].norm(dim=-1), torch.ones(4))
    states_BPS = served.project(features, presence_BM)
    assert not states_BPS[:, :-1].any()
    close(new_BD[:, 2:].logsumexp(dim=-1), states_BPS[:, -1, -1])  # shares sum to one but for what is added


def test_its_own_encoder_need_not_be_asked_for_and_no_other_can_be():
    document = '[model]\nkind = "macridvae"\n'
    config = parse_config(document)
    assert config.serving.fold_in == "exact"
    assert parse_config(to_toml(config)) == config
    assert parse_config(document + '[serving]\ncold_items = "knn"\n').serving.fold_in == "exact"
    with pytest.raises(ConfigError, match="fold_in = affine reads no user of macridvae"):
        parse_config(document, ["serving.fold_in=affine"])
