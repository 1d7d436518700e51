"""Attention pooling against the golden numbers, and what can be wrong with it: overflow, padding, empty sets."""

import pytest
import torch

from training.blocks import AttentionPool
from training.models import DemureConfig, FeatureSpec

X = [[[1.0, 0.5], [-0.5, 1.0]], [[0.2, -1.0], [0.8, 0.3]], [[1.5, -0.5], [0.4, 0.6]]]
F, G, H = [[0.5, -0.2], [0.1, 0.4]], [[0.3, 0.1], [-0.4, 0.6]], [[1.0, 0.2], [-0.3, 0.8]]
ITEM_F, ITEM_G, ITEM_H = [[0.7, 0.0], [0.2, 0.5]], [[0.4, -0.1], [0.3, 0.2]], [[0.9, -0.1], [0.25, 1.1]]
F1, B1 = [[0.6, -0.4], [0.3, 0.7], [-0.5, 0.2]], [0.1, 0.0, 0.05]
F2, B2 = [[0.8, -0.2, 0.4], [0.1, 0.9, -0.3]], [0.0, 0.02]
ITEMS = [[0.298535237834, 0.586603605601], [0.436824418822, -0.423175581178], [0.964446754691, -0.2511142877]]
USER = [0.134985904612, 0.240855775243]


def pool_of(f, g, h, *, dtype=torch.float64, pooling="row", factor=1.0) -> AttentionPool:
    pool = AttentionPool(2, pooling=pooling, scale="none").to(dtype)
    for linear, weight in ((pool.f, f), (pool.g, g), (pool.h, h)):
        linear.weight.data = torch.tensor(weight, dtype=dtype)
    pool.f.weight.data *= factor
    pool.g.weight.data *= factor
    return pool


def golden_model(dtype=torch.float64):
    """The network of the golden files: two modalities, d = 2, a feed-forward network of width 3."""
    model = DemureConfig(dim=2, history_length=2, scale="none").build(FeatureSpec(()))
    model.modality_pool, model.item_pool = pool_of(F, G, H), pool_of(ITEM_F, ITEM_G, ITEM_H)
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    for linear, weight, bias in ((first, F1, B1), (second, F2, B2)):
        linear.weight.data, linear.bias.data = (torch.tensor(values, dtype=torch.float64) for values in (weight, bias))
    model.feed_forward.layers = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    return model.to(dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_items_users_and_scores_are_the_golden_ones(dtype, rtol):
    model = golden_model(dtype)
    states = torch.tensor(X, dtype=dtype)
    items = model.fuse(states, torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(items, torch.tensor(ITEMS, dtype=dtype), rtol=rtol, atol=1e-9)
    user = model.encode_users(items[None, :2], torch.ones(1, 2, dtype=torch.bool))[0, 0]
    torch.testing.assert_close(user, torch.tensor(USER, dtype=dtype), rtol=rtol, atol=1e-9)
    scores = [0.181584915325, -0.0429591433372, 0.0697043911932]
    torch.testing.assert_close(items @ user, torch.tensor(scores, dtype=dtype), rtol=rtol, atol=1e-7)


def test_padding_changes_no_user_whatever_it_holds():
    model = golden_model()
    items = torch.tensor([[*ITEMS[:2], [9.0, 9.0]]], dtype=torch.float64)
    user = model.encode_users(items, torch.tensor([[True, True, False]]))[0, 0]
    torch.testing.assert_close(user, torch.tensor(USER, dtype=torch.float64), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("pooling", "column"), [("row", False), ("column", True)])
def test_weights_are_pooling_weight_times_attention(pooling, column):
    beta = torch.tensor([[0.472527695655, 0.527472304345], [0.378716404809, 0.621283595191]], dtype=torch.float64)
    pooled = [0.427525169881, 0.572474830119] if column else [0.52028668012, 0.47971331988]
    expected = torch.tensor(pooled, dtype=torch.float64) @ beta
    states = torch.tensor(X[:1], dtype=torch.float64)
    weights = pool_of(F, G, H, pooling=pooling).weights(states, torch.ones(1, 2, dtype=torch.bool))[0]
    torch.testing.assert_close(weights, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_near_a_thousand_do_not_overflow(dtype):
    states = torch.tensor(X[:1], dtype=dtype, requires_grad=True)
    item = pool_of(F, G, H, dtype=dtype, factor=60)(states, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(item[0], torch.tensor([-0.3, 0.95], dtype=dtype), rtol=1e-5, atol=1e-6)
    item.sum().backward()
    assert torch.isfinite(states.grad).all()


def test_the_parts_of_a_score_are_the_golden_split_and_sum_to_it():
    model = golden_model()
    parts = model.modality_parts(torch.tensor(X[2:], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool))[0]
    split = parts.detach() @ torch.tensor(USER, dtype=torch.float64)
    expected = torch.tensor([-0.00795314361348, 0.0776575348066], dtype=torch.float64)
    torch.testing.assert_close(split, expected, rtol=1e-8, atol=1e-9)
    assert float(split.sum()) == pytest.approx(0.0697043911932, abs=1e-10)


@pytest.mark.parametrize("pooling", ["row", "column"])
def test_an_empty_set_is_zero_and_so_is_its_gradient(pooling):
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = AttentionPool(4, pooling=pooling)(x, torch.tensor([[False] * 3, [True, False, True]]))
    out.square().sum().backward()
    assert torch.equal(out[0], torch.zeros(4))
    assert torch.equal(x.grad[0], torch.zeros(3, 4))
    assert x.grad[1, 0].abs().sum() > 0


@pytest.mark.parametrize("pooling", ["row", "column"])
def test_slopes_are_the_derivatives_that_autograd_finds(pooling):
    torch.manual_seed(0)
    pool = AttentionPool(5, pooling=pooling).double()
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[True] * 3] * 3 + [[True, False, True]] * 2 + [[False] * 3])
    direction = torch.randn_like(x)
    jacobian = torch.autograd.functional.jacobian(lambda y: pool(y, mask).sum(dim=0), x)  # [D, B, N, D]
    expected = torch.einsum("dbne,bne->bnd", jacobian, direction) * mask.unsqueeze(-1)
    torch.testing.assert_close(pool.slopes(x, mask, direction), expected)
