"""Scenarios: followed whole or not at all, drawn alike everywhere, and closed when nothing names them."""

from collections import Counter

import pytest

from api_schemas.aliases import AliasTarget
from index.aliases import AliasState, NoSuchAlias
from index.store import ArtefactError
from service.recommend.errors import ModelNotFound, NoServable, ScenarioNotFound
from service.recommend.types import Assignment, Choice, Query, Subject
from service.runtime.loading import FIRST_RETRY_S
from service.runtime.registry import LoadedArm, ServableRegistry
from service.runtime.reloader import Reloader
from service.runtime.scenarios import ScenarioReloader
from tests.fakes import FakeServable

ONE, TWO, THREE = (f"snapshot-{number}" for number in (1, 2, 3))


class Fixture:
    """Aliases in a dict, and versions that are made when they are loaded."""

    def __init__(self, root) -> None:
        self.root = root
        self.now = 0.0
        self.targets: dict[str, AliasTarget | Exception] = {}
        self.written = 0
        self.written_at: dict[str, tuple[int, int]] = {}
        self.loads: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.made: dict[str, FakeServable] = {}
        self.refused: list[str | None] = []
        self.current_version: str | None = None
        self.registry = ServableRegistry()
        self.reloader = Reloader(
            store=self,
            registry=self.registry,
            load=self.load,
            interval_s=1.0,
            scenarios=ScenarioReloader(
                aliases=self,
                registry=self.registry,
                load=self.load,
                max_versions=3,
                on_refused=lambda version, _reason: self.refused.append(version),
                clock=lambda: self.now,
            ),
        )

    def current(self):
        return self.current_version

    def stamps(self):
        return dict(self.written_at)

    def get(self, scenario):
        target = self.targets.get(scenario)
        if target is None:
            raise NoSuchAlias(scenario)
        if isinstance(target, Exception):
            raise target
        return AliasState(scenario, target, None, None)

    def point(self, scenario: str, target) -> None:
        self.written += 1
        self.targets[scenario] = AliasTarget(index=target) if isinstance(target, str) else target
        self.written_at[scenario] = (0, self.written)

    def remove(self, scenario: str) -> None:
        del self.targets[scenario], self.written_at[scenario]

    def load(self, version):
        self.loads.append(version)
        if version in self.errors:
            raise self.errors[version]
        self.made[version] = FakeServable(5, version=version)
        return self.made[version]

    def serves(self, scenario: str):
        return self.registry.scenarios[scenario]

    @property
    def refusals(self):
        return self.reloader.status().refused_scenarios


@pytest.fixture
def fixture(tmp_path, logs) -> Fixture:
    return Fixture(tmp_path)


def experiment(*arms, name="colours") -> AliasTarget:
    listed = [{"name": arm, "index": version, "weight": weight} for arm, version, weight in arms]
    return AliasTarget.model_validate({"experiment": name, "arms": listed})


async def test_an_alias_is_followed_and_its_old_version_closed(fixture):
    fixture.point("home", ONE)
    await fixture.reloader.check()
    await fixture.reloader.check()
    assert fixture.serves("home") == (ONE,)
    fixture.point("home", TWO)
    await fixture.reloader.check()
    assert fixture.serves("home") == (TWO,)
    assert fixture.made[ONE].closed
    assert fixture.loads == [ONE, TWO]
    fixture.remove("home")
    await fixture.reloader.check()
    assert fixture.made[TWO].closed
    with pytest.raises(ScenarioNotFound):
        fixture.registry.choose(Query(scenario="home"))


async def test_a_version_that_several_name_is_loaded_once_and_closed_by_the_last(fixture):
    fixture.current_version = ONE
    fixture.point("home", ONE)
    fixture.point("cart", experiment(("a", ONE, 1), ("b", TWO, 1), ("c", ONE, 1)))
    await fixture.reloader.check()
    assert fixture.loads == [ONE, TWO]
    assert fixture.serves("cart") == (ONE, TWO, ONE)
    assert fixture.made[ONE].holds == 4
    fixture.remove("home")
    fixture.point("cart", TWO)
    await fixture.reloader.check()
    assert (fixture.made[ONE].holds, fixture.made[TWO].holds) == (1, 1)
    fixture.registry.close()
    assert fixture.made[ONE].closed
    assert fixture.made[TWO].closed


async def test_current_takes_over_what_a_scenario_has_loaded(fixture, tmp_path):
    fixture.point("home", ONE)
    await fixture.reloader.check()
    fixture.current_version = ONE
    await fixture.reloader.check()
    assert fixture.registry.current is fixture.made[ONE]
    assert fixture.loads == [ONE]


async def test_a_refused_version_leaves_the_scenario_at_what_answered(fixture):
    fixture.point("home", ONE)
    await fixture.reloader.check()
    fixture.errors[THREE] = ArtefactError("index.faiss", "has another SHA-256")
    fixture.point("home", experiment(("a", TWO, 1), ("b", THREE, 1)))
    for _ in range(3):
        await fixture.reloader.check()
        fixture.now += 1_000
    assert fixture.serves("home") == (ONE,)
    assert fixture.made[TWO].closed
    assert fixture.loads == [ONE, TWO, THREE]
    assert (fixture.refusals["home"].version, fixture.refusals["home"].final) == (THREE, True)
    assert fixture.refused == [THREE]
    fixture.point("home", ONE)
    await fixture.reloader.check()
    assert fixture.refusals == {}


async def test_what_may_pass_by_itself_is_tried_again_ever_more_rarely(fixture):
    fixture.errors[ONE] = OSError("the disk does not answer")
    fixture.point("home", ONE)
    await fixture.reloader.check()
    await fixture.reloader.check()
    assert fixture.loads == [ONE]
    assert not fixture.refusals["home"].final
    with pytest.raises(NoServable):
        fixture.registry.choose(Query(scenario="home"))
    fixture.now = FIRST_RETRY_S
    await fixture.reloader.check()
    fixture.now = 2 * FIRST_RETRY_S
    await fixture.reloader.check()
    assert fixture.loads == [ONE, ONE]
    del fixture.errors[ONE]
    fixture.now = 3 * FIRST_RETRY_S
    await fixture.reloader.check()
    assert fixture.serves("home") == (ONE,)
    assert fixture.refusals == {}


async def test_an_alias_that_can_not_be_read_is_named(fixture):
    fixture.point("home", ONE)
    await fixture.reloader.check()
    fixture.point("home", ArtefactError("aliases/home.json", "is no JSON"))
    await fixture.reloader.check()
    assert fixture.serves("home") == (ONE,)
    assert fixture.refusals["home"].version is None


async def test_more_versions_than_may_be_loaded_are_refused(fixture):
    fixture.point("home", experiment(("a", ONE, 1), ("b", TWO, 1), ("c", THREE, 1)))
    fixture.point("more", "snapshot-4")
    await fixture.reloader.check()
    assert set(fixture.refusals) == {"more"}
    assert "snapshot-4" not in fixture.loads


def arms(*weights: float, name="colours") -> list[LoadedArm]:
    return [
        LoadedArm(FakeServable(5, version=f"snapshot-{place}"), weight, Assignment(name, f"arm{place}"))
        for place, weight in enumerate(weights)
    ]


def drawn(registry: ServableRegistry, count: int = 4_000) -> list[str]:
    choices = [registry.choose(Query(scenario="home", subject=Subject(f"u:{number}"))) for number in range(count)]
    return [choice.assignment.arm for choice in choices]


def test_arms_are_sticky_and_share_subjects_by_weight():
    registry, other = ServableRegistry(), ServableRegistry()
    registry.set_scenario("home", arms(1, 3))
    other.set_scenario("home", arms(1, 3))
    names = drawn(registry)
    assert names == drawn(registry) == drawn(other)
    assert Counter(names)["arm0"] / len(names) == pytest.approx(0.25, abs=0.03)


def test_another_name_of_the_experiment_draws_anew_and_other_weights_move_few():
    registry = ServableRegistry()
    registry.set_scenario("home", arms(1, 1))
    before = drawn(registry)
    registry.set_scenario("home", arms(1, 1, name="shapes"))
    same = sum(a == b for a, b in zip(before, drawn(registry), strict=True)) / len(before)
    assert same == pytest.approx(0.5, abs=0.05)
    registry.set_scenario("home", arms(9, 11))
    same = sum(a == b for a, b in zip(before, drawn(registry), strict=True)) / len(before)
    assert same == pytest.approx(0.95, abs=0.02)


def test_without_a_subject_the_unit_draws():
    registry = ServableRegistry()
    registry.set_scenario("home", arms(1, 1))
    names = {registry.choose(Query(scenario="home", unit=str(number))).assignment.arm for number in range(50)}
    assert names == {"arm0", "arm1"}
    of_subject = {
        registry.choose(Query(scenario="home", subject=Subject("u:1"), unit=str(number))) for number in range(50)
    }
    assert len(of_subject) == 1


def test_a_model_is_found_among_what_is_loaded():
    registry = ServableRegistry()
    with pytest.raises(NoServable):
        registry.choose(Query(model="fake"))
    registry.swap(FakeServable(5, version=ONE))
    registry.set_scenario("home", [LoadedArm(FakeServable(5, version=TWO))])
    assert registry.choose(Query(model="fake")) == Choice(ONE)
    assert registry.choose(Query(model="bundle-fake-1", scenario="home")) == Choice(TWO)
    with pytest.raises(ModelNotFound):
        registry.choose(Query(model="other"))


def test_a_choice_keeps_its_version_through_changes():
    registry = ServableRegistry()
    one, two = (FakeServable(5, version=version) for version in (ONE, TWO))
    registry.set_scenario("home", [LoadedArm(one)])
    with registry.acquire(registry.choose(Query(scenario="home"))) as held:
        registry.set_scenario("home", [LoadedArm(two)])
        assert held is one
        assert not one.closed
    assert one.closed
    with pytest.raises(NoServable), registry.acquire(Choice(ONE)):
        pass
