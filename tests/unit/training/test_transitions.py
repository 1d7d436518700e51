"""SLIT's counts are those of its definition, whatever the block, and its weights solve the regression."""

import numpy as np
import pytest
import torch

from training.factors import transitions as module
from training.factors.closed_form import slit_factors
from training.factors.encoders import DecayedSumEncoder
from training.factors.transitions import slit, transitions

NUM_ITEMS = 12
PAST, FUTURE = 2.0, 0.5


@pytest.fixture
def histories() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_ITEMS, length) for length in (0, 1, 2, 7, 40)]  # the longest has items again


def rows(histories) -> tuple[np.ndarray, np.ndarray]:
    """A row of S and of T for each cut, item by item."""
    past, future = [], []
    for history in histories:
        for cut in range(1, len(history)):
            before, after = np.zeros(NUM_ITEMS), np.zeros(NUM_ITEMS)
            for place, item in enumerate(history):
                if place < cut:
                    before[item] += 2 ** (-(cut - 1 - place) / PAST)
                else:
                    after[item] += 2 ** (-(place - cut) / FUTURE)
            past.append(before)
            future.append(after)
    return np.array(past), np.array(future)


@pytest.mark.parametrize("block", [1, 3, 256])
def test_every_cut_counts_once_and_nearer_items_more(block, histories, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    past, future = rows(histories)
    gram, follow = transitions(histories, num_items=NUM_ITEMS, past=PAST, future=FUTURE)
    # What is further than sixteen half-lives is left out.
    np.testing.assert_allclose(gram, past.T @ past, atol=1e-3)
    np.testing.assert_allclose(follow, past.T @ future, atol=1e-3)


def test_the_weights_are_those_of_the_regression(histories):
    past, future = rows(histories)
    weights = slit(past.T @ past, past.T @ future, ridge=3.0)
    # The same as least squares on rows that say that all weights are nothing.
    left = np.concatenate([past, np.sqrt(3.0) * np.eye(NUM_ITEMS)])
    right = np.concatenate([future, np.zeros((NUM_ITEMS, NUM_ITEMS))])
    np.testing.assert_allclose(weights, np.linalg.lstsq(left, right, rcond=None)[0], atol=1e-8)


def test_all_directions_lose_nothing_and_fewer_lose_least_of_what_is_predicted(histories):
    counts = transitions(histories, num_items=NUM_ITEMS, past=PAST, future=FUTURE)
    whole = slit(*counts, ridge=3.0)
    found = slit_factors(*counts, ridge=3.0, dim=NUM_ITEMS)
    np.testing.assert_allclose(found.rows_ID @ found.items_ID.T, whole, atol=1e-9)
    assert found.kept == pytest.approx(1)
    gram, unit = counts[0], np.sqrt(np.maximum(np.diag(counts[0]), 1))
    left, values, right = np.linalg.svd(whole)

    def lost(rows: np.ndarray, items: np.ndarray) -> float:
        error = (rows @ items.T - whole) / unit
        return float(np.trace(error.T @ gram @ error))

    losses = []
    for dim in (1, 3, 6):
        few = slit_factors(*counts, ridge=3.0, dim=dim)
        assert few.rows_ID.shape == few.items_ID.shape == (NUM_ITEMS, dim)
        losses.append(lost(few.rows_ID, few.items_ID))
        assert losses[-1] < lost(left[:, :dim] * values[:dim], right[:dim].T)
    assert losses == sorted(losses, reverse=True)


def test_a_live_history_is_read_as_a_row_of_the_regression_with_holes_and_padding(histories):
    past, _ = rows(histories[-1:])
    read = DecayedSumEncoder(NUM_ITEMS, half_life=PAST)
    items = torch.eye(NUM_ITEMS)[torch.from_numpy(histories[-1][:-1])]
    expected = torch.from_numpy(past[-1]).float()
    mask = torch.ones(1, len(items), dtype=torch.bool)
    torch.testing.assert_close(read.queries(items[None], mask)[0, 0], expected)
    junk = torch.full((1, NUM_ITEMS), 7.0)
    spread = torch.cat([items[:5], junk, items[5:], junk, junk])[None]
    places = torch.ones(1, spread.shape[1], dtype=torch.bool)
    places[0, [5, -1, -2]] = False
    torch.testing.assert_close(read.queries(spread, places)[0, 0], expected)
    assert not read.queries(spread, torch.zeros_like(places)).any()
