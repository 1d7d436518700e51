"""A trained model's explanations name the modality that made the user click: the toy knows which one it is."""

from pathlib import Path

import numpy as np
import pytest

from index.dataset import Dataset
from index.explain import METHODS
from tests.torch_bundle import TorchBundle
from training.config import parse_config
from training.faithfulness import JudgedUsers, measure_faithfulness
from training.progress import Unwatched
from training.trainer import train

RUN = """
name = "toy"
[model]
kind = "base"
dim = 16
history_length = 12
[optim]
batch_size = 128
epochs = 30
lr = 1e-2
[eval]
cutoffs = [10]
monitor = "recall@10"
every_epochs = 30
"""


@pytest.fixture(scope="module")
def found(toy_dataset: Path, tmp_path_factory):
    """What is measured on the users that the model was not trained on."""
    dataset = Dataset.open(toy_dataset)
    run = train(parse_config(RUN), dataset, checkpoints=tmp_path_factory.mktemp("run"), observer=Unwatched())
    users = np.concatenate([run.split.valid.users_B, run.split.test.users_B])
    judged = JudgedUsers.of(
        dataset,
        user_ids=[run.interactions.user_ids[user] for user in users],
        histories=[*run.split.valid.histories, *run.split.test.histories],
        most=len(users),
        seed=0,
    )
    return measure_faithfulness(TorchBundle(run.model), dataset, judged)


def test_the_default_method_finds_the_planted_driver(found):
    assert found[METHODS[0]].driver_accuracy >= 0.9
    assert found[METHODS[0]].driver_chance < 0.6
    assert found["shapley"].driver_accuracy >= 0.9


def test_the_default_method_puts_past_items_in_a_better_order_than_chance(found):
    measured = found[METHODS[0]]
    assert measured.deletion_auc < measured.random_deletion_auc
    assert measured.insertion_auc > measured.random_insertion_auc
