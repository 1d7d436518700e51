"""Whatever the history and the candidates: additive methods sum to the score, and shares are shares."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from api_schemas.manifest import Modality
from index.bundle import Bundle
from index.decompose import decompose
from index.explain import METHODS, explain, modality_shares
from index.store import ArtifactStore
from tests.id_bundles import make_id_bundle
from tests.torch_bundle import TorchBundle
from training.models import BaseConfig, FeatureSpec, MtinConfig

LENGTH, DIM = 4, 6
METHOD = st.sampled_from(METHODS)


KINDS = {"base": BaseConfig, "mtin": MtinConfig}


def make_bundle(kind: str, num_modalities: int) -> TorchBundle:
    modalities = tuple(Modality(name=f"m{number}", dim=3) for number in range(num_modalities))
    torch.manual_seed(num_modalities)
    model = KINDS[kind](dim=DIM, history_length=LENGTH).build(FeatureSpec(modalities))
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return TorchBundle(model)


BUNDLES = {(kind, num): make_bundle(kind, num) for kind in KINDS for num in (1, 2, 4, 7)}


@settings(max_examples=60, deadline=None)
@given(
    of=st.sampled_from(sorted(BUNDLES)),
    method=METHOD,
    oldest_s=st.sampled_from([0.0, 1e5, 1e9]),
    num_items=st.integers(0, LENGTH + 2),
    num_candidates=st.integers(1, 3),
    scale=st.sampled_from([0.01, 1.0, 5.0]),
    present=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_parts_and_residual_sum_to_the_score(of, method, oldest_s, num_items, num_candidates, scale, present, seed):
    """Of models that read no ages, too: what these are then makes no difference."""
    rng, (_, num_modalities) = np.random.default_rng(seed), of
    shape_L, shape_K = (num_items, num_modalities), (num_candidates, num_modalities)
    arrays = explain(
        BUNDLES[of],
        method=method,
        states_LMS=(scale * rng.normal(size=(*shape_L, DIM))).astype(np.float32),
        presence_LM=rng.random(shape_L) < present,
        candidate_states_KMS=(scale * rng.normal(size=(*shape_K, DIM))).astype(np.float32),
        candidate_presence_KM=rng.random(shape_K) < present,
        ages_L=rng.uniform(0, oldest_s, num_items).astype(np.float32),
    )
    allowed_K = 1e-5 * (1 + np.abs(arrays.scores_K))
    off_K = np.abs(arrays.contributions_KM.sum(axis=1) + arrays.residual_K - arrays.scores_K)
    assert (off_K < allowed_K).all()
    if method == "decomposition":
        assert (np.abs(arrays.residual_K) < allowed_K).all()
    assert arrays.additive == (method in {"decomposition", "shapley"})
    shares = modality_shares(arrays.interest_KM, scores_K=arrays.scores_K)
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1)


@pytest.fixture(scope="module")
def factors(toy_dataset, tmp_path_factory) -> Bundle:
    """A model whose items are the sum of three modalities, an id and a bias."""
    store = ArtifactStore(tmp_path_factory.mktemp("factors"))
    return Bundle.open(store.open_bundle(make_id_bundle(store, toy_dataset, dim=DIM, history_length=LENGTH))[0])


@settings(max_examples=60, deadline=None)
@given(
    method=st.one_of(st.none(), METHOD),
    num_items=st.integers(0, LENGTH + 2),
    num_candidates=st.integers(1, 3),
    scale=st.sampled_from([0.01, 1.0, 20.0]),
    present=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_parts_of_learned_items_and_residual_sum_to_the_score(
    factors, method, num_items, num_candidates, scale, present, seed
):
    """With a history by every method; without a method: for queries that were learned."""
    rng = np.random.default_rng(seed)
    candidates = {
        "candidate_states_KMS": (scale * rng.normal(size=(num_candidates, 5, DIM))).astype(np.float32),
        "candidate_presence_KM": rng.random((num_candidates, 5)) < present,
    }
    if method is None:
        queries_QD = rng.normal(size=(2, DIM)).astype(np.float32)
        arrays = decompose(factors, queries_QD=queries_QD, **candidates)
    else:
        arrays = explain(
            factors,
            method=method,
            states_LMS=(scale * rng.normal(size=(num_items, 5, DIM))).astype(np.float32),
            presence_LM=rng.random((num_items, 5)) < present,
            **candidates,
        )
    # Parts may be far larger than the score that they cancel to: rounding goes with them.
    size_K = 1 + np.abs(arrays.scores_K) + np.abs(arrays.contributions_KM).sum(axis=1)
    off_K = np.abs(arrays.contributions_KM.sum(axis=1) + arrays.residual_K - arrays.scores_K)
    assert (off_K < 1e-5 * size_K).all()
    if method in {None, "decomposition"}:
        assert (np.abs(arrays.residual_K) < 1e-5 * size_K).all()
    assert not arrays.contributions_KM[~candidates["candidate_presence_KM"]].any() or method == "shapley"
