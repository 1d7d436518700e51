"""MTIN: what old, false and foreign items weigh in a group, by hand."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from api_schemas.manifest import Modality
from index.dataset import Dataset
from tests import toy
from tests.unit.training.test_interactions import rewrite
from training.config import ConfigError, parse_config
from training.models import FeatureSpec, MtinConfig
from training.models.mtin import Mtin
from training.progress import Unwatched
from training.trainer import train

DAY = 86_400.0
DIM = 4
F64 = torch.float64
ALIKE = torch.tensor([[[0.6, 0.2, -0.1, 0.3]] * 3], dtype=F64)
THREE = torch.ones(1, 3, dtype=torch.bool)


def built(**settings) -> Mtin:
    torch.manual_seed(0)
    return MtinConfig(dim=DIM, **settings).build(FeatureSpec((Modality(name="m", dim=3),))).double().eval()


def weights(model: Mtin, items, ages):
    """Return how much each group reads of each item `[L, Q]`."""
    votes = torch.einsum("qde,ble->blqd", model.map_QDD, items).detach()
    mask = torch.ones(items.shape[:2], dtype=torch.bool)
    return model._weights(votes, mask, torch.tensor([ages], dtype=F64))[0].detach()


def test_the_groups_forget_in_times_that_are_log_spaced_and_one_alone_in_the_longest():
    model = built(interests=3, shortest_s=60, longest_s=60 * 10_000)
    torch.testing.assert_close(model.log_days_Q.detach().exp() * DAY, torch.tensor([60, 6_000, 600_000], dtype=F64))
    assert built(interests=1, longest_s=2 * DAY).log_days_Q.exp().item() == pytest.approx(2)


def test_what_differs_by_age_alone_counts_by_its_decay():
    model = built(interests=2, shortest_s=DAY, longest_s=100 * DAY)
    found = weights(model, ALIKE, [200 * DAY, 2 * DAY, 0.0])
    for column, scale in enumerate((1.0, 100.0)):
        decay = np.exp(-np.array([200.0, 2.0, 0.0]) / scale)
        np.testing.assert_allclose(found[:, column], decay / decay.sum(), rtol=1e-6)


def test_an_older_item_counts_less_and_without_times_all_count_alike():
    model = built(interests=4)
    found = weights(model, ALIKE, [300 * DAY, 30 * DAY, 0.0])
    assert (found.diff(dim=0) > 0).all()
    torch.testing.assert_close(weights(model, ALIKE, [0.0] * 3), torch.full((3, 4), 1 / 3, dtype=F64))


def test_a_longer_memory_reads_what_a_shorter_one_has_forgotten():
    model = built(interests=2, shortest_s=3_600, longest_s=365 * DAY)
    short, long = weights(model, ALIKE, [30 * DAY, 30 * DAY, 0.0])[0]
    assert short < 1e-9
    assert long > 0.3


def test_what_fits_the_interest_far_worse_than_the_mean_is_discounted_by_as_much_as_is_learned():
    model = built(interests=1)
    with torch.no_grad():
        model.map_QDD.copy_(torch.eye(DIM, dtype=F64)[None])
    odd = torch.cat([ALIKE[:, :2], -ALIKE[:, :1]], dim=1)
    mild = weights(model, odd, [0.0] * 3)
    assert mild[2] < mild[0] == mild[1]
    with torch.no_grad():
        model.log_beta_Q.fill_(np.log(5.0))
    strict = weights(model, odd, [0.0] * 3)
    torch.testing.assert_close((mild[2] / mild[0]) ** 5, strict[2] / strict[0])
    with torch.no_grad():
        model.log_beta_Q.fill_(-30.0)
    torch.testing.assert_close(weights(model, odd, [0.0] * 3), torch.full((3, 1), 1 / 3, dtype=F64))


def test_a_mask_that_has_learned_nothing_changes_no_query_and_others_share_q():
    model = built(interests=4)
    items = torch.randn(1, 3, DIM, dtype=F64)
    plain = model.encode_users(items, THREE).detach()
    with torch.no_grad():
        model.mask_D.normal_()
    scale_Q = (model.encode_users(items, THREE) / plain)[0].detach()
    torch.testing.assert_close(scale_Q, scale_Q[:, :1].expand_as(scale_Q))
    assert scale_Q[:, 0].sum().item() == pytest.approx(4)
    assert (scale_Q[:, 0] - 1).abs().max() > 0.01


def test_scales_and_discounts_are_learned():
    model = built(interests=2, shortest_s=DAY, longest_s=10 * DAY)
    ages = torch.tensor([[3 * DAY, DAY, 0.0]], dtype=F64)
    model.encode_users(torch.randn(1, 3, DIM, dtype=F64), THREE, ages).square().sum().backward()
    for learned in (model.log_days_Q, model.log_beta_Q, model.map_QDD):
        assert learned.grad.abs().min() > 0


def test_scales_that_fall_are_refused():
    with pytest.raises(ValueError, match="shortest_s is 100, longer than longest_s, 10"):
        MtinConfig(shortest_s=100, longest_s=10)


@pytest.mark.parametrize("moments", [[0, 0, 0], [7, 7, 7]], ids=["none", "one"])
def test_data_whose_times_say_nothing_are_refused_by_name(tmp_path, moments):
    folder = toy.make_dataset(tmp_path / "data", num_users=3, num_items=20)
    users = [f"u{number}" for number in range(30) for _ in moments]
    items = [f"i{number % 20:04d}" for number in range(len(users))]
    rewrite(folder, pa.table({"user_id": users, "item_id": items, "timestamp": pa.array(moments * 30, pa.int64())}))
    config = parse_config('[model]\nkind = "mtin"\n')
    told = r"model.kind: mtin reads how old .* interactions.parquet, column timestamp: .* of one time"
    with pytest.raises(ConfigError, match=told):
        train(config, Dataset.open(folder), checkpoints=tmp_path / "runs", observer=Unwatched())
