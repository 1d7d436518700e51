"""Losses against the golden numbers and against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from training.losses import contrastive, full_softmax, sampled_softmax, view_similarity

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.3, 0.1, 0.9]], dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_sampled_softmax_is_the_golden_one():
    rows = sampled_softmax(LOGITS[:, 0], LOGITS[:, 1:])
    torch.testing.assert_close(rows, double(0.241311296657, 1.29221704823), rtol=1e-8, atol=1e-9)


def test_log_q_and_accidental_hits_are_the_golden_ones():
    logits, expected = double([1.0, 0.5, 0.2, -0.3]), double(0.1, 0.3, 0.05, 0.2).log()
    ids = torch.tensor([7, 3, 7, 9])
    hit = (ids[1:] == ids[0])[None]
    log_q = {"log_expected_positive_B": expected[:1], "log_expected_negative_N": expected[1:]}
    found = [
        sampled_softmax(logits[:, 0], logits[:, 1:]),
        sampled_softmax(logits[:, 0], logits[:, 1:], **log_q),
        sampled_softmax(logits[:, 0], logits[:, 1:], hit_BN=hit, **log_q),
    ]
    assert [float(loss) for loss in found] == pytest.approx([0.845177650128, 0.805180702202, 0.291506836025], rel=1e-9)


def test_a_sample_of_nothing_but_hits_costs_nothing():
    loss = sampled_softmax(torch.zeros(1), torch.full((1, 2), 5.0), hit_BN=torch.ones(1, 2, dtype=torch.bool))
    assert loss.tolist() == [0.0]


def test_the_contrastive_loss_is_the_golden_one_with_the_sum_inside_the_log():
    assert float(contrastive(double([1.2]), double([0.4]))) == pytest.approx(0.371100665948, rel=1e-9)
    assert float(contrastive(double([0.5, -0.3]), double([0.1, 0.9]))) == pytest.approx(0.9130152524, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_contrastive_loss_of_huge_products_is_finite(dtype):
    positive = torch.tensor([[800.0, 790.0]], dtype=dtype, requires_grad=True)
    loss = contrastive(positive, torch.tensor([[805.0, 10.0]], dtype=dtype))
    loss.sum().backward()
    assert loss.item() == pytest.approx(5.00667025344, rel=1e-4)
    assert torch.isfinite(positive.grad).all()


def test_equation_15_adds_up():
    total = sampled_softmax(LOGITS[:, 0], LOGITS[:, 1:]).mean() + 0.5 * 0.7
    total = total + 0.1 * contrastive(double([1.2]), double([0.4])).mean()
    assert float(total) == pytest.approx(1.15387423904, rel=1e-9)


def test_similarity_is_the_product_or_the_cosine_over_a_temperature():
    views, queries = double([[3.0, 4.0], [0.0, 2.0]]), double([6.0, 8.0])
    dot = view_similarity(views, queries, kind="dot", temperature=1.0)
    cosine = view_similarity(views, queries, kind="cosine", temperature=0.2)
    torch.testing.assert_close(dot, double([50.0, 16.0]))
    torch.testing.assert_close(cosine, double([5.0, 4.0]))


@pytest.mark.parametrize("num_users", [1, 64, 130])
def test_the_full_softmax_is_cross_entropy_in_value_and_gradient(num_users):
    torch.manual_seed(num_users)
    queries, items = torch.randn(num_users, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    target, weight = torch.randint(9, (num_users,)), torch.rand(num_users, dtype=torch.float64)
    gradients = []
    for loss in (
        lambda q, v: full_softmax(q, v, target, weight)[0] * 3,
        lambda q, v: (F.cross_entropy(q @ v.T, target, reduction="none") * weight).sum() * 3,
    ):
        q, v = queries.clone().requires_grad_(), items.clone().requires_grad_()
        value = loss(q, v)
        value.backward()
        gradients.append((value.detach(), q.grad, v.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    rows = full_softmax(queries, items, target, weight)[1]
    torch.testing.assert_close(rows, F.cross_entropy(queries @ items.T, target, reduction="none"))


def test_the_full_softmax_of_huge_scores_is_finite():
    queries = torch.full((1, 2), 1e4, requires_grad=True)
    loss, _ = full_softmax(queries, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([1]), torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(4e4)
    assert torch.isfinite(queries.grad).all()
