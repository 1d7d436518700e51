"""UltraGCN, InvRL and what serves them, against numbers computed by explicit loops in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from api_schemas.manifest import Modality
from training.factors import losses
from training.factors.encoders import MeanEncoder
from training.factors.environments import assign, refill
from training.factors.fold_in import affine_map, implicit_als, pool
from training.factors.losses import Positives, bpr, item_factor, item_neighbours, user_factor, weighted_cross_entropy
from training.factors.mask_figures import contributions
from training.factors.masking import gradient_penalty
from training.factors.served import ServedFactors
from training.models import FeatureSpec, UltraGcnConfig, VbprConfig


def double(values):
    return torch.tensor(values, dtype=torch.float64)


SEEN_UI = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
USERS_UD = double([[0.5, -0.2], [0.1, 0.8], [-0.3, 0.4], [0.6, 0.6]])
ITEMS_ID = double([[0.9, 0.1], [-0.4, 0.7], [0.2, -0.5]])
DEGREE_U, DEGREE_I = double(SEEN_UI.sum(axis=1)), double(SEEN_UI.sum(axis=0))


def test_beta_is_equation_18():
    beta = torch.outer(user_factor(DEGREE_U), item_factor(DEGREE_I))
    expected = [[0.5, 0.433012701892], [0.5, 0.433012701892], [0.38490017946, 1 / 3], [0.816496580928, 0.707106781187]]
    torch.testing.assert_close(beta[:, :2], double(expected))


POSITIVE, NEGATIVE = [0.75162567387, 1.29127286221], [1.1437431377, 1.29320239179]
WEIGHTS = {"weight_B": double([1.0, 3.0, 0.5, 2.0]), "w3": 0.7, "w4": 1.3}


def positives(places, columns):
    place_X, column_X = torch.as_tensor(places), torch.as_tensor(columns)
    weight_X = 1 + user_factor(DEGREE_U)[place_X] * item_factor(DEGREE_I)[column_X]
    return Positives(place_X, column_X, weight_X)


@pytest.mark.parametrize(("user", "item", "rows"), [(0, 0, [2, 2]), (1, 2, [0, 1])])
def test_the_weighted_cross_entropy_is_the_golden_one(user, item, rows):
    arguments = {"weight_B": double([1.0]), "user_factor_B": user_factor(DEGREE_U)[user : user + 1]}
    found, none = weighted_cross_entropy(
        USERS_UD[user : user + 1],
        ITEMS_ID[rows],
        item_factor_N=item_factor(DEGREE_I)[rows],
        w3=1.0,
        w4=1.0,
        **arguments,
    )
    assert found.item() == pytest.approx(NEGATIVE[user], rel=1e-8)
    assert none.item() == 0
    pair = Positives(torch.tensor([0]), torch.tensor([item]), positives([user], [item]).weight_X)
    whole, positive = weighted_cross_entropy(
        USERS_UD[user : user + 1], ITEMS_ID, item_factor_N=item_factor(DEGREE_I), w3=0.0, w4=0.0,
        positives=pair, **arguments,
    )  # fmt: skip
    assert positive.item() == pytest.approx(POSITIVE[user], rel=1e-8)
    assert whole.item() == positive.item()


@pytest.mark.parametrize(
    "pairs", [None, ([], []), ([0, 0, 2, 3, 3, 3], [0, 1, 2, 1, 1, 0])], ids=["none", "empty", "some and one twice"]
)
@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_the_gradients_made_on_the_way_forward_are_those_of_autodiff(pairs, at_once, monkeypatch):
    monkeypatch.setattr(losses, "_USERS_AT_ONCE", at_once)
    given = None if pairs is None else positives(*(torch.tensor(one, dtype=torch.int64) for one in pairs))

    def plain(users_UD, items_ID):
        scores_UI = users_UD @ items_ID.T
        beta_UI = torch.outer(user_factor(DEGREE_U), item_factor(DEGREE_I))
        negative = (WEIGHTS["weight_B"][:, None] * (0.7 + 1.3 * beta_UI) * F.softplus(scores_UI)).sum() / len(items_ID)
        if given is None:
            return negative
        return negative + (given.weight_X * F.softplus(-scores_UI[given.place_X, given.column_X])).sum()

    def fused(users_UD, items_ID):
        factors = {"user_factor_B": user_factor(DEGREE_U), "item_factor_N": item_factor(DEGREE_I)}
        return weighted_cross_entropy(users_UD, items_ID, **WEIGHTS, **factors, positives=given)[0]

    inputs = (USERS_UD.clone().requires_grad_(), ITEMS_ID.clone().requires_grad_())
    torch.testing.assert_close(fused(*inputs), plain(*inputs))
    for found, expected in zip(
        torch.autograd.grad(fused(*inputs), inputs), torch.autograd.grad(plain(*inputs), inputs), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_item_neighbours_leave_the_item_itself_out_and_have_the_papers_weights():
    user_E, item_E = np.nonzero(SEEN_UI)
    neighbours, omega = item_neighbours(user_E, item_E, num_users=4, num_items=3, count=1)
    assert neighbours.tolist() == [[1], [0], [1]]
    np.testing.assert_allclose(omega[:, 0], [0.563436169819, 0.59160797831, 0.617213399848], rtol=1e-6)
    found = [float(omega[i, 0] * F.softplus(-(USERS_UD[u] @ ITEMS_ID[neighbours[i, 0]]))) for u, i in [(0, 0), (1, 2)]]
    assert found == pytest.approx([0.494431078027, 0.287975165727], rel=1e-6)


CONTENT_IR = double([[1.0, 0.0, 0.5, -0.5], [0.0, 1.0, -0.5, 0.5], [0.6, 0.8, 0.3, 0.1]])
CONTENT_USERS_UC = double([[0.7, -0.1], [0.2, 0.9]])
WEIGHT_CR = double([[0.3, -0.2, 0.5, 0.1], [0.05, 0.4, -0.3, 0.2]])
PARTS_UIP = double(  # of users and items: the two modalities under the mask, id, bias
    [
        [[0.1845, 0.104, -0.1, 0.037], [-0.036, -0.104, 0.2, 0.037], [0.0819, 0.0704, 0.15, 0.037]],
        [[0.0945, -0.091, -0.7, -0.008], [0.064, 0.091, 0.23, -0.008], [0.1079, -0.0226, 0.53, -0.008]],
    ]
)
ID_SCORE_UI = double([[0.2, -0.1, 0.05], [0.0, 0.3, -0.2]])
MASK_R = double([0.9, 0.2, 0.6, 0.4])
ENVIRONMENTS = [[(0, 0, 1.0), (1, 2, 0.0)], [(1, 1, 1.0), (0, 2, 0.0)]]
MODES = {
    "paper": (
        (1.34193402147, 0.00164187026947, 0.0),
        [0.20033099124, -0.00148186374282, 0.0866130247523, 0.0715033600107],
    ),
    "code": (
        (1.23685963228, 0.00656748107788, 0.5),
        [0.132157341848, -0.10171835263, -0.0137456838134, -0.0282886433167],
    ),
    "hrm": ((1.35124239939, 0.120950248188, 0.5), [0.447841907003, -0.0691076185166, 0.0139974941638, -0.011916903353]),
}


def losses_and_gradients(weight_CR, mask_R):
    losses, gradients = [], []
    for pairs in ENVIRONMENTS:
        loss, gradient = 0.0, 0.0
        for u, i, y in pairs:
            masked_R = mask_R * CONTENT_IR[i]
            score = ID_SCORE_UI[u, i] + CONTENT_USERS_UC[u] @ (weight_CR @ masked_R)
            loss = loss + F.softplus(score) - y * score
            gradient = gradient + (torch.sigmoid(score) - y) * torch.outer(CONTENT_USERS_UC[u], masked_R)
        losses.append(loss)
        gradients.append(gradient)
    return torch.stack(losses), torch.stack(gradients)


@pytest.mark.parametrize("form", MODES)
def test_the_penalty_and_its_second_order_gradient_are_the_golden_ones(form):
    (total, penalty, prior), gradient = MODES[form]
    weight, mask = WEIGHT_CR.clone().requires_grad_(), MASK_R.clone().requires_grad_()
    losses_E, gradient_ECR = losses_and_gradients(weight, mask)
    found = gradient_penalty(gradient_ECR, mask, form=form, normalised=False)
    value = losses_E.mean() + found + 0.1 * (mask - prior).square().sum()
    value.backward()
    assert found.item() == pytest.approx(penalty, rel=1e-5)
    assert value.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(mask.grad, double(gradient), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("form", MODES)
@pytest.mark.parametrize("normalised", [True, False])
def test_one_environment_or_equal_ones_have_no_penalty(form, normalised):
    one = torch.randn(1, 2, 4, dtype=torch.float64)
    assert float(gradient_penalty(one, MASK_R, form=form, normalised=normalised)) == 0
    equal = gradient_penalty(one.expand(4, -1, -1), MASK_R, form=form, normalised=normalised)
    assert float(equal) == pytest.approx(0, abs=1e-25)


def test_a_normalised_penalty_does_not_know_the_scale_of_the_loss():
    gradient_ECR = losses_and_gradients(WEIGHT_CR, MASK_R)[1]
    one, other = (gradient_penalty(gradient_ECR * k, MASK_R, form="hrm", normalised=True) for k in (1.0, 512.0))
    torch.testing.assert_close(one, other)


def test_interactions_go_to_the_environment_that_scores_them_best_and_ties_to_the_first():
    scores = np.array([[0.027, -0.027, 0.0191, -0.0015], [0.07, -0.369, 0.2896, -0.08]], np.float32)
    assert assign(scores).tolist() == [1, 0, 1, 0]
    assert assign(np.zeros((3, 2), np.float32)).tolist() == [0, 0]


def test_an_empty_environment_gets_half_of_the_largest():
    filled = refill(np.array([0, 0, 0, 0, 2, 2]), num_environments=3, seed=0)
    assert np.bincount(filled).tolist() == [2, 2, 2]
    assert refill(np.zeros(4, np.int64), num_environments=1, seed=0).tolist() == [0, 0, 0, 0]


def test_the_fold_in_map_is_the_golden_one():
    histories = [np.flatnonzero(row) for row in SEEN_UI]
    solution = affine_map(pool(ITEMS_ID, histories, length=9), USERS_UD, ridge=0.1)
    expected = [[0.199570082849, -0.787263617127], [-0.268732428585, -0.568139913667], [0.197672527121, 0.516110024721]]
    torch.testing.assert_close(solution, double(expected), rtol=1e-9, atol=1e-10)
    query = pool(ITEMS_ID, [np.array([0, 2])], length=9) @ solution[:-1] + solution[-1]
    torch.testing.assert_close(query[0], double([0.361182558405, 0.196743018035]), rtol=1e-9, atol=1e-10)


def test_ultragcns_fixed_point_and_implicit_als_are_the_golden_ones():
    histories = [np.array([0, 2])]
    beta = pool(ITEMS_ID, histories, length=9, degree_I=DEGREE_I)
    torch.testing.assert_close(beta[0], double([0.536602540378, -0.166506350946]), rtol=1e-9, atol=1e-10)
    als = implicit_als(ITEMS_ID, histories, length=9, w0=0.1, ridge=0.5)
    torch.testing.assert_close(als[0], double([0.746158880853, -0.444191381613]), rtol=1e-9, atol=1e-10)


def served(config, modalities, *, num_items, **weights):
    model = config.build(FeatureSpec(modalities), num_users=1, num_items=num_items).double()
    with torch.no_grad():
        for name, value in weights.items():
            getattr(model, name).copy_(double(value))
    width = model.dim
    made = ServedFactors(
        model,
        modalities,
        history_length=3,
        imputer=None,
        users=MeanEncoder(torch.eye(width), torch.zeros(width), torch.zeros(width)),
    )
    return model, made.double()


def test_a_score_is_the_golden_sum_of_its_parts_and_one_inner_product():
    modalities = (Modality(name="a", dim=2), Modality(name="b", dim=2))
    ids = [[0.4, -0.6], [0.1, 0.3], [-0.2, 0.5]]
    model, made = served(
        UltraGcnConfig(dim=2), modalities, num_items=3, ids_IF=ids, weight_CR=WEIGHT_CR.tolist(),
        bias_C=[0.05, -0.02], mask_R=MASK_R.tolist(),
    )  # fmt: skip
    assert made.part_names == ("a", "b", "id", "bias")
    projected = made.projector(torch.split(CONTENT_IR, [2, 2], dim=-1), torch.ones(3, 2, dtype=torch.bool))
    states = torch.cat([projected, *[one[:, None] for one in made.extra_states(double(ids), num_items=3)]], dim=1)
    users = double([[0.5, 0.5, 0.7, -0.1], [-0.4, 0.9, 0.2, 0.9]])
    scores = users @ made.fuse(states, torch.ones(3, 4, dtype=torch.bool)).T
    torch.testing.assert_close(scores, double([[0.2255, 0.097, 0.3393], [-0.7045, 0.377, 0.6073]]))
    torch.testing.assert_close(scores, users @ model.items(CONTENT_IR).T)
    torch.testing.assert_close(torch.einsum("ud,ipd->uip", users, states), PARTS_UIP)


@pytest.mark.parametrize("lacking", [None, 1])
def test_what_a_mask_removes_is_the_golden_parts_beside_those_of_all_content(lacking):
    modalities = (Modality(name="a", dim=2), Modality(name="b", dim=2))
    model = UltraGcnConfig(dim=2).build(FeatureSpec(modalities), num_users=2, num_items=3).double()
    with torch.no_grad():
        model.users_UD.copy_(torch.cat([double([[0.5, 0.5], [-0.4, 0.9]]), CONTENT_USERS_UC], dim=-1))
        model.weight_CR.copy_(WEIGHT_CR)
        model.bias_C.fill_(9.0)  # of no modality
    presence_IM = torch.ones(3, 2, dtype=torch.bool)
    if lacking is not None:
        presence_IM[lacking, 0] = False
    data = SimpleNamespace(users=np.arange(2), widths=[2, 2], content_IR=CONTENT_IR, presence_IM=presence_IM)
    found = contributions(model, MASK_R, data, seed=0)
    for m, columns in enumerate((slice(0, 2), slice(2, 4))):
        kept, whole = [], []
        for u in range(2):
            for i in range(3):
                if presence_IM[i, m]:
                    kept.append(float(PARTS_UIP[u, i, m]))
                    whole.append(float(CONTENT_USERS_UC[u] @ (WEIGHT_CR[:, columns] @ CONTENT_IR[i, columns])))
        expected = {
            "contribution_with_mask": np.abs(kept).mean(),
            "contribution_without_mask": np.abs(whole).mean(),
            "contribution_removed": np.abs(np.subtract(whole, kept)).mean(),
        }
        assert found[m] == pytest.approx(expected, rel=1e-12)


def test_a_modality_that_no_item_has_contributes_nothing():
    modalities = (Modality(name="a", dim=4),)
    model = UltraGcnConfig(dim=2).build(FeatureSpec(modalities), num_users=2, num_items=3).double()
    none = torch.zeros(3, 1, dtype=torch.bool)
    data = SimpleNamespace(users=np.arange(2), widths=[4], content_IR=CONTENT_IR, presence_IM=none)
    assert set(contributions(model, MASK_R, data, seed=0)[0].values()) == {0.0}


def test_vbpr_is_one_inner_product_and_its_loss_the_golden_one():
    features = double([[1.0, 0.0, 0.5], [0.2, 0.9, -0.4]])
    model, _ = served(
        VbprConfig(dim=2), (Modality(name="visual", dim=3),), num_items=2,
        ids_IF=[[0.3, 0.4], [-0.2, 0.6]], weight_CR=[[0.3, 0.2, -0.4], [-0.1, 0.5, 0.6]],
        item_bias_I=[0.1, -0.05], content_bias_R=[0.02, 0.03, -0.01], users_UD=[[0.2, -0.5, 0.7, 0.1]],
    )  # fmt: skip
    items = model.items(features)
    torch.testing.assert_close(items, double([[0.3, 0.4, 0.1, 0.2, 0.115], [-0.2, 0.6, 0.4, 0.19, -0.015]]))
    scores = items @ model.users(torch.tensor([0]))[0]
    torch.testing.assert_close(scores, double([0.065, -0.056]))
    assert bpr(scores[:1], scores[None, 1:]).item() == pytest.approx(0.634476190196, rel=1e-9)
