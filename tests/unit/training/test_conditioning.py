"""Conditioning of raw vectors, and that a model absorbs it."""

import pytest
import torch

from api_schemas.manifest import Modality
from training.data.conditioning import ConditioningConfig, InputMap, fit
from training.models import DemureConfig, FeatureSpec


def correlated(num=300, dim=6):
    torch.manual_seed(0)
    return torch.randn(num, dim) @ torch.diag(torch.tensor([5.0, 2, 1, 0.5, 0.1, 0.02])) @ torch.randn(dim, dim) + 3


def fitted(raw, presence=None, **config):
    presence = torch.ones(len(raw), 1, dtype=torch.bool) if presence is None else presence
    (one,) = fit(ConditioningConfig(**config), [([raw], presence)], dims=[raw.shape[1]])
    return one


def test_whitened_vectors_have_no_mean_and_the_unit_covariance():
    z = fitted(correlated(), kind="whiten", power=1.0)(correlated())
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(6), atol=2e-2, rtol=0)


def test_half_whitening_keeps_a_rest_of_the_spread_at_mean_variance_one():
    z = fitted(correlated(), power=0.5)(correlated())
    variance = z.var(dim=0, correction=0)
    assert float(variance.mean()) == pytest.approx(1, rel=1e-3)
    assert variance.tolist() == sorted(variance.tolist(), reverse=True)


def test_directions_without_variance_are_left_out_and_rank_is_a_bound():
    flat = torch.cat([correlated(), torch.full((300, 2), 0.3)], dim=1)
    assert fitted(flat).width == 6
    assert fitted(flat, rank=3).width == 3
    assert fitted(torch.zeros(5, 4)).width == 1


def test_absent_items_have_no_part_in_the_fit():
    raw, presence = correlated(), torch.ones(300, 1, dtype=torch.bool)
    raw[::3], presence[::3] = 1e3, False
    torch.testing.assert_close(fitted(raw, presence).mean_D, correlated()[presence[:, 0]].mean(dim=0))


def test_pieces_give_the_same_map_as_the_whole():
    raw, presence = correlated(), torch.ones(300, 1, dtype=torch.bool)
    pieces = [([raw[:100]], presence[:100]), ([raw[100:]], presence[100:])]
    (one,) = fit(ConditioningConfig(), pieces, dims=[6])
    torch.testing.assert_close(one.basis_DR.abs(), fitted(raw).basis_DR.abs(), atol=1e-4, rtol=1e-4)


def test_scaling_gives_a_mean_square_of_one():
    unit = torch.nn.functional.normalize(correlated(), dim=-1)
    assert float(fitted(unit, kind="scale")(unit).square().mean()) == pytest.approx(1)


def test_a_model_that_absorbed_its_maps_takes_raw_vectors_and_says_the_same():
    torch.manual_seed(0)
    raw, presence = [correlated(40), torch.randn(40, 3)], torch.rand(40, 2) > 0.2
    maps = [fitted(raw[0], rank=4), InputMap(torch.randn(3), torch.randn(3, 2))]
    model = DemureConfig(dim=8).build(FeatureSpec((Modality(name="a", dim=4), Modality(name="b", dim=2))))
    before = model.encode_items([one(x) for one, x in zip(maps, raw, strict=True)], presence)
    model.absorb([(one.mean_D, one.basis_DR) for one in maps])
    assert [modality.dim for modality in model.modalities] == [6, 3]
    torch.testing.assert_close(model.encode_items(raw, presence), before, atol=1e-4, rtol=1e-4)
