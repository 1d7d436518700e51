"""How old behaviour is: from stored events and inline histories to a model that counts an older item for less."""

import numpy as np
import pytest

from service.adapters.slate_json import read_slate, write_slate
from service.recommend.deadline import Deadline
from service.recommend.history import resolve_one
from service.recommend.job import Job
from service.recommend.ports import StoredHistory
from service.recommend.types import Event, HistoryItem, ItemId, Query, Without
from tests.fakes import FakeRanker
from tests.unit.recommend.house import USER, House, ids, inline
from tests.unit.recommend.test_shown import Kept

NOW = 1_700_000_000.0


def timed(*pairs) -> tuple[HistoryItem, ...]:
    return tuple(HistoryItem(ItemId(item_id), moment) for item_id, moment in pairs)


def aged(house: House) -> House:
    house.servable.reads_ages = True
    return house


@pytest.fixture
def old() -> House:
    """A house whose model reads ages."""
    return aged(House())


def job(house: House, *history: HistoryItem, stored: StoredHistory | None = None, **query) -> Job:
    asked = Query(subject=USER, history=history, **query)
    return Job(house.servable, asked, Deadline.after(5), stored or StoredHistory())


def ages(house: House, *history: HistoryItem, **given) -> dict[str, float]:
    used = resolve_one(job(house, *history, **given)).basis.history
    return dict(zip(used.item_ids, used.ages_L.tolist(), strict=True))


def right_answer(servable, past: dict[int, float], *, without=None) -> list[str]:
    vectors = servable.history(np.arange(servable.num_items))
    user = np.mean([vectors[row] / (1 + age) for row, age in past.items()], axis=0)
    order = np.argsort(-(vectors @ user), kind="stable")
    return [f"i{row}" for row in order if row not in (without or past)]


async def saw(house: House, *pairs) -> None:
    await house.store.append(
        [Event(f"e{place}", USER, ItemId(item), "click", moment) for place, (item, moment) in enumerate(pairs)]
    )


async def test_a_model_that_reads_no_ages_is_given_none(house):
    resolved = resolve_one(job(house, *timed(("i3", NOW), ("i9", NOW + 5))))
    assert resolved.past.occurred_at == ()
    assert resolved.basis.history.ages_L is None


async def test_stored_events_and_what_comes_with_the_request_are_as_old_as_they_say(old):
    await saw(old, ("i3", NOW), ("i9", NOW + 2.5))
    answer = await old.recommend(subject=USER, history=timed(("i14", NOW + 4)), k=50)
    assert ids(answer) == right_answer(old.servable, {3: 4.0, 9: 1.5, 14: 0.0})
    assert answer.degraded == ()


async def test_the_same_history_at_another_time_gets_the_same_answer(old):
    first = await old.recommend(history=timed(("i3", NOW), ("i9", NOW + 3)), k=50)
    later = await old.recommend(history=timed(("i3", NOW + 1e6), ("i9", NOW + 1e6 + 3)), k=50)
    assert first.items == later.items
    other = await old.recommend(history=timed(("i3", NOW), ("i9", NOW + 40)), k=50)
    assert ids(other) != ids(first)


def test_an_entry_without_a_time_is_as_old_as_the_one_before_it_and_at_the_start_as_the_first_that_has_one(old):
    history = (*inline("i1"), *timed(("i2", NOW)), *inline("i3"), *timed(("i4", NOW + 9)), *inline("i5"))
    assert ages(old, *history) == {"i1": 9, "i2": 9, "i3": 9, "i4": 0, "i5": 0}
    stored = StoredHistory((ItemId("i7"), ItemId("i8")), (NOW, NOW + 6))
    assert ages(old, *inline("i9"), stored=stored) == {"i7": 6, "i8": 0, "i9": 0}
    assert ages(old, *inline("i1", "i2")) == {"i1": 0, "i2": 0}


def test_an_item_that_occurs_again_is_as_old_as_at_its_latest_place(old):
    assert ages(old, *timed(("i1", NOW), ("i2", NOW + 2), ("i1", NOW + 7))) == {"i2": 5, "i1": 0}


def test_ages_are_counted_among_what_is_encoded(old):
    past = [(f"i{row}", NOW + row) for row in range(30)]
    found = ages(old, *timed(*past, ("nobody knows", NOW + 1e6)))
    length = old.servable.history_length
    assert list(found.items()) == [(f"i{row}", 29 - row) for row in range(30 - length, 30)]


def test_what_is_listed_before_something_older_is_no_younger_than_none(old):
    assert ages(old, *timed(("i1", NOW + 8)), *timed(("i2", NOW))) == {"i1": 0, "i2": 8}


async def test_what_is_switched_off_leaves_the_others_as_old_as_they_were(old):
    without = Without((), frozenset([ItemId("i9")]))
    query = Query(history=timed(("i3", NOW), ("i14", NOW + 2), ("i9", NOW + 5)), without=without, k=50)
    found = await old.recommender.what_if(query, deadline=Deadline.after(5))
    expected = right_answer(old.servable, {3: 5.0, 14: 3.0}, without={3, 14, 9})
    assert ids(found.after) == expected


async def test_explanations_are_of_the_same_ages(old):
    history = timed(("i3", NOW), ("i9", NOW + 3))
    slate = await old.recommend(history=history, k=4)
    _, explanation = await old.explain(history=history, k=4)
    assert [line.score for line in explanation.items] == pytest.approx([item.score for item in slate.items], abs=1e-5)


@pytest.mark.parametrize("late", [False, True], ids=["before it is written", "from the store"])
async def test_what_was_shown_is_explained_with_the_ages_that_it_was_made_from(late):
    house = aged(Kept())
    slate = await house.recommend(history=timed(("i3", NOW), ("i9", NOW + 3)), k=4, store=True)
    if late:
        await house.written()
    _, explanation = await house.explained(slate)
    assert [line.score for line in explanation.items] == pytest.approx([item.score for item in slate.items], abs=1e-5)


async def test_a_kept_slate_has_its_ages_and_one_from_before_there_were_any_has_none():
    house = aged(Kept())
    slate = await house.recommend(history=timed(("i3", NOW), ("i9", NOW + 3)), k=4, store=True)
    shown = await house.shown.find(slate.recommendation_id)
    assert shown.ages == (3.0, 0.0)
    text = write_slate(shown)
    assert read_slate(text) == shown
    before = text.replace('"ages":[3.0,0.0],', "")
    assert before != text
    assert read_slate(before).ages == ()


@pytest.mark.parametrize("who", ["retriever", "ranker", "both"])
async def test_either_model_of_a_version_may_read_ages(who):
    house = House(ranker=FakeRanker())
    house.servable.reads_ages, house.servable.ranker.reads_ages = who != "ranker", who != "retriever"
    first = await house.recommend(history=timed(("i3", NOW), ("i9", NOW + 3)), k=20)
    other = await house.recommend(history=timed(("i3", NOW), ("i9", NOW + 900)), k=20)
    assert first.degraded == other.degraded == ()
    scores = [{item.item_id: item.score for item in slate.items} for slate in (first, other)]
    if who == "retriever":  # the ranker's scores are what is shown
        common = scores[0].keys() & scores[1].keys()
        assert {i: scores[0][i] for i in common} == {i: scores[1][i] for i in common}
    else:
        assert scores[0] != scores[1]
