"""Baselines: closed forms by hand, and the toy's known right answer."""

import numpy as np
import pytest

from index.dataset import Dataset
from training import baselines as module
from training.baselines import ease, item_knn, run_baselines
from training.data.interactions import read_interactions
from training.data.split import SplitConfig, make_split

X = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]], float)


def test_ease_is_the_constrained_ridge_regression_of_each_item():
    weights = ease(X.T @ X, ridge=0.5)
    for item in range(4):
        others = [other for other in range(4) if other != item]
        design = X[:, others]
        solution = np.linalg.solve(design.T @ design + 0.5 * np.eye(3), design.T @ X[:, item])
        assert weights[others, item].tolist() == pytest.approx(solution.tolist(), rel=1e-5)
        assert weights[item, item] == 0


def test_item_knn_keeps_the_nearest_by_cosine():
    full = item_knn(X.T @ X, num_neighbours=4)
    assert full[0, 1] == pytest.approx(2 / np.sqrt(2 * 3))
    assert np.diag(full).tolist() == [0, 0, 0, 0]
    nearest = item_knn(X.T @ X, num_neighbours=1)
    assert (nearest > 0).sum(axis=0).tolist() == [1, 1, 1, 1]
    assert nearest[1, 0] == full[1, 0]


def test_an_item_nobody_has_is_no_neighbour():
    assert np.isfinite(item_knn(np.zeros((3, 3)), num_neighbours=2)).all()


def test_on_the_toy_they_beat_popularity(toy_dataset, monkeypatch):
    monkeypatch.setattr(module, "RIDGE", (50.0, 100.0))
    monkeypatch.setattr(module, "NUM_NEIGHBOURS", (20,))
    heard = []
    split = make_split(read_interactions(Dataset.open(toy_dataset)), SplitConfig(), seed=0)
    results = {
        result.name: result
        for result in run_baselines(split, on_progress=lambda what, done, total: heard.append((what, done, total)))
    }
    assert list(results) == ["popularity", "item_knn", "ease"]
    for name in ("item_knn", "ease"):
        assert results[name].test["recall@20"] > results["popularity"].test["recall@20"] + 0.2
    assert results["item_knn"].setting == "k=20"
    assert heard[-1] == ("ease", 2, 2)


def test_a_catalogue_too_large_for_all_pairs_is_refused(toy_dataset, monkeypatch):
    monkeypatch.setattr(module, "MAX_ITEMS", 59)
    split = make_split(read_interactions(Dataset.open(toy_dataset)), SplitConfig(), seed=0)
    with pytest.raises(ValueError, match="60 items, at most 59"):
        run_baselines(split)
