"""Rankers score what their papers print, whichever way the work is divided between items, users and pairs."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from api_schemas.manifest import Modality
from index.dataset import Dataset
from tests.factor_runs import config_of
from training.config import ConfigError, parse_config
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import make_split
from training.factors.data import FactorData
from training.factors.losses import bpr, cross_entropy
from training.models import FeatureSpec, NeuMfConfig, NfmConfig, RankerModel, ScoredPairs, VecfConfig
from training.models.nfm import bi_interaction

DIM, NUM_USERS, NUM_ITEMS = 4, 5, 7
WIDTHS = {"picture": 6, "text": 3}
FEATURES = FeatureSpec(tuple(Modality(name=name, dim=width) for name, width in WIDTHS.items()))
CONFIGS = {
    "neumf": NeuMfConfig(dim=DIM, hidden=(8, 5)),
    "nfm": NfmConfig(dim=DIM, hidden=(6,)),
    "factorisation machine": NfmConfig(dim=DIM, hidden=()),
    "vecf": VecfConfig(dim=DIM, regions={"picture": 3}),
}


def presence() -> torch.Tensor:
    """All items have both, but one lacks the picture, one the text, and one both."""
    has = torch.ones(NUM_ITEMS, 2, dtype=torch.bool)
    has[1, 0] = has[2, 1] = has[3, 0] = has[3, 1] = False
    return has


def content() -> torch.Tensor:
    drawn = torch.randn(NUM_ITEMS, sum(WIDTHS.values()), generator=torch.Generator().manual_seed(1))
    return drawn * presence().repeat_interleave(torch.tensor(list(WIDTHS.values())), dim=1)


def model_of(config) -> RankerModel:
    """A model far from its small beginnings."""
    torch.manual_seed(0)
    model = config.build(FEATURES, presence(), num_users=NUM_USERS)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return model


@pytest.fixture(params=CONFIGS)
def model(request) -> RankerModel:
    return model_of(CONFIGS[request.param])


def all_scores(model: RankerModel) -> torch.Tensor:
    queries_U1Q = model.users(torch.arange(NUM_USERS)).unsqueeze(1)
    return model.score(queries_U1Q, model.items(content()))


def expected(model: RankerModel, score_pair) -> torch.Tensor:
    """Scores of all pairs, one by one, from the tables themselves."""
    rows = [[score_pair(model, user, item) for item in range(NUM_ITEMS)] for user in range(NUM_USERS)]
    constants_I = model.ids_IF[:, -1] + model.ranker.offset
    return torch.stack([torch.stack(row) for row in rows]) + constants_I


def parts_of(item: int) -> dict[int, torch.Tensor]:
    """The content that an item has, by modality."""
    vectors = torch.split(content()[item], list(WIDTHS.values()))
    return {m: vector for m, vector in enumerate(vectors) if presence()[item, m]}


def neumf_pair(model, user: int, item: int) -> torch.Tensor:
    """The published form: everything side by side, through the first layer."""
    product_u, network_u = model.users_UD[user].split(DIM)
    product_i, network_i, _ = model.ids_IF[item].split([DIM, DIM, 1])
    contents = [content()[item, :6], content()[item, 6:]]
    beside = torch.cat([network_u, network_i, *contents])
    first = torch.cat([model.first_user.weight, model.first_id_WG, *model.first_content], dim=1)
    hidden = torch.relu(first @ beside + model.first_user.bias)
    for one in model.ranker.layers.hidden:
        hidden = torch.relu(one(hidden))
    return model.product_G @ (product_u * product_i) + model.ranker.layers.out_W @ hidden


def nfm_pair(model, user: int, item: int) -> torch.Tensor:
    features = [model.users_UD[user], model.ids_IF[item, :-1]]
    weights = model.ids_IF.new_zeros(())
    for m, vector in parts_of(item).items():
        features.append(model.content[m][:-1] @ vector)
        weights = weights + model.content[m][-1] @ vector
    pooled = sum(a * b for a, b in itertools.combinations(features, 2))
    layers = model.ranker.layers
    return weights + (pooled.sum() if layers is None else layers(pooled, None))


def vecf_pair(model, user: int, item: int) -> torch.Tensor:
    u = model.users_UD[user]
    vectors = [
        model.region_weights[m] @ piece
        for m, vector in parts_of(item).items()
        for piece in vector.split(len(vector) // model.ranker.regions[m])
    ]
    seen = model.ids_IF[item, :-1]
    if vectors:
        looked_at = torch.stack([u @ model.ranker.attention_EE @ x for x in vectors]) / DIM**0.5
        seen = seen + torch.softmax(looked_at, dim=0) @ torch.stack(vectors)
    return u @ seen


PAIRS = {"neumf": neumf_pair, "nfm": nfm_pair, "factorisation machine": nfm_pair, "vecf": vecf_pair}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_score_is_that_of_the_pair_by_itself(kind):
    model = model_of(CONFIGS[kind])
    torch.testing.assert_close(all_scores(model), expected(model, PAIRS[kind]), rtol=1e-4, atol=1e-5)


def test_the_bi_interaction_is_the_sum_of_the_products_of_all_pairs():
    v, x = torch.tensor([[0.5, 0.1], [-0.3, 0.8], [0.2, 0.2]]), torch.tensor([1.0, 1.0, 0.5])
    torch.testing.assert_close(bi_interaction(v * x[:, None]), torch.tensor([-0.13, 0.17]))


def test_items_of_each_user_are_scored_as_items_of_all(model):
    queries_U1Q, items_ID = model.users(torch.arange(NUM_USERS)).unsqueeze(1), model.items(content())
    own_UID = items_ID.expand(NUM_USERS, -1, -1)
    torch.testing.assert_close(model.ranker(queries_U1Q, own_UID), model.ranker(queries_U1Q, items_ID))


def test_a_catalogue_is_scored_in_pieces_as_it_is_at_once(model, monkeypatch):
    whole = all_scores(model)
    monkeypatch.setattr("training.models.ranker._NUMBERS_AT_ONCE", 1)
    torch.testing.assert_close(all_scores(model), whole)


def test_some_items_are_those_of_the_catalogue(model):
    rows = torch.tensor([3, 0, 6, 1])
    torch.testing.assert_close(model.items(content()[rows], rows), model.items(content())[rows])


def test_what_lies_where_a_modality_is_absent_changes_nothing(model):
    states_IPS, presence_IP = model.states(content())
    junk = torch.where(presence_IP.unsqueeze(-1), states_IPS, torch.tensor(7.0))
    for read in (model.ranker.fuse, model.ranker.rows):
        torch.testing.assert_close(read(junk, presence_IP), read(states_IPS, presence_IP))


def test_attention_looks_at_nothing_that_is_not_there():
    model = model_of(CONFIGS["vecf"])
    queries_U1Q = model.users(torch.arange(NUM_USERS)).unsqueeze(1)
    weights_UIT = model.ranker.attention(queries_U1Q, model.items(content()))
    assert not weights_UIT[:, 1, :3].any()
    assert not weights_UIT[:, 2, 3].any()
    assert not weights_UIT[:, 3].any()
    others = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(weights_UIT[:, others].sum(dim=-1), torch.ones(NUM_USERS, 6))


def test_a_bias_lifts_an_item_for_everybody_alike(model):
    queries_U1Q, items_ID = model.users(torch.arange(NUM_USERS)).unsqueeze(1), model.items(content())
    lifted_ID = items_ID + model.as_items(model.lift(queries_U1Q) * 0.5)
    torch.testing.assert_close(model.score(queries_U1Q, lifted_ID), model.score(queries_U1Q, items_ID) + 0.5)


@pytest.mark.parametrize("config", [NeuMfConfig(dim=DIM, modalities=()), NfmConfig(dim=DIM, modalities=())])
def test_without_modalities_it_is_the_model_of_ids(config):
    model = model_of(config)
    torch.testing.assert_close(model.items(content()), model.items(torch.zeros_like(content())))


@pytest.mark.parametrize("config", [NeuMfConfig(dim=DIM, dropout=0.5), NfmConfig(dim=DIM, dropout=0.5)])
def test_what_is_left_out_in_training_is_drawn_from_the_steps_chance(config):
    model = model_of(config)
    queries_U1Q, items_ID = model.users(torch.arange(NUM_USERS)).unsqueeze(1), model.items(content())
    first, second, other = (
        model.ranker(queries_U1Q, items_ID, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, model.ranker(queries_U1Q, items_ID))


def test_the_losses_are_those_of_each_item_and_of_the_pairs():
    positive, negatives = torch.tensor([0.3, -2.0]), torch.tensor([[0.1, 1.0], [-90.0, 90.0]])
    expected_bce = -F.logsigmoid(positive) - F.logsigmoid(-negatives).sum(dim=1)
    torch.testing.assert_close(cross_entropy(positive, negatives), expected_bce)
    assert torch.isfinite(bpr(positive, negatives)).all()


def test_a_modality_is_predicted_from_the_others_over_the_items_that_have_it():
    model = model_of(VecfConfig(dim=DIM, regions={"picture": 3}, reconstructed="text", reconstruction_weight=2.0))
    users_B, items_B = torch.tensor([0, 4, 1]), torch.tensor([0, 2, 5])  # 2 has no text
    queries_BQ, candidates_BD = model.users(users_B), model.items(content())[items_B]
    found = model.auxiliary(ScoredPairs(queries_BQ, candidates_BD, items_B, content()[items_B]))
    seen = []
    for user, item in ((0, 0), (1, 5)):
        u, pieces = model.users_UD[user], content()[item, :6].split(2)
        regions = torch.stack([model.region_weights[0] @ piece for piece in pieces])
        weights = torch.softmax(regions @ (u @ model.ranker.attention_EE) / DIM**0.5, dim=0)
        decoded = model.decoder(model.ids_IF[item, :-1] + weights @ regions)
        seen.append(1 - F.cosine_similarity(decoded, content()[item, 6:], dim=0))
    torch.testing.assert_close(found, 2.0 * torch.stack(seen).mean())
    assert model_of(CONFIGS["vecf"]).auxiliary(ScoredPairs(queries_BQ, candidates_BD, items_B, content())) is None


def test_negatives_are_items_that_the_user_lacks_and_the_same_ones_each_time(toy_dataset):
    config, dataset = config_of("neumf"), Dataset.open(toy_dataset)
    split = make_split(read_interactions(dataset), config.split, seed=0, seen=config.eval.seen)
    data = FactorData(split.train, split.train_users, Catalogue(dataset), seed=0)
    batch, again = (data.lacking_batch(0, 3, size=64, num_negatives=40) for _ in range(2))
    users_V, place_B = torch.unique(batch.users_B, return_inverse=True)
    held_VI = data.holds(users_V, torch.arange(data.num_items))
    assert not held_VI[place_B[:, None], batch.negatives].any()
    assert held_VI[place_B, batch.items_X].all()
    torch.testing.assert_close(batch.negatives, again.negatives)
    assert len(np.unique(batch.negatives.numpy())) > 50


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (NeuMfConfig(modalities=("sound",)), r"model\.modalities: 'sound' is not among"),
        (VecfConfig(regions={"sound": 2}), r"model\.regions: 'sound' is not among the modalities of the score"),
        (VecfConfig(regions={"picture": 4}), r"model\.regions\.picture: 6 numbers do not fall into 4 equal pieces"),
        (VecfConfig(reconstructed="sound"), r"model\.reconstructed: 'sound' is not among"),
        (VecfConfig(modalities=("text",), regions={"picture": 2}), r"model\.regions: 'picture' is not among"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(config, match):
    with pytest.raises(ValueError, match=match):
        config.build(FEATURES, presence(), num_users=NUM_USERS)


@pytest.mark.parametrize(
    ("kind", "override", "match"),
    [
        ("nfm", "serving.fold_in=softmax", "serving.fold_in = softmax looks for items by inner products"),
        ("vecf", "serving.fold_in=exact", "serving.fold_in = exact: vecf reads no user by itself|inner products"),
        ("neumf", "model.hidden=[]", r"model\.neumf\.hidden"),
        ("vecf", "model.modalities=[]", r"model\.vecf\.modalities"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, override, match):
    with pytest.raises(ConfigError, match=match):
        config_of(kind, override)


def test_regions_of_whitened_vectors_are_refused():
    text = '[model]\nkind = "vecf"\nregions = {visual = 4}\n[conditioning]\nkind = "whiten"'
    with pytest.raises(ConfigError, match="would mix regions"):
        parse_config(text)
