"""ScenarioReloader: follows the store's aliases. What an alias names is loaded and verified before it answers.

An alias is followed whole or not at all: while one of its versions is refused, the scenario goes on with what answered
it, and the refusal is named. When it is tried again: `service.runtime.loading`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from api_schemas.aliases import AliasTarget
from index.aliases import AliasStore, NoSuchAlias
from index.store import ArtefactError
from service.recommend.deadline import Clock
from service.recommend.servable import Servable
from service.recommend.types import Assignment
from service.runtime.loading import Attempt, Load, Refusal, load_in_thread
from service.runtime.registry import LoadedArm, ServableRegistry

SCENARIO_CHANGED = "scenario_changed"
SCENARIO_REFUSED = "scenario_refused"
SCENARIO_DROPPED = "scenario_dropped"

_log = structlog.get_logger()
Stamp = tuple[int, int]


class ScenarioReloader:
    """Keeps the registry's scenarios at what the aliases name. Used on the event loop; reads and loads in threads."""

    def __init__(
        self,
        *,
        aliases: AliasStore,
        registry: ServableRegistry,
        load: Load,
        max_versions: int,
        on_refused: Callable[[str | None, str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """Put the parts together.

        Args:
            aliases: Where they are read from.
            registry: What follows them.
            load: Opens and verifies a version.
            max_versions: So many different versions are kept loaded for scenarios; further ones are refused.
            on_refused: Called with version and reason.
            clock: For the pauses between attempts.
        """
        self._aliases = aliases
        self._registry = registry
        self._load = load
        self._max_versions = max_versions
        self._on_refused = on_refused
        self._clock = clock
        self._attempts: dict[str, Attempt[Stamp]] = {}

    @property
    def refused(self) -> Mapping[str, Refusal]:
        """The last refusal of each scenario, as long as its alias still asks for it."""
        return {name: one.refusal for name, one in self._attempts.items() if one.refusal is not None}

    async def check(self) -> None:
        """Look at all aliases once and follow them. Never raises for a bad version or a bad file."""
        stamps = await asyncio.to_thread(self._aliases.stamps)
        for scenario in [name for name in self._attempts if name not in stamps]:
            self._forget(scenario)
        for scenario, stamp in stamps.items():
            attempt = self._attempts.get(scenario)
            if attempt is None or attempt.stamp != stamp:
                attempt = self._attempts[scenario] = Attempt(stamp, clock=self._clock, before=attempt)
            if attempt.is_due:
                await self._follow(scenario, attempt)

    async def _follow(self, scenario: str, attempt: Attempt[Stamp]) -> None:
        if scenario not in self._registry.scenarios:
            self._registry.set_scenario(scenario, ())  # from now on it is known: not there yet, rather than not found
        version: str | None = None
        arms: list[LoadedArm] = []
        try:
            target = (await asyncio.to_thread(self._aliases.get, scenario)).target
            self._check_room(scenario, target)
            for version in target.versions:
                servable = await self._hold(version)
                arms += _arms_of(target, version, servable)
            order = {arm: place for place, arm in enumerate(_names(target))}
            arms.sort(key=lambda arm: order[arm.assignment.arm if arm.assignment is not None else ""])
        except NoSuchAlias:  # removed just now: the next look forgets it
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, what answers goes on
            if isinstance(error, MemoryError):
                self._registry.forget_previous()  # the next attempt has its room
            refusal = attempt.fail(version, error)
            _log.error(
                SCENARIO_REFUSED,
                scenario=scenario,
                index_version=version,
                reason=refusal.reason,
                final=refusal.final,
            )
            self._on_refused(version, refusal.reason)
        else:
            attempt.succeed()
            self._registry.set_scenario(scenario, arms)
            arms = []
            _log.info(SCENARIO_CHANGED, scenario=scenario, index_versions=list(target.versions))
        finally:
            for arm in arms:
                arm.servable.release()

    async def _hold(self, version: str) -> Servable:
        """Return a version with one hold on it for the caller: the one that is loaded already, or a fresh one."""
        servable = self._registry.find(version)
        if servable is not None and servable.retain():
            return servable
        return await load_in_thread(self._load, version)

    def _check_room(self, scenario: str, target: AliasTarget) -> None:
        others = {one for name, versions in self._registry.scenarios.items() if name != scenario for one in versions}
        if len(others.union(target.versions)) > self._max_versions:
            raise ArtefactError(scenario, f"scenarios name more than {self._max_versions} versions")

    def _forget(self, scenario: str) -> None:
        del self._attempts[scenario]
        self._registry.drop_scenario(scenario)
        _log.info(SCENARIO_DROPPED, scenario=scenario)


def _names(target: AliasTarget) -> list[str]:
    return [arm.name for arm in target.arms] if target.arms is not None else [""]


def _arms_of(target: AliasTarget, version: str, servable: Servable) -> list[LoadedArm]:
    """Return the arms that a version answers, each with a hold of its own; the first takes over the caller's."""
    if target.arms is None or target.experiment is None:
        return [LoadedArm(servable)]
    arms = [
        LoadedArm(servable, arm.weight, Assignment(target.experiment, arm.name))
        for arm in target.arms
        if arm.index == version
    ]
    for _ in arms[1:]:
        servable.retain()
    return arms
