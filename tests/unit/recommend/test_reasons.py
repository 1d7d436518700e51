"""Reasons and caveats: what is said follows from the numbers, and says no more than the method knows."""

import re

import numpy as np
import pytest

from service.recommend.reasons import caveats_for, reasons_for

NAMES = ("visual", "text")
PAST = ("a", "b", "c", "d", "e")
TITLES = {item_id: f"Title {item_id}" for item_id in PAST}
GRID = np.array([[0.1, 0.0], [0.5, 0.1], [-0.2, 0.9], [0.2, 0.0], [0.3, 0.0]], dtype=np.float32)
METHODS = ("interest_gradient", "grad_x_input", "decomposition", "occlusion", "shapley")
CAUSAL = re.compile(r"because|caused|due to|why you|leads to|raises|lowers|drives", re.IGNORECASE)


def reasons(method, *, interest=None, grid=GRID, contributions=None):
    return reasons_for(
        method,
        names=NAMES,
        num_modalities=2,
        item_ids=PAST,
        interest_M=np.asarray(grid.sum(axis=0) if interest is None else interest, dtype=np.float32),
        grid_LM=grid,
        contributions={"visual": 0.7, "text": 0.2} if contributions is None else contributions,
        titles=TITLES,
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_evidence_is_what_weighs_most_in_the_modality_that_is_named(method):
    first = reasons(method, interest=[0.1, 0.9])[0]
    assert first.code == "history_modality"
    assert "text" in first.text
    assert first.evidence_item_ids == ("c", "b")
    assert "Title c" in first.text


def test_at_most_three_past_items_are_named_the_strongest_first():
    first = reasons("grad_x_input", interest=[0.9, 0.1])[0]
    assert first.evidence_item_ids == ("b", "e", "d")


def test_the_history_side_of_a_decomposition_comes_from_its_grid():
    grid = np.array([[0.1, 0.0], [0.5, 0.1], [-0.2, 0.2], [0.2, 0.0], [0.3, 0.0]], dtype=np.float32)
    first = reasons("decomposition", interest=[0.0, 5.0], grid=grid)[0]
    assert "visual" in first.text


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_speaks_for_an_item_nothing_is_said(method):
    against = -np.abs(GRID) - 0.1
    assert reasons(method, grid=against, contributions={"visual": -1.0, "text": -0.5}) == ()


@pytest.mark.parametrize("method", ["interest_gradient", "grad_x_input", "decomposition"])
def test_words_are_not_causal_where_nothing_was_taken_away(method):
    for reason in reasons(method):
        assert not CAUSAL.search(reason.text)
        assert "would be" not in reason.text
    assert "Associations, not causes." in caveats_for(
        method, measured=True, additive=True, any_popular=False, any_brought=False
    )


def test_an_occlusion_says_what_the_score_would_be_without_exactly_one_thing():
    first, second = reasons("occlusion", interest=[0.1, 0.9])
    assert first.text == "Without the text of “Title c” in the history, the score would be 0.9 lower."
    assert second.text == "Without its own visual the score would be 0.7 lower."


def test_shapley_speaks_of_the_history_alone():
    (only,) = reasons("shapley", interest=[0.1, 0.9])
    assert only.text.startswith("The text of the history adds 0.9 to the score")


def test_caveats_name_what_a_reader_must_know():
    everything = caveats_for("occlusion", measured=False, additive=False, any_popular=True, any_brought=True)
    assert len(everything) == 5
    assert caveats_for("shapley", measured=True, additive=None, any_popular=False, any_brought=False) == ()


def added(method, *, grid, contributions):
    return reasons_for(
        method,
        names=(*NAMES, "id", "bias"),
        num_modalities=2,
        item_ids=PAST[:2],
        interest_M=grid.sum(axis=0),
        grid_LM=grid,
        contributions=contributions,
        titles=TITLES,
    )


def test_parts_that_the_model_adds_are_called_by_what_they_are():
    grid = np.array([[0, 0, 0.5, 0], [0, 0, 0.2, 0]], dtype=np.float32)
    history, own = added("decomposition", grid=grid, contributions=dict.fromkeys(NAMES, 0.1) | {"id": 0, "bias": 0.9})
    assert history.text == "Associated most with the learned identity of “Title a” and “Title b” in the history."
    assert own.text == "Its general appeal goes with the largest part of the score."
    history, own = added("occlusion", grid=grid, contributions={"visual": 0, "text": 0, "id": 0.9, "bias": 0})
    assert history.text.startswith("Without the learned identity of “Title a” in the history")
    assert own.text == "Without its own learned identity the score would be 0.9 lower."


def test_a_modality_of_the_data_that_is_called_id_keeps_its_name():
    reason = reasons_for(
        "decomposition",
        names=("id",),
        num_modalities=1,
        item_ids=PAST[:1],
        interest_M=np.ones(1, np.float32),
        grid_LM=np.ones((1, 1), np.float32),
        contributions={"id": 1.0},
        titles=TITLES,
    )
    assert [one.text for one in reason] == [
        "Associated most with the id of “Title a” in the history.",
        "Of its own modalities, id goes with the largest part of the score.",
    ]


def test_without_a_history_the_caveat_says_where_the_scores_come_from():
    said = caveats_for(
        "decomposition", measured=False, additive=True, any_popular=False, any_brought=False, from_history=False
    )
    assert "There is no history: the scores come from what the model has learned of this user." in said
    assert not any("faithfulness" in caveat for caveat in said)
