"""Negatives: the laws, and that expected counts are those of the law."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from training.data.negatives import NegativeSampler, NegativesConfig, SampledSoftmaxConfig

POPULARITY = np.array([5, 50, 1, 20, 0])


@pytest.mark.parametrize("law", ["uniform", "log_uniform"])
def test_counts_are_as_expected(law):
    sampler = NegativeSampler(SampledSoftmaxConfig(law=law, count=60_000), POPULARITY)
    drawn = torch.bincount(sampler.draw(torch.Generator().manual_seed(0)), minlength=5)
    expected = sampler.log_expected(torch.arange(5)).exp()
    assert float(expected.sum()) == pytest.approx(60_000, rel=1e-4)
    torch.testing.assert_close(drawn.float(), expected, rtol=0.04, atol=0)


def test_log_uniform_falls_with_popularity_rank():
    sampler = NegativeSampler(SampledSoftmaxConfig(law="log_uniform", count=1), POPULARITY)
    expected = sampler.log_expected(torch.tensor([1, 3, 0, 2, 4])).exp()
    ranks = np.arange(5)
    law = np.log((ranks + 2) / (ranks + 1)) / np.log(6)
    assert expected.tolist() == pytest.approx(law.tolist(), rel=1e-5)


def test_a_kind_that_does_not_exist_is_an_error_that_lists_the_kinds():
    with pytest.raises(ValidationError, match="'full', 'sampled'"):
        TypeAdapter(NegativesConfig).validate_python({"kind": "in_batch"})
