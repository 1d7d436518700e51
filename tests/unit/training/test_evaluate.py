"""Ranking the catalogue: known answers, seen items, and pieces that do not matter."""

import numpy as np
import pytest
import torch

from index.dataset import Dataset
from index.metrics import pad_targets
from training import evaluate as module
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import HeldOut, all_users
from training.evaluate import evaluate_model, evaluate_scores, judge_scores, means
from training.models import BaseConfig

SCORES = torch.tensor([[0.1, 0.9, 0.8, 0.2], [0.4, 0.3, 0.2, 0.1]])


def users(histories, targets):
    return HeldOut(
        np.arange(len(histories)),
        tuple(np.array(rows, np.int64) for rows in histories),
        pad_targets([np.array(rows) for rows in targets]),
    )


def test_seen_items_are_never_recommended_unless_kept():
    held = users([[1], [0, 1]], [[2], [3]])
    masked = evaluate_scores(lambda piece: SCORES[piece].clone(), held, num_items=4, cutoffs=(1, 2))
    kept = evaluate_scores(lambda piece: SCORES[piece].clone(), held, num_items=4, cutoffs=(1, 2), seen="keep")
    assert (masked["recall@1"], masked["recall@2"]) == (0.5, 1.0)
    assert (kept["recall@1"], kept["recall@2"]) == (0.0, 0.5)


def test_scores_below_zero_rank_like_others():
    held = users([[0]], [[3]])
    scores = torch.tensor([[9.0, -3.0, -2.0, -1.0]])
    assert evaluate_scores(lambda _: scores.clone(), held, num_items=4, cutoffs=(1,))["recall@1"] == 1.0


def test_a_cut_off_beyond_the_catalogue_counts_what_there_is():
    held = users([[0, 1, 2]], [[3]])
    found = evaluate_scores(lambda piece: SCORES[:1].clone(), held, num_items=4, cutoffs=(50,))
    assert found["recall@50"] == 1.0
    assert found["ndcg@50"] == 1.0
    assert found["precision@50"] == pytest.approx(1 / 50)


def test_pieces_give_the_same_as_the_whole(toy_dataset, monkeypatch):
    dataset = Dataset.open(toy_dataset)
    catalogue = Catalogue(dataset)
    torch.manual_seed(0)
    model = BaseConfig(dim=8, history_length=6).build(catalogue.features)
    held = all_users(read_interactions(dataset))
    whole = evaluate_model(model, catalogue, held, cutoffs=(5, 20))
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 60 * 7)
    monkeypatch.setattr("training.data.catalogue._CHUNK_ROWS", 13)
    assert evaluate_model(model, catalogue, held, cutoffs=(5, 20)) == pytest.approx(whole)


def test_a_catalogue_that_stays_on_disk_gives_the_same(toy_dataset, monkeypatch):
    from training.data.conditioning import ConditioningConfig

    dataset = Dataset.open(toy_dataset)
    resident = Catalogue(dataset)
    monkeypatch.setattr("training.data.catalogue._RESIDENT_BYTES", 0)
    on_disk = Catalogue(dataset)
    for catalogue in (resident, on_disk):
        catalogue.condition(ConditioningConfig())
    rows = torch.tensor([5, 0, 59, 7])
    for ours, theirs in zip(resident.inputs(rows)[0], on_disk.inputs(rows)[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(resident.inputs(rows)[1], on_disk.inputs(rows)[1])


def test_what_each_user_got_has_the_mean_that_is_told():
    held = users([[1], [0, 1]], [[2], [3]])
    judged = judge_scores(lambda piece: SCORES[piece].clone(), held, num_items=4, cutoffs=(1, 2))
    assert judged["recall@1"].tolist() == [1.0, 0.0]
    assert means(judged) == evaluate_scores(lambda piece: SCORES[piece].clone(), held, num_items=4, cutoffs=(1, 2))
