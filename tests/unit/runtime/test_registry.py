"""The registry: every answer keeps its version, and every version closes when its last holder leaves."""

import pytest

from service.recommend.errors import NoServable
from service.runtime.registry import ServableRegistry
from tests.fakes import FakeServable


def versions(count: int) -> list[FakeServable]:
    return [FakeServable(5, version=f"snapshot-{number}") for number in range(count)]


def test_an_empty_registry_gives_nothing():
    with pytest.raises(NoServable), ServableRegistry().acquire():
        pass
    with pytest.raises(NoServable):
        ServableRegistry().roll_back()


def test_a_holder_keeps_its_version_through_swaps_and_the_last_one_closes_it():
    registry = ServableRegistry()
    one, two, three = versions(3)
    registry.swap(one)
    with registry.acquire() as first:
        with registry.acquire() as second:
            registry.swap(two)
            registry.swap(three)
            assert first is second is one
        assert not one.closed
    assert one.closed
    with registry.acquire() as now:
        assert now is three


def test_the_version_before_the_current_one_stays_open_for_a_rollback():
    registry = ServableRegistry()
    one, two = versions(2)
    registry.swap(one)
    registry.swap(two)
    assert not one.closed
    registry.roll_back()
    assert (registry.current, registry.previous) == (one, two)
    registry.roll_back()
    assert (registry.current, registry.previous) == (two, one)
    registry.forget_previous()
    assert one.closed


def test_twenty_swaps_leave_two_versions_open():
    registry = ServableRegistry()
    made = versions(21)
    for servable in made:
        registry.swap(servable)
    assert [servable.closed for servable in made] == [True] * 19 + [False] * 2
    registry.close()
    assert all(servable.closed for servable in made)


def test_closing_waits_for_holders():
    registry = ServableRegistry()
    (one,) = versions(1)
    registry.swap(one)
    with registry.acquire():
        registry.close()
        assert not one.closed
        with pytest.raises(NoServable), registry.acquire():
            pass
    assert one.closed


def test_a_holder_that_fails_lets_go():
    registry = ServableRegistry()
    (one,) = versions(1)
    registry.swap(one)
    with pytest.raises(KeyError), registry.acquire():
        raise KeyError
    registry.close()
    assert one.closed
