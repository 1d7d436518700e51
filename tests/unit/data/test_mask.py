"""Masked copies: how much is gone and what, that nothing else has changed, and that shares are nested."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.dataset import INTERACTIONS_FILE, ITEMS_FILE, Dataset
from index.dataset_validate import validate
from training.data.mask import mask_dataset


@pytest.fixture
def source(toy_dataset):
    return Dataset.open(toy_dataset)


def absent(dataset):
    return {name: set(np.flatnonzero(~dataset.presence(name)).tolist()) for name in dataset.modality_names}


def test_each_modality_loses_its_share_and_its_vectors_and_nothing_else(source, tmp_path):
    made = mask_dataset(source, tmp_path / "masked", share=0.4, seed=1)
    assert validate(made.path) == []
    for name in source.modality_names:
        before, after = source.presence(name), made.presence(name)
        assert after.sum() == before.sum() - round(0.4 * before.sum())
        assert not (after & ~before).any()
        assert made.features(name).dtype == source.features(name).dtype
        assert np.array_equal(made.features(name)[after], source.features(name)[after])
        assert not made.features(name)[~after].any()
    for file in (ITEMS_FILE, INTERACTIONS_FILE):
        assert pq.read_table(made.path / file).equals(pq.read_table(source.path / file))
    assert made.truth() == source.truth()
    assert made.manifest.name == "toy-masked-0.4"
    assert made.manifest.description == (
        "Checkerboard with a known right answer. 40 % of what items have of visual, text, category is marked absent, "
        "at random with seed 1."
    )
    assert [one.source for one in made.manifest.modalities] == ["toy"] * 3


def test_what_is_masked_at_a_share_is_masked_at_a_larger_one_until_nothing_is_left(source, tmp_path):
    shares = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    gone = [absent(mask_dataset(source, tmp_path / str(share), share=share)) for share in shares]
    assert gone[0] == absent(source)
    for less, more in pairwise(gone):
        assert all(less[name] < more[name] for name in less)
    assert all(len(rows) == source.num_items for rows in gone[-1].values())
    assert validate(tmp_path / "1.0") == []


def test_modalities_are_masked_apart(source, tmp_path):
    all_of_them = absent(mask_dataset(source, tmp_path / "all", share=0.5))
    text_alone = absent(mask_dataset(source, tmp_path / "text", share=0.5, modalities=["text"]))
    assert text_alone == {**absent(source), "text": all_of_them["text"]}
    assert all_of_them["visual"] != all_of_them["category"]
    other_seed = absent(mask_dataset(source, tmp_path / "seed", share=0.5, seed=1))
    assert other_seed["text"] != all_of_them["text"]
