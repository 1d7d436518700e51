"""Explanations over a model whose scores split exactly: what is said, and what happens when nothing can be said."""

from dataclasses import replace

import numpy as np
import pytest

from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, InvalidQuery
from service.recommend.types import HistoryItem, ItemId, Query
from tests.unit.recommend.house import USER, House, ids, inline, right_answer


async def test_a_full_explanation_adds_up_and_names_every_past_item(house):
    slate = await house.recommend(history=inline("i3", "i4"), k=3, explain="full")
    explanation = slate.explanation
    assert [line.item_id for line in explanation.items] == ids(slate)
    assert sum(share.share for share in explanation.modality_interest) == pytest.approx(1)
    assert [past["item_id"] for past in explanation.history] == ["i3", "i4"]
    for item, line in zip(slate.items, explanation.items, strict=True):
        assert item.explanation is line
        assert line.score == pytest.approx(item.score, abs=1e-5)
        assert line.additive
        assert sum(line.contributions.values()) + line.residual == pytest.approx(line.score, abs=1e-5)
        for past in line.history:
            assert sum(past["by_modality"].values()) == pytest.approx(past["interest"], abs=1e-5)
    assert explanation.faithfulness == {"deletion_auc": 0.3, "random_deletion_auc": 0.5}
    assert "Associations, not causes." in explanation.caveats


async def test_a_summary_has_shares_and_reasons_only(house):
    slate = await house.recommend(history=inline("i3", "i4"), k=3, explain="summary")
    assert slate.explanation.history == ()
    assert slate.explanation.modality_interest
    for item in slate.items:
        assert (item.explanation.history, item.explanation.contributions) == ((), {})
        assert item.explanation.reasons
        assert {e for reason in item.explanation.reasons for e in reason.evidence_item_ids} <= {"i3", "i4"}


async def test_items_known_by_their_vectors_alone_are_explained_too(house):
    raw = {"visual": house.servable.raw["visual"][7]}
    history = (*inline("i3"), HistoryItem(ItemId("new"), modalities=raw))
    slate = await house.recommend(history=history, k=3, explain="full")
    new = slate.items[0].explanation.history[1]
    assert new["item_id"] == "new"
    assert new["by_modality"]["text"] == 0
    assert new["by_modality"]["visual"] != 0
    assert any("unknown to the catalogue" in caveat for caveat in slate.explanation.caveats)


async def test_popular_items_are_explained_as_just_that(house):
    slate = await house.recommend(k=3, explain="full")
    assert [reason.code for item in slate.items for reason in item.explanation.reasons] == ["popular"] * 3
    assert slate.explanation.modality_interest == ()
    assert "attribute" not in house.servable.calls


async def test_many_candidates_are_explained_in_groups_with_one_result():
    house = House(num_items=200)
    slate = await house.recommend(history=inline("i3", "i4"), k=100, explain="full")
    assert house.servable.calls.count("attribute") == 4
    assert [line.item_id for line in slate.explanation.items] == ids(slate)
    for item in slate.items:
        assert item.explanation.score == pytest.approx(item.score, abs=1e-5)


async def test_an_explanation_that_fails_is_left_out_of_a_recommendation(house):
    house.servable.fail["attribute"] = RuntimeError("boom")
    slate = await house.recommend(history=inline("i3"), explain="full")
    assert slate.degraded == ("explanation_failed",)
    assert slate.items
    assert slate.explanation is None


async def test_an_explanation_that_is_not_finite_is_left_out(house):
    attribute = house.servable.attribute

    def broken(method, **kwargs):
        return replace(attribute(method, **kwargs), grid_KLM=np.full((20, 1, 2), np.nan, dtype=np.float32))

    house.servable.attribute = broken
    assert (await house.recommend(history=inline("i3"), explain="full")).degraded == ("explanation_failed",)


async def test_an_explanation_that_would_be_late_is_left_out_of_a_recommendation(house):
    now = [0.0]
    house.servable.before["attribute"] = lambda: now.__setitem__(0, 0.995)
    deadline = Deadline.after(1.0, clock=lambda: now[0])
    slate = await house.recommender.recommend(Query(history=inline("i3"), explain="full"), deadline=deadline)
    assert slate.degraded == ("explanation_late",)
    assert slate.items


async def test_an_explanation_that_is_late_is_an_error_where_it_is_the_answer(house):
    now = [0.0]
    house.servable.before["attribute"] = lambda: now.__setitem__(0, 1.5)
    deadline = Deadline.after(1.0, clock=lambda: now[0])
    with pytest.raises(DeadlineExceeded):
        await house.recommender.explain(Query(history=inline("i3")), deadline=deadline)


async def test_named_items_are_scored_and_explained_whatever_the_filters_say(house):
    slate, explanation = await house.explain(
        history=inline("i3", "i4"), item_ids=tuple(map(ItemId, ("i9", "i3", "i9"))), exclude_item_ids=frozenset({"i9"})
    )
    order = [item_id for item_id in right_answer(house.servable, [3, 4], without=set()) if item_id in {"i3", "i9"}]
    assert ids(slate) == [line.item_id for line in explanation.items] == order
    assert explanation.items[0].history


async def test_a_named_item_that_is_unknown_is_refused_by_place(house):
    with pytest.raises(InvalidQuery) as refused:
        await house.explain(history=inline("i3"), item_ids=(ItemId("i1"), ItemId("nope")))
    assert refused.value.pointer == "/item_ids/1"


async def test_named_items_of_a_cold_user_have_their_popularity(house):
    slate, explanation = await house.explain(subject=USER, item_ids=(ItemId("i9"), ItemId("i2")))
    assert ids(slate) == ["i2", "i9"]
    assert {item.source for item in slate.items} == {"popular"}
    assert explanation.modality_interest == ()
