"""SLMRec from training to answers: users read as the propagation would, parts exact per channel, new items."""

import numpy as np
import pytest
import torch

from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import explain
from index.rebuild import rebuild
from index.snapshot import IndexSnapshot
from index.store import ArtifactStore
from tests.factor_runs import publishable
from training.config import ConfigError, parse_config
from training.factors.encoders import ExactEncoder
from training.factors.fold_in import FoldInMap, padded
from training.factors.serving import check_servable
from training.factors.trainer import TrainedFactors, train_factors
from training.progress import Unwatched
from training.publish import publish_bundle

LENGTH = 6
RUN = f"""
name = "graph"
[model]
kind = "slmrec"
dim = 8
layers = 2
history_length = {LENGTH}
correct_popularity = true
[split]
kind = "interactions"
[optim]
batch_size = 256
epochs = 12
lr = 1e-2
[eval]
every_epochs = 6
[export]
faithfulness_users = 2
[serving]
fold_in = "exact"
"""


@pytest.fixture(scope="module")
def made(toy_dataset, tmp_path_factory) -> TrainedFactors:
    checkpoints = tmp_path_factory.mktemp("graph")
    return train_factors(parse_config(RUN), Dataset.open(toy_dataset), checkpoints=checkpoints, observer=Unwatched())


@pytest.fixture(scope="module")
def store(made, toy_dataset, tmp_path_factory) -> ArtifactStore:
    store, dataset = ArtifactStore(tmp_path_factory.mktemp("store")), Dataset.open(toy_dataset)
    config = parse_config(RUN)
    check_servable(made.served, config)
    bundle = publish_bundle(store, **publishable(made, config, dataset))
    rebuild(store, bundle_version=bundle, dataset=dataset)
    return store


@pytest.fixture(scope="module")
def opened(store) -> tuple[Bundle, IndexSnapshot]:
    snapshot = IndexSnapshot.open(*store.open_snapshot(store.current()))
    return Bundle.open(store.open_bundle(snapshot.manifest.bundle_version)[0]), snapshot


def test_the_exact_fold_in_competes_with_the_affine_map_and_both_are_told(made):
    figures = made.served.fold_in_figures
    assert figures.kind == "exact", "on the toy propagation finds more, and what follows is about it"
    assert set(figures.tried) == {"affine", "exact"}
    assert figures.kind == max(figures.tried, key=figures.tried.get)
    assert figures.recall == pytest.approx(max(figures.tried.values()))


def test_only_models_that_propagate_can_be_asked_for_it():
    with pytest.raises(ConfigError, match=r"serving\.fold_in"):
        parse_config('[model]\nkind = "vbpr"\n[serving]\nfold_in = "exact"\n')


def test_a_live_history_is_read_from_rows_of_its_own_as_it_was_measured(made, opened):
    bundle, snapshot = opened
    manifest = bundle.manifest
    assert not manifest.history_is_candidate
    assert (manifest.history_dim, manifest.state_dim) == (manifest.dim, 2 * manifest.dim)
    histories = [np.arange(length) for length in (0, 1, 3, LENGTH, LENGTH + 2)]
    rows = np.zeros((len(histories), LENGTH, manifest.history_dim), np.float32)
    mask = np.zeros((len(histories), LENGTH), np.bool_)
    for place, history in enumerate(histories):
        kept = history[-LENGTH:]
        rows[place, : len(kept)], mask[place, : len(kept)] = snapshot.history(kept), True
    expected = made.served.fold_in.queries(made.served.tables, histories)
    np.testing.assert_allclose(bundle.encode_users(rows, mask), expected, atol=2e-5)


def test_what_is_said_of_an_item_sums_to_its_score_by_part_and_by_past_item(opened):
    bundle, snapshot = opened
    history, candidates = np.array([1, 5, 9]), np.array([2, 8])
    said = explain(
        bundle,
        method="decomposition",
        states_LMS=snapshot.states(history),
        presence_LM=snapshot.presence(history),
        candidate_states_KMS=snapshot.states(candidates),
        candidate_presence_KM=snapshot.presence(candidates),
    )
    assert said.additive
    np.testing.assert_allclose(said.contributions_KM.sum(axis=1), said.scores_K, atol=1e-5)
    np.testing.assert_allclose(said.residual_K, 0, atol=1e-5)
    np.testing.assert_allclose(said.grid_KLM.sum(axis=2), said.history_KL, atol=1e-5)
    # "Because of item j" is exact: without it, and at the same number of past items, the score is less by as much.
    rows = snapshot.history(history)
    for place in range(len(history)):
        without = rows.copy()
        without[place] = 1e-20  # still an item, which adds nothing
        with_it, less = (
            bundle.encode_users(_padded(one), np.arange(LENGTH)[None] < len(history))[0, 0] for one in (rows, without)
        )
        drop_K = snapshot.candidates(candidates) @ (with_it - less)
        np.testing.assert_allclose(said.history_KL[:, place], drop_K, atol=1e-5)


def _padded(rows_LH):
    padded_1LH = np.zeros((1, LENGTH, rows_LH.shape[1]), np.float32)
    padded_1LH[0, : len(rows_LH)] = rows_LH
    return padded_1LH


def test_the_parts_of_known_items_are_what_training_found_and_all_parts_are_known(made, opened):
    bundle, snapshot = opened
    assert bundle.manifest.warm is not None
    assert bundle.manifest.warm.parts == list(bundle.manifest.part_names)
    tables = made.served.tables
    np.testing.assert_allclose(snapshot.candidates(np.arange(10)), tables.items_ID[:10], atol=2e-5)
    np.testing.assert_allclose(snapshot.history(np.arange(10)), tables.rows_IH[:10], atol=2e-5)


def test_a_new_items_modalities_are_read_from_themselves_alone(made):
    model = made.served.model
    features = [torch.randn(2, one.dim) for one in model.modalities]
    whole = torch.ones(2, len(features), dtype=torch.bool)
    states = model.project(features, whole)
    changed = [one + (m == 0) for m, one in enumerate(features)]
    moved = (model.project(changed, whole) - states).abs().amax(dim=(0, 2)) > 1e-6
    assert moved[: len(features)].tolist() == [True] + [False] * (len(features) - 1)
    lacking = whole.clone()
    lacking[:, 0] = False
    assert not model.project(features, lacking)[:, 0].any()


def test_a_user_is_the_offset_and_the_rows_over_the_root_of_their_number(made):
    encoder = made.served.fold_in.encoder
    assert isinstance(encoder, ExactEncoder)
    rows, mask = padded([np.array([3, 7, 11])], length=LENGTH)
    table = made.served.tables.rows_IH
    by_hand = encoder.offset_D + table[rows[0]].sum(dim=0) / 3**0.5
    torch.testing.assert_close(encoder(table[rows], mask)[0], by_hand)
    found = FoldInMap("exact", LENGTH, encoder, None, None).queries(made.served.tables, [np.array([3, 7, 11])])
    torch.testing.assert_close(found[0, 0], by_hand)
