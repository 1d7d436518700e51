"""ServableRegistry: which version answers, and when an old one may close.

Memory: between swaps there stay open the current version, the one before it, which is kept so that a rollback needs no
load, and what the scenarios name, once each. Their tables are memory-mapped and shared, so an idle one costs what the
kernel leaves of it in the page cache. A load adds one more for as long as it takes; where memory does not suffice for
that, the reloader lets the previous one go and tries again.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from service.recommend.errors import ModelNotFound, NoServable, ScenarioNotFound
from service.recommend.servable import CURRENT, Servable, find_model
from service.recommend.types import DEFAULT_SCENARIO, Assignment, Choice, Query, ServedVersion


@dataclass(frozen=True, slots=True)
class LoadedArm:
    """One of the versions that answer a scenario, and its share of the traffic."""

    servable: Servable
    weight: float = 1.0
    assignment: Assignment | None = None
    """None: the scenario is no experiment."""


class ServableRegistry:
    """Holds the current version, the one before it, and those of the scenarios. Used on the event loop alone.

    A version is closed by its last holder: the registry lets go of it when nothing names it any more, each request when
    it is answered, and a worker thread when it is done with it.
    """

    def __init__(self) -> None:
        self._current: Servable | None = None
        self._previous: Servable | None = None
        self._scenarios: dict[str, tuple[LoadedArm, ...]] = {}
        """Without arms: the scenario is known, and what it names is not loaded."""

    @property
    def current(self) -> Servable | None:
        """The version that answers, if any."""
        return self._current

    @property
    def previous(self) -> Servable | None:
        """The version before it, kept for a rollback."""
        return self._previous

    @property
    def scenarios(self) -> dict[str, tuple[str, ...]]:
        """The index versions that answer each scenario but `default`."""
        return {
            name: tuple([arm.servable.version.index_version for arm in arms]) for name, arms in self._scenarios.items()
        }

    @property
    def loaded(self) -> list[Servable]:
        """All versions that are held, each once: the current one first."""
        held = [self._current, self._previous, *[arm.servable for arms in self._scenarios.values() for arm in arms]]
        return list({servable.version.index_version: servable for servable in held if servable is not None}.values())

    def find(self, index_version: str) -> Servable | None:
        """Return a version if it is held; it is the caller's to retain."""
        return next((one for one in self.loaded if one.version.index_version == index_version), None)

    def choose(self, query: Query) -> Choice:
        """Return which version answers a query that names a scenario or a model.

        A model is looked for in what answers the scenario, then in all that is named. The arm of an experiment hangs on
        the subject and the experiment's name alone, so every worker and every restart finds the same.

        Raises:
            ScenarioNotFound: No alias has the name of the scenario.
            ModelNotFound: No loaded version has such a model.
            NoServable: The versions of the scenario are not loaded (yet).
        """
        arms = self._arms(query.scenario)
        if query.model is not None:
            named = [arm.servable for scenario in self._scenarios.values() for arm in scenario]
            current = [] if self._current is None else [self._current]
            for servable in [*[arm.servable for arm in arms], *current, *named]:
                if find_model(servable, query.model) is not None:
                    return Choice(servable.version.index_version)
            if not self.loaded:
                raise NoServable("no version is loaded")
            raise ModelNotFound(query.model)
        if not arms:
            raise NoServable(f"no version of scenario {query.scenario!r} is loaded")
        arm = arms[0] if len(arms) == 1 else _draw(arms, query.subject or query.unit)
        return Choice(arm.servable.version.index_version, arm.assignment)

    def like(self, version: ServedVersion) -> Choice:
        """Return the loaded version that is this one, or else one with its model, or else the current one."""
        same = [one for one in self.loaded if one.version.model_version == version.model_version]
        exact = [one for one in same if one.version.index_version == version.index_version]
        found = next(iter((*exact, *same)), None)
        return CURRENT if found is None else Choice(found.version.index_version)

    def _arms(self, scenario: str) -> Sequence[LoadedArm]:
        if scenario == DEFAULT_SCENARIO:
            return () if self._current is None else (LoadedArm(self._current),)
        arms = self._scenarios.get(scenario)
        if arms is None:
            raise ScenarioNotFound(scenario)
        return arms

    @contextmanager
    def acquire(self, choice: Choice = CURRENT) -> Iterator[Servable]:
        """Give a version, by default the current one, and keep it open until the block ends.

        Raises:
            NoServable: Nothing is loaded, or not the version that was chosen.
        """
        servable = self._current if choice.index_version is None else self.find(choice.index_version)
        if servable is None or not servable.retain():
            raise NoServable("no version is loaded")
        try:
            yield servable
        finally:
            servable.release()

    def swap(self, servable: Servable) -> None:
        """Make a version current; the registry takes over the caller's hold on it. The one before last is let go."""
        forgotten, self._previous, self._current = self._previous, self._current, servable
        if forgotten is not None:
            forgotten.release()

    def roll_back(self) -> None:
        """Make the previous version current again and the current one the previous.

        Raises:
            NoServable: There is no previous one.
        """
        if self._previous is None:
            raise NoServable("no earlier version is loaded")
        self._current, self._previous = self._previous, self._current

    def set_scenario(self, scenario: str, arms: Sequence[LoadedArm]) -> None:
        """Let a scenario be answered by other versions, all at once; the registry takes over the caller's holds.

        Without arms the scenario is known and can not be answered.
        """
        forgotten = self._scenarios.get(scenario, ())
        self._scenarios[scenario] = tuple(arms)
        for arm in forgotten:
            arm.servable.release()

    def drop_scenario(self, scenario: str) -> None:
        """Forget a scenario."""
        for arm in self._scenarios.pop(scenario, ()):
            arm.servable.release()

    def forget_previous(self) -> None:
        """Let go of the previous version."""
        forgotten, self._previous = self._previous, None
        if forgotten is not None:
            forgotten.release()

    def close(self) -> None:
        """Let go of all versions; requests that still hold one keep it until they are done."""
        self.forget_previous()
        for scenario in list(self._scenarios):
            self.drop_scenario(scenario)
        closing, self._current = self._current, None
        if closing is not None:
            closing.release()


def _draw(arms: Sequence[LoadedArm], unit: str) -> LoadedArm:
    """Return the arm of a subject: it stays the same while the experiment's name, arms and weights do."""
    experiment = arms[0].assignment.experiment if arms[0].assignment is not None else ""
    digest = hashlib.blake2b(f"{experiment}\n{unit}".encode(), digest_size=8).digest()
    ends = list(accumulate(arm.weight for arm in arms))
    place = int.from_bytes(digest, "big") / 2**64 * ends[-1]
    return arms[min(bisect_right(ends, place), len(arms) - 1)]
