"""The numbers behind the pictures of Demure's paper: each is what its name says; and every study can be configured."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.demure_figures import (
    Read,
    concordance,
    differences,
    figures_of,
    markdown,
    own_neighbours,
    ratings_of,
    read,
    within,
)
from benchmarks.studies import STUDIES
from index.dataset import Dataset
from tests import toy
from training.config import load_config, parse_config, with_settings
from training.progress import Unwatched
from training.trainer import train


def made(**values) -> Read:
    """Return two users with two items each; the second one's second place is empty."""
    usual = {
        "items_BL": np.array([[0, 1], [2, 0]]),
        "mask_BL": np.array([[True, True], [True, False]]),
        "user_BD": np.zeros((2, 2)),
        "vectors_ND": np.eye(3, 2) + 0.1,
        "interest_BL": np.array([[0.2, 0.6], [0.5, 9.0]]),
        "item_weight_BL": np.array([[0.25, 0.75], [1.0, 0.0]]),
        "slot_weight_NM": np.array([[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]]),
        "present_NM": np.array([[True, True], [True, False], [True, True]]),
    }
    return Read(**{**usual, **values})


CONFIG = """
[model]
kind = "demure"
dim = 16
history_length = 8
[split]
seed = 0
[optim]
epochs = 1
batch_size = 64
"""
RATINGS = np.array([[4.0, 5.0], [5.0, np.nan]])


def test_scores_are_brought_to_the_scale_of_ratings_within_a_history():
    np.testing.assert_allclose(differences(made(), RATINGS), [[4.0, 0.0], [5.0, np.nan]])


def test_concordance_is_one_half_by_chance_and_counts_unlike_ratings_alone():
    assert concordance(made(), RATINGS) == 1
    assert concordance(made(interest_BL=np.array([[0.6, 0.2], [1.0, 1.0]])), RATINGS) == 0
    assert concordance(made(interest_BL=np.ones((2, 2))), RATINGS) == 0.5


def test_variance_within_is_of_rows_with_more_than_one():
    assert within(made().item_weight_BL, made().mask_BL) == pytest.approx(0.0625)
    assert within(made().slot_weight_NM, made().present_NM) == pytest.approx((0 + 0.16) / 2)


def test_neighbours_of_users_who_are_apart_are_their_own():
    vectors_ND = np.repeat([[1.0, 0.0], [0.0, 1.0]], 12, axis=0) + np.linspace(0, 0.1, 24)[:, None]
    apart = made(items_BL=np.arange(24).reshape(2, 12), mask_BL=np.ones((2, 12), bool), vectors_ND=vectors_ND)
    mixed = made(items_BL=np.arange(24).reshape(12, 2).T, mask_BL=np.ones((2, 12), bool), vectors_ND=vectors_ND)
    assert own_neighbours(apart) == 1
    assert own_neighbours(mixed) < 0.6


def test_a_trained_network_is_read_whole_and_told_over_its_runs(tmp_path):
    dataset = Dataset.open(toy.make_dataset(tmp_path / "data"))
    with pytest.raises(ValueError, match="rating"):
        ratings_of(dataset, None, made())
    dataset = with_ratings(dataset)
    reads = []
    for seed in (0, 1):
        config = parse_config(CONFIG, [f"seed={seed}"])
        trained = train(config, dataset, checkpoints=tmp_path / f"{seed}", observer=Unwatched())
        reads.append(read(trained, dataset))
    ratings_BL = ratings_of(dataset, trained, reads[0])
    assert np.array_equal(np.isfinite(ratings_BL), reads[0].mask_BL)
    for one in reads:
        np.testing.assert_allclose(one.item_weight_BL.sum(axis=1), one.mask_BL.any(axis=1), atol=1e-5)
        np.testing.assert_allclose(one.slot_weight_NM.sum(axis=1), one.present_NM.any(axis=1), atol=1e-5)
    figures = figures_of(reads, ratings_BL)
    assert all(mean >= 0 for mean, _ in figures.values())
    assert figures["attention to items, variance over runs"][0] > 0
    assert all(name in markdown({"Demure": figures}) for name in figures)


@pytest.mark.parametrize("name", STUDIES)
def test_all_points_of_a_study_are_runs(name):
    study = STUDIES[name]
    for line in study.lines.values():
        for value in study.values:
            config = load_config(line.config or study.config, [])
            with_settings(config, {**line.settings, **({study.key: value} if study.key else {})})


def with_ratings(dataset: Dataset) -> Dataset:
    """Give each interaction of the folder a rating of 1 to 5."""
    path = dataset.path / "interactions.parquet"
    table = pq.read_table(path)
    ratings = np.random.default_rng(0).integers(1, 6, table.num_rows).astype(np.float64)
    pq.write_table(table.append_column("rating", pa.array(ratings)), path)
    return Dataset.open(dataset.path)
