"""The toy that other tests stand on has the right answer that it promises."""

import numpy as np

from index.dataset import Dataset
from index.dataset_validate import validate
from tests import toy


def test_the_toy_is_valid_and_the_same_every_time(tmp_path):
    one, two = toy.make_dataset(tmp_path / "one"), toy.make_dataset(tmp_path / "two")
    other = toy.make_dataset(tmp_path / "other", seed=1)
    assert validate(one) == []
    assert Dataset.open(one).fingerprint() == Dataset.open(two).fingerprint() != Dataset.open(other).fingerprint()


def test_users_click_only_their_style_and_leave_some_of_it(toy_dataset):
    dataset, truth = Dataset.open(toy_dataset), toy.truth(toy_dataset)
    rows = {item_id: row for row, item_id in enumerate(dataset.item_ids)}
    table = dataset.interactions()
    clicked = {user: [] for user in truth.user_ids}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        clicked[user].append(rows[item])
    for user, modality, style in zip(truth.user_ids, truth.user_modality, truth.user_style, strict=True):
        assert len(clicked[user]) == toy.EVENTS_PER_USER
        assert set(truth.item_style[modality][clicked[user]]) == {style}
        assert (truth.item_style[modality] == style).sum() > toy.EVENTS_PER_USER
    assert dataset.truth() == dict(zip(truth.user_ids, truth.user_modality, strict=True))


def test_a_few_items_lack_a_modality_and_styles_are_told_apart(toy_dataset):
    dataset, truth = Dataset.open(toy_dataset), toy.truth(toy_dataset)
    for name in toy.MODALITIES:
        styles = truth.item_style[name]
        np.testing.assert_array_equal(dataset.presence(name), styles >= 0)
        features = dataset.features(name)[styles >= 0]
        centres = np.stack([features[styles[styles >= 0] == style].mean(axis=0) for style in range(toy.NUM_STYLES)])
        nearest = ((features[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(nearest, styles[styles >= 0])
    assert (~dataset.presence("visual")).sum() == (~dataset.presence("text")).sum() == 3
