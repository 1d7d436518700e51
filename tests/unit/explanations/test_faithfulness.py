"""Faithfulness on a linear model, where gradient x input is exact and so must be faithful, and on broken ones."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from api_schemas.manifest import Faithfulness
from index.bundle import Bundle
from index.dataset import Dataset
from index.explain import METHODS
from index.store import ArtifactStore
from tests import bundles, toy
from training import faithfulness
from training.faithfulness import JudgedUsers, measure_faithfulness


@pytest.fixture(scope="module")
def dataset(toy_dataset) -> Dataset:
    return Dataset.open(toy_dataset)


@pytest.fixture(scope="module")
def bundle(dataset, tmp_path_factory) -> Bundle:
    store = ArtifactStore(tmp_path_factory.mktemp("linear"))
    return Bundle.open(store.open_bundle(bundles.make_bundle(store, dataset, dim=32))[0])


@pytest.fixture(scope="module")
def users(dataset) -> JudgedUsers:
    """Forty of the toy's users, with all they clicked."""
    table = dataset.interactions()
    row_of = {item_id: row for row, item_id in enumerate(dataset.item_ids)}
    histories: dict[str, list[int]] = {}
    for user_id, item_id in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        histories.setdefault(user_id, []).append(row_of[item_id])
    rows = [np.array(history) for history in histories.values()]
    return JudgedUsers.of(dataset, user_ids=list(histories), histories=rows, most=40, seed=0)


@pytest.fixture(scope="module")
def found(bundle, dataset, users) -> dict[str, Faithfulness]:
    return measure_faithfulness(bundle, dataset, users)


def test_a_method_that_is_exact_beats_random_order(found):
    for method in ("grad_x_input", "decomposition", "occlusion"):
        assert found[method].deletion_auc < found[method].random_deletion_auc - 0.02, method
        assert found[method].insertion_auc > found[method].random_insertion_auc + 0.02, method


def test_driver_accuracy_is_how_often_the_largest_share_is_the_driver(bundle, dataset, users, monkeypatch):
    def always_text(bundle, *, states_LMS, candidate_states_KMS, **_):
        num_candidates, num_modalities = candidate_states_KMS.shape[:2]
        interest_KM = np.zeros((num_candidates, num_modalities), np.float32)
        interest_KM[:, dataset.modality_names.index("text")] = 1.0
        scores_K, history_KL = np.zeros(num_candidates), np.zeros((num_candidates, len(states_LMS)))
        return SimpleNamespace(interest_KM=interest_KM, scores_K=scores_K, history_KL=history_KL)

    monkeypatch.setattr(faithfulness, "explain", always_text)
    found = measure_faithfulness(bundle, dataset, users, methods=["shapley"])["shapley"]
    counts = Counter(users.drivers)
    assert found.driver_accuracy == pytest.approx(counts["text"] / 40)
    assert found.driver_chance == pytest.approx(max(counts.values()) / 40)


def test_all_methods_are_measured_on_the_same_users(found):
    assert set(found) == set(METHODS)
    assert {values.num_users for values in found.values()} == {40}
    assert len({values.random_deletion_auc for values in found.values()}) == 1


def test_the_same_seed_gives_the_same_numbers(bundle, dataset, users, found):
    again = measure_faithfulness(bundle, dataset, users, methods=["grad_x_input"])
    assert again["grad_x_input"].driver_accuracy == found["grad_x_input"].driver_accuracy
    assert again["grad_x_input"].deletion_auc == pytest.approx(found["grad_x_input"].deletion_auc, abs=1e-6)


def test_progress_is_told(bundle, dataset, users):
    told = []
    few = JudgedUsers(users.histories[:3], users.drivers[:3])
    measure_faithfulness(bundle, dataset, few, methods=[], on_user=lambda *numbers: told.append(numbers))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_without_the_truth_there_is_no_driver_accuracy(bundle, dataset, users):
    unknown = JudgedUsers(users.histories[:3], [None] * 3)
    found = measure_faithfulness(bundle, dataset, unknown, methods=["grad_x_input"])["grad_x_input"]
    assert found.driver_accuracy is None
    assert found.driver_chance is None


def test_without_users_there_is_nothing(bundle, dataset):
    assert measure_faithfulness(bundle, dataset, JudgedUsers([], [])) == {}


def test_users_of_no_item_or_one_can_not_be_put_in_order(bundle, dataset):
    users = JudgedUsers([np.array([], np.int64), np.array([3])], ["visual", "text"])
    assert measure_faithfulness(bundle, dataset, users) == {}


def test_a_history_of_the_whole_catalogue_is_explained_all_the_same(tmp_path, users):
    dataset = Dataset.open(toy.make_dataset(tmp_path / "tiny", num_users=4, num_items=9))
    store = ArtifactStore(tmp_path / "store")
    bundle = Bundle.open(store.open_bundle(bundles.make_bundle(store, dataset))[0])
    found = measure_faithfulness(bundle, dataset, JudgedUsers([np.arange(9)], ["text"]), methods=["occlusion"])
    for values in found.values():
        assert np.isfinite(values.deletion_auc)


def test_the_judged_users_are_drawn_by_the_seed(dataset):
    ids = [f"u{row:04d}" for row in range(10)]
    histories = [np.array([row]) for row in range(10)]

    def draw(seed: int) -> list[int]:
        chosen = JudgedUsers.of(dataset, user_ids=ids, histories=histories, most=4, seed=seed)
        assert len(chosen) == 4
        truth = dataset.truth()
        assert chosen.drivers == [truth[ids[int(history[0])]] for history in chosen.histories]
        return [int(history[0]) for history in chosen.histories]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
