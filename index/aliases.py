"""Aliases: `STORE/aliases/<scenario>.json` says which snapshot, or which arms of an experiment, answer a scenario.

`CURRENT` is the alias `default`: it names one snapshot, is what `prismrec-index` sets, and has its own way back. Every
change is made under the store's lock and replaces one file, so readers see the old alias or the new one.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from api_schemas.aliases import DEFAULT_SCENARIO, MAX_EARLIER, MAX_SCENARIOS, AliasFile, AliasTarget
from index.artefacts import read_document, write_durably
from index.store import ArtifactStore

_SCENARIO = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class AliasConflict(Exception):
    """The alias is not as the caller supposed, or a bound does not allow the change; nothing was changed."""


class NoSuchAlias(Exception):
    """There is no alias of this name."""


@dataclass(frozen=True, slots=True)
class AliasState:
    """An alias as it stands."""

    scenario: str
    target: AliasTarget
    rollback_to: AliasTarget | None
    changed_at: datetime | None

    @property
    def tag(self) -> str:
        """Names this state: another one has another tag."""
        back = "" if self.rollback_to is None else self.rollback_to.model_dump_json()
        return hashlib.sha256(f"{self.target.model_dump_json()} {back}".encode()).hexdigest()[:20]


Precondition = Callable[[AliasState | None], bool]
"""Whether a change may be made to an alias as it stands; None: there is none yet."""


def always(_state: AliasState | None) -> bool:
    """Allow every change."""
    return True


class AliasStore:
    """Reads and changes the aliases of one artefact store."""

    def __init__(self, store: ArtifactStore, *, max_versions: int | None = None) -> None:
        """Use a store's aliases.

        Args:
            store: Where they and what they name lie.
            max_versions: So many different snapshots may be named by all aliases but `default`; None: any number.
        """
        self._store = store
        self._max_versions = max_versions
        self._folder = store.root / "aliases"

    def get(self, scenario: str) -> AliasState:
        """Return an alias.

        Raises:
            NoSuchAlias: There is none of this name.
            ArtefactError: Its file can not be read.
        """
        state = self._read(scenario)
        if state is None:
            raise NoSuchAlias(scenario)
        return state

    def all(self) -> list[AliasState]:
        """Return all aliases: `default` first, then by name.

        Raises:
            ArtefactError: A file can not be read.
        """
        names = [DEFAULT_SCENARIO, *self.scenarios()]
        return [state for name in names if (state := self._read(name)) is not None]

    def scenarios(self) -> list[str]:
        """Return the names of all aliases but `default`."""
        names = [path.stem for path in self._folder.glob("*.json")]
        return sorted(name for name in names if _SCENARIO.fullmatch(name) and name != DEFAULT_SCENARIO)

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return what tells one writing of each alias but `default` from the next."""
        found: dict[str, tuple[int, int]] = {}
        for name in self.scenarios():
            try:
                written = self._path(name).stat()
            except FileNotFoundError:  # removed just now
                continue
            found[name] = (written.st_ino, written.st_mtime_ns)
        return found

    def set(self, scenario: str, target: AliasTarget, *, if_state: Precondition = always) -> AliasState:
        """Verify what an alias shall name, and point it there.

        Args:
            scenario: Its name; it is made when there is none.
            target: What it shall name.
            if_state: Asked under the lock, so that nobody can come between.

        Raises:
            AliasConflict: `if_state` says no, there would be too many aliases or versions, or `default` would get arms.
            ValueError: The name may not be one.
            ArtefactError: A version is not whole; the alias stays as it was.
        """
        if scenario == DEFAULT_SCENARIO:
            if target.index is None:
                raise AliasConflict(
                    "'default' names one version, which is CURRENT; give an experiment its own scenario"
                )
            self._store.set_current(target.index, guard=self._guard(scenario, if_state))
            return self.get(scenario)
        if not _SCENARIO.fullmatch(scenario):
            raise ValueError(f"scenario: {scenario!r} may have a-z, 0-9, '_' and '-', 64 at most")
        with self._store.locked():
            self._guard(scenario, if_state)()
            self._check_bounds(scenario, target)
            for version in target.versions:
                self._store.verify(version)
            before = self._file(scenario)
            if before is None:
                return self._write(scenario, target, [])
            if before.target == target:
                return self._state(scenario, before)
            return self._write(scenario, target, [*before.earlier, before.target])

    def roll_back(self, scenario: str, *, if_state: Precondition = always) -> AliasState:
        """Point an alias at what it named before; once more goes back one more.

        Raises:
            NoSuchAlias: There is none of this name.
            AliasConflict: `if_state` says no, or nothing is earlier.
            ArtefactError: The earlier version is not whole or not there any more; the alias stays as it was.
        """
        if scenario == DEFAULT_SCENARIO:
            guard = self._guard(scenario, if_state)
            if self.get(scenario).rollback_to is None:
                raise AliasConflict("there is no earlier snapshot to go back to")
            self._store.rollback(guard=guard)
            return self.get(scenario)
        with self._store.locked():
            before = self._file(scenario)
            if before is None:
                raise NoSuchAlias(scenario)
            self._guard(scenario, if_state)()
            if not before.earlier:
                raise AliasConflict("there is no earlier target to go back to")
            *earlier, target = before.earlier
            for version in target.versions:
                self._store.verify(version)
            return self._write(scenario, target, earlier)

    def remove(self, scenario: str, *, if_state: Precondition = always) -> None:
        """Remove an alias; its versions may then be pruned.

        Raises:
            NoSuchAlias: There is none of this name.
            AliasConflict: `if_state` says no, or it is `default`.
        """
        if scenario == DEFAULT_SCENARIO:
            raise AliasConflict("'default' can not be removed")
        with self._store.locked():
            if not _SCENARIO.fullmatch(scenario) or not self._path(scenario).exists():
                raise NoSuchAlias(scenario)
            self._guard(scenario, if_state)()
            self._path(scenario).unlink()

    def _guard(self, scenario: str, if_state: Precondition) -> Callable[[], None]:
        def check() -> None:
            if not if_state(self._read(scenario)):
                raise AliasConflict("the alias is not in the state that the request supposes; read it again")

        return check

    def _check_bounds(self, scenario: str, target: AliasTarget) -> None:
        others = [name for name in self.scenarios() if name != scenario]
        if len(others) >= MAX_SCENARIOS:
            raise AliasConflict(f"{MAX_SCENARIOS} aliases at most; remove one first")
        named = set(target.versions).union(*[self.get(name).target.versions for name in others])
        if self._max_versions is not None and len(named) > self._max_versions:
            raise AliasConflict(
                f"aliases would name {len(named)} versions; {self._max_versions} at most are kept loaded"
            )

    def _read(self, scenario: str) -> AliasState | None:
        if scenario == DEFAULT_SCENARIO:
            current = self._store.current()
            if current is None:
                return None
            back = self._store.rollback_target()
            return AliasState(
                scenario, AliasTarget(index=current), None if back is None else AliasTarget(index=back), None
            )
        file = self._file(scenario)
        return None if file is None else self._state(scenario, file)

    def _state(self, scenario: str, file: AliasFile) -> AliasState:
        return AliasState(scenario, file.target, file.earlier[-1] if file.earlier else None, file.changed_at)

    def _file(self, scenario: str) -> AliasFile | None:
        if not _SCENARIO.fullmatch(scenario) or not self._path(scenario).exists():
            return None
        return read_document(self._path(scenario), AliasFile)

    def _write(self, scenario: str, target: AliasTarget, earlier: list[AliasTarget]) -> AliasState:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = AliasFile(changed_at=datetime.now(UTC), target=target, earlier=earlier[-MAX_EARLIER:])
        write_durably(self._path(scenario), file.model_dump_json(indent=2).encode() + b"\n")
        return self._state(scenario, file)

    def _path(self, scenario: str) -> Path:
        return self._folder / f"{scenario}.json"
