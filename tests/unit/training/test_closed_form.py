"""Two tables give the weights of EASE, SLIT and item-kNN back: exactly with all directions, most of them with a few."""

import numpy as np
import pytest

from tests.factor_runs import config_of, run
from training.baselines import ease, item_knn
from training.export import graphs_of
from training.factors.closed_form import ease_factors, nearest_factors

NUM_ITEMS = 30


@pytest.fixture
def gram() -> np.ndarray:
    seen = np.random.default_rng(0).random((200, NUM_ITEMS)) < np.linspace(0.02, 0.4, NUM_ITEMS)
    seen[:, 3] = False  # an item that nobody has
    counts = seen.astype(np.float64)
    return counts.T @ counts


def off_diagonal(weights: np.ndarray) -> np.ndarray:
    return weights[~np.eye(len(weights), dtype=bool)]


@pytest.mark.parametrize("dim", [NUM_ITEMS, NUM_ITEMS + 10])
@pytest.mark.parametrize("kind", ["ease", "item_knn"])
def test_all_directions_lose_nothing(kind, dim, gram):
    if kind == "ease":
        found, expected = ease_factors(gram, ridge=20.0, dim=dim), ease(gram, ridge=20.0)
    else:
        expected = item_knn(gram, num_neighbours=7)
        found = nearest_factors(expected.astype(np.float64), dim=dim)
    assert found.rows_ID.shape == found.items_ID.shape == (NUM_ITEMS, NUM_ITEMS)
    assert found.kept == pytest.approx(1)
    np.testing.assert_allclose(off_diagonal(found.rows_ID @ found.items_ID.T), off_diagonal(expected), atol=1e-6)


@pytest.mark.parametrize("kind", ["ease", "item_knn"])
def test_more_directions_keep_more_and_the_same_again(kind, gram):
    def factors(dim: int):
        if kind == "ease":
            return ease_factors(gram, ridge=20.0, dim=dim)
        return nearest_factors(item_knn(gram, num_neighbours=7).astype(np.float64), dim=dim)

    kept = [factors(dim).kept for dim in (2, 8, 20, NUM_ITEMS)]
    assert kept == sorted(kept)
    assert 0 < kept[0] < kept[2] < 1
    np.testing.assert_array_equal(factors(8).items_ID, factors(8).items_ID)


def test_an_item_that_nobody_has_is_nothing(gram):
    for factors in (
        ease_factors(gram, ridge=20.0, dim=NUM_ITEMS),
        nearest_factors(item_knn(gram, num_neighbours=7).astype(np.float64), dim=NUM_ITEMS),
    ):
        assert np.abs(np.delete(factors.rows_ID @ factors.items_ID[3], 3)).max() < 1e-6


@pytest.mark.parametrize("kind", ["ease", "slit", "item_knn"])
def test_what_a_past_item_adds_is_its_weight_and_all_together_are_the_score(kind, toy_dataset, tmp_path):
    config = config_of(kind, "model.dim=60")
    trained = run(config, toy_dataset, tmp_path / "checkpoints")
    assert trained.state.reports[0].facts["kept"] == pytest.approx(1)
    tables, parts = trained.served.tables, trained.served.parts
    past, candidates = [4, 9, 17], [0, 30, 59]
    explainer = graphs_of(trained.served.model)["explainer"]
    given = {name: np.zeros_like(tensor[:1].numpy()) for name, tensor in explainer.inputs.items()}
    given["states"][0, :3], given["presence"][0, :3] = parts.states_IPS[past], parts.presence_IP[past]
    given["mask"][0, :3] = True
    given["candidate_states"] = parts.states_IPS[candidates].numpy()
    given["candidate_presence"] = parts.presence_IP[candidates].numpy()
    found = explainer(given)
    weights_KL = (tables.items_ID[candidates] @ tables.rows_IH[past].T).numpy()
    if kind == "slit":
        weights_KL *= 0.5 ** (np.array([2, 1, 0]) / config.model.past)
    np.testing.assert_allclose(found["item_grad_x_input"][0, :, :3], weights_KL, atol=1e-6)
    np.testing.assert_allclose(found["scores"][0], weights_KL.sum(axis=1), atol=1e-6)


def test_a_catalogue_too_large_for_all_pairs_is_refused(toy_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("training.factors.closed_form.MAX_ITEMS", 59)
    with pytest.raises(ValueError, match=r"model.kind = ease needs all pairs of items in memory: 60 items, at most 59"):
        run(config_of("ease"), toy_dataset, tmp_path)
