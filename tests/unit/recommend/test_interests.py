"""Interest over time: how a history is cut, and what is asked of model and clock."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, InvalidQuery, Overloaded, StoreUnavailable
from service.recommend.interests import FIRST_MONDAY_S, WINDOWS_AT_ONCE, InterestTimeline, windows_of
from service.recommend.types import Event, ItemId
from tests.fakes import FakeSource
from tests.unit.recommend.house import USER, House

DAY_S = 86_400
moments = st.lists(st.floats(0, 7e9), min_size=1, max_size=30).map(sorted)


def timeline(house: House) -> InterestTimeline:
    return InterestTimeline(
        servables=FakeSource(house.servable),
        history=house.store,
        compute=house.compute,
        admission=house.admission,
    )


async def of(house, *, window_s=DAY_S, limit=100, timeout_s=5.0, clock=None, **kwargs):
    deadline = Deadline.after(timeout_s) if clock is None else Deadline(timeout_s, clock)
    return await timeline(house).of(USER, window_s=window_s, limit=limit, deadline=deadline, **kwargs)


async def lived(house, num_days):
    await house.store.append(
        [Event(f"e{day}", USER, ItemId(f"i{day}"), "click", float(day * DAY_S)) for day in range(num_days)]
    )


@given(moments, st.integers(1, 10**7), st.integers(1, 50))
def test_windows_lie_side_by_side_and_hold_every_event_once(occurred_at, window_s, limit):
    windows = windows_of(occurred_at, window_s=window_s, limit=limit)
    assert 1 <= len(windows) <= limit
    assert windows[-1].num_events_until_end == len(occurred_at)
    assert windows[-1].num_events > 0
    for window in windows:
        assert window.ends_at - window.starts_at == window_s
        assert (window.starts_at - FIRST_MONDAY_S) % window_s == 0
        inside = [moment for moment in occurred_at if window.starts_at <= moment < window.ends_at]
        assert window.num_events == len(inside)
        assert window.num_events_until_end == sum(moment < window.ends_at for moment in occurred_at)
    for one, after in pairwise(windows):
        assert one.ends_at == after.starts_at
    if len(windows) < limit:
        assert windows[0].num_events > 0


def test_a_moment_on_the_border_belongs_to_the_later_window():
    monday = float(FIRST_MONDAY_S + 7 * DAY_S)
    first, second = windows_of([monday - 1e-6, monday], window_s=7 * DAY_S, limit=5)
    assert (first.num_events, second.num_events, second.starts_at) == (1, 1, monday)


async def test_many_windows_are_answered_in_groups_and_explained_one_by_one(house):
    await lived(house, WINDOWS_AT_ONCE + 3)
    found = await of(house)
    assert len(found.windows) == WINDOWS_AT_ONCE + 3
    assert house.servable.calls.count("encode_users") == 2
    assert house.servable.calls.count("attribute") == WINDOWS_AT_ONCE + 3


async def test_the_clock_is_looked_at_between_windows(house):
    await lived(house, 5)
    now = iter(np.arange(1_000.0))
    with pytest.raises(DeadlineExceeded):
        await of(house, timeout_s=12.0, clock=lambda: next(now))
    assert 0 < house.servable.calls.count("attribute") < 5
    assert house.servable.holds == 1
    assert house.admission.in_flight == 0


async def test_without_time_a_version_or_a_store_it_is_an_error(house):
    await lived(house, 1)
    with pytest.raises(DeadlineExceeded):
        await of(house, timeout_s=0.0)
    with pytest.raises(InvalidQuery, match="/method"):
        await of(house, method="interest_gradient")
    house.store.away = True
    with pytest.raises(StoreUnavailable):
        await of(house)
    house.admission.in_flight = house.admission.limit
    with pytest.raises(Overloaded):
        await of(house)
