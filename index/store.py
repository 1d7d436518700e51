"""ArtifactStore: versions are published whole, verified before they are read, and named by one `CURRENT` file.

Layout: `STORE/versions/<version>/...`, `STORE/CURRENT` (one line, a snapshot's version), `STORE/CURRENT.log` (one JSON
line a change, so that a rollback knows where to), `STORE/aliases/` (`index.aliases`), `STORE/jobs/` (`index.jobs`),
`STORE/.lock`, and `STORE/versions/.tmp-*` for what is being written.

Whoever writes a `.tmp-` folder holds a lock on it that the kernel drops with the process, so `prune` can tell a folder
that is being written from one whose writer was killed. The same lock, shared, keeps a version that is in use from being
pruned (`pin`).
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from api_schemas.aliases import DEFAULT_SCENARIO, AliasFile
from api_schemas.manifest import BundleManifest, SnapshotManifest
from index.artefacts import (
    MANIFEST,
    ArtefactError,
    describe_files,
    fsync_path,
    read_document,
    sha256_of,
    verify_files,
    write_durably,
)
from index.current import CurrentFile
from index.locks import TEMPORARY, exclusive, make_locked_folder, remove_unless_in_use, shared

__all__ = ["UNPUBLISHED", "ArtefactError", "ArtifactStore", "Kind", "Stage", "StoredVersion"]

Kind = Literal["bundle", "snapshot"]
Manifest = BundleManifest | SnapshotManifest
ManifestT = TypeVar("ManifestT", BundleManifest, SnapshotManifest)

UNPUBLISHED = "unpublished"
"""For a manifest's `version` before it is published; `Stage.publish` sets version, time and files."""

_VERSION = re.compile(r"(?P<kind>bundle|snapshot)-(?P<time>[0-9]{8}t[0-9]{6}z)-(?:[a-z0-9_.-]{1,64}-)?[0-9a-f]{6}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One line of `list`: a published version, or a broken one with what is wrong with it."""

    version: str
    kind: Kind
    created_at: datetime | None
    size_bytes: int
    bundle_versions: tuple[str, ...] = ()
    """Of a snapshot: the bundles it was made with, the one that retrieves first, then the ranker if there is one."""
    family: str | None = None
    """Of a bundle: the model's."""
    num_items: int | None = None
    """Of a snapshot."""
    is_current: bool = False
    aliases: tuple[str, ...] = ()
    """Scenarios that it answers; `default` where it is current."""
    problem: str | None = None
    """Why its manifest can not be read; None when it can. Hashes are verified on opening, not here."""


class Stage:
    """A folder that nobody else sees until `publish`."""

    def __init__(self, path: Path, *, kind: Kind, name: str, lock: int, store: "ArtifactStore") -> None:
        self.path = path
        """Where to write; gone after `publish`, which returns the version to open instead."""
        self.version: str | None = None
        """Set by `publish`."""
        self._kind = kind
        self._name = name
        self._lock = lock
        self._store = store

    def publish(self, manifest: Manifest) -> str:
        """Hash and fsync all files, write the manifest, and make the folder appear as a version, whole or not at all.

        Args:
            manifest: Its `version`, `created_at` and `files` are set here, whatever they are.

        Returns:
            The version.

        Raises:
            ArtefactError: The manifest is of another kind, or a snapshot's bundles are not in the store as named.
            OSError: The disk is full or fails; nothing is published.
        """
        if self.version is not None:
            raise ArtefactError(self.path, "is already published")
        if manifest.kind != self._kind:
            raise ArtefactError(self.path, f"a {manifest.kind} manifest was given for a {self._kind}")
        (self.path / MANIFEST).unlink(missing_ok=True)
        files = describe_files(self.path)
        label = f"{self._name}-" if self._name else ""
        while True:
            now = datetime.now(UTC)
            version = f"{self._kind}-{now:%Y%m%dt%H%M%Sz}-{label}{secrets.token_hex(3)}"
            final = manifest.model_copy(update={"version": version, "created_at": now, "files": files})
            write_durably(self.path / MANIFEST, final.model_dump_json(indent=2).encode() + b"\n")
            if self._store.adopt(self.path, final):
                self.version = version
                fcntl.flock(self._lock, fcntl.LOCK_SH)  # a pin from now on: not to be pruned before the block ends
                return version


class ArtifactStore:
    """A folder of published versions. Opening one makes nothing; publishing makes the folders that are missing."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._versions = self.root / "versions"
        self._lock = self.root / ".lock"
        self._current = CurrentFile(self.root)

    @contextmanager
    def stage(self, kind: Kind, *, name: str = "") -> Iterator[Stage]:
        """Give a fresh folder to write an artefact into; what is not published when the block ends is removed.

        Args:
            kind: What is made.
            name: Put into the version for people to see, such as the model family; may be empty.

        Raises:
            ValueError: The name has other characters than a-z, 0-9, `_`, `.`, `-`, or more than 64 of them.
        """
        if name and not _NAME.fullmatch(name):
            raise ValueError(f"name: {name!r} may only have a-z, 0-9, '_', '.', '-', at most 64 of them")
        self._versions.mkdir(parents=True, exist_ok=True)
        self.sweep()
        path, lock = make_locked_folder(self._versions, label=kind)
        stage = Stage(path, kind=kind, name=name, lock=lock, store=self)
        try:
            yield stage
        finally:
            if stage.version is None:
                shutil.rmtree(path, ignore_errors=True)
            os.close(lock)

    def adopt(self, staged: Path, manifest: Manifest) -> bool:
        """Rename a finished folder to its version; False when that version is taken. `Stage.publish` calls this.

        Raises:
            ArtefactError: A snapshot's bundles are not in the store with the hashes that the manifest names.
            OSError: The rename fails.
        """
        with exclusive(self._lock):
            if isinstance(manifest, SnapshotManifest):
                self._check_bundles_of(manifest, source=staged / MANIFEST)
            path = self.path_of(manifest.version)
            if path.exists():
                return False
            staged.rename(path)
            fsync_path(self._versions)
            fsync_path(self.root)
        return True

    def open_bundle(self, version: str) -> tuple[Path, BundleManifest]:
        """Verify every file of a bundle and return where it lies and what it says about itself.

        Raises:
            ArtefactError: It is not there, or a file is missing, cut, changed or more than the manifest names.
        """
        path, manifest = self._read(version, BundleManifest)
        verify_files(path, manifest.files)
        return path, manifest

    def open_snapshot(self, version: str) -> tuple[Path, SnapshotManifest]:
        """Verify every file of a snapshot, and that its bundles are in the store with the hashes that it names.

        The bundles' own files are verified by `open_bundle`.

        Raises:
            ArtefactError: As for `open_bundle`, or a bundle is missing or another one.
        """
        path, manifest = self._read(version, SnapshotManifest)
        self._check_bundles_of(manifest, source=path / MANIFEST)
        verify_files(path, manifest.files)
        return path, manifest

    def _read(self, version: str, schema: type[ManifestT]) -> tuple[Path, ManifestT]:
        path = self.path_of(version)
        if not path.is_dir():
            raise ArtefactError(path, "no such version in the store")
        manifest = read_document(path / MANIFEST, schema)
        if manifest.version != version:
            raise ArtefactError(path / MANIFEST, f"names version {manifest.version}, not {version}")
        return path, manifest

    def _check_bundles_of(self, manifest: SnapshotManifest, *, source: Path) -> None:
        for encoded in manifest.encoded:
            version = encoded.bundle_version
            try:
                found = sha256_of(self.path_of(version) / MANIFEST)
            except OSError:
                raise ArtefactError(source, f"needs bundle {version}, which is not in the store") from None
            if found != encoded.bundle_sha256:
                raise ArtefactError(source, f"was made with another bundle {version} than the store has")

    def path_of(self, version: str) -> Path:
        """Return where a version lies, or would lie.

        Raises:
            ArtefactError: It is not the name of a version; so no path leads out of the store.
        """
        if not _VERSION.fullmatch(version):
            raise ArtefactError(self.root, f"{version[:200]!r} is not the name of a version")
        return self._versions / version

    def current(self) -> str | None:
        """Return the snapshot version that `CURRENT` names, or None when there is none yet.

        Raises:
            ArtefactError: The file can not be read or holds something else than a snapshot's version.
        """
        return self._current.read()

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other process from changing what is named and from pruning while the block runs."""
        return exclusive(self._lock)

    def set_current(self, version: str, *, guard: Callable[[], None] | None = None) -> None:
        """Verify a snapshot and its bundles, then make it the one that readers take.

        Args:
            version: Of the snapshot.
            guard: Called under the lock; what it raises keeps `CURRENT` as it was.

        Raises:
            ArtefactError: One of them is not whole; `CURRENT` stays as it was.
        """
        with self.locked():
            if guard is not None:
                guard()
            self._point(version, action="set")

    def rollback(self, *, guard: Callable[[], None] | None = None) -> str:
        """Make the snapshot current that was it before, and return its version; once more goes back one more.

        Args:
            guard: As for `set_current`.

        Raises:
            ArtefactError: There is none to go back to, or it is not whole; `CURRENT` stays as it was.
        """
        with self.locked():
            if guard is not None:
                guard()
            target = self.rollback_target()
            if target is None:
                raise ArtefactError(self._current.path, "there is no earlier snapshot to go back to")
            self._point(target, action="rollback")
        return target

    def rollback_target(self) -> str | None:
        """Return the snapshot that `rollback` would make current, or None.

        Raises:
            ArtefactError: `CURRENT` can not be read.
        """
        way = self._current.way()
        earlier = [version for version in way if version != way[-1] and self.path_of(version).is_dir()]
        return earlier[-1] if earlier else None

    def verify(self, version: str) -> None:
        """Verify every file of a snapshot and of its bundles.

        Raises:
            ArtefactError: One of them is not whole.
        """
        _, manifest = self.open_snapshot(version)
        for encoded in manifest.encoded:
            self.open_bundle(encoded.bundle_version)

    def _point(self, version: str, *, action: Literal["set", "rollback"]) -> None:
        self.verify(version)
        self._current.write(version, action=action)

    @contextmanager
    def pin(self, version: str) -> Iterator[Path]:
        """Keep a version from being pruned while the block runs, and give its path.

        Raises:
            ArtefactError: It is not in the store.
        """
        path = self.path_of(version)
        with ExitStack() as stack:
            try:
                stack.enter_context(shared(path))
            except (FileNotFoundError, NotADirectoryError):
                raise ArtefactError(path, "no such version in the store") from None
            yield path

    def sweep(self) -> None:
        """Remove what processes that are dead now left half-written."""
        for path in self._versions.glob(f"{TEMPORARY}*"):
            remove_unless_in_use(path)

    def prune(self, *, keep: int) -> tuple[str, ...]:
        """Remove all but the newest `keep` snapshots and bundles, and return the versions removed.

        Never removed: the current snapshot, the one that `rollback` would go back to, what aliases name and would
        name after a rollback, the bundles of all snapshots that stay, and whatever a process holds with `pin`.

        Raises:
            ValueError: `keep` is negative.
            ArtefactError: `CURRENT` or an alias can not be read, so that it is not known what to keep.
        """
        if keep < 0:
            raise ValueError(f"keep: {keep} is negative")
        removed: list[str] = []
        with exclusive(self._lock):
            for leftover in [*self.root.glob(f"{TEMPORARY}*"), *self.root.glob(f"aliases/{TEMPORARY}*")]:
                leftover.unlink()  # of a killed set_current: the living write CURRENT under the lock that we hold
            self.sweep()
            kept = {self.current(), self.rollback_target()}
            for file in self._alias_files().values():
                kept.update(file.target.versions, *[target.versions for target in file.earlier[-1:]])
            newest_first = self.list()[::-1]
            for kind in ("snapshot", "bundle"):  # in this order: what is left of snapshots says which bundles stay
                entries = [entry for entry in newest_first if entry.kind == kind]
                kept |= {entry.version for entry in [one for one in entries if one.problem is None][:keep]}
                for entry in entries:
                    if entry.version not in kept and remove_unless_in_use(self.path_of(entry.version)):
                        removed.append(entry.version)
                    else:
                        kept.update(entry.bundle_versions)
        return tuple(removed)

    def list(self) -> tuple[StoredVersion, ...]:
        """Return all published versions, oldest first; hashes are not verified."""
        try:
            current = self.current()
        except ArtefactError:
            current = None
        aliases: dict[str, list[str]] = {} if current is None else {current: [DEFAULT_SCENARIO]}
        with suppress(ArtefactError):
            for scenario, file in self._alias_files().items():
                for version in file.target.versions:
                    aliases.setdefault(version, []).append(scenario)
        found = [path.name for path in self._versions.glob("*") if _VERSION.fullmatch(path.name)]
        entries = [self._describe(name, is_current=name == current, aliases=aliases.get(name, ())) for name in found]
        return tuple(sorted(entries, key=_by_time))

    def _alias_files(self) -> dict[str, AliasFile]:
        paths = sorted((self.root / "aliases").glob("*.json"))
        return {path.stem: read_document(path, AliasFile) for path in paths if not path.name.startswith(TEMPORARY)}

    def _describe(self, version: str, *, is_current: bool, aliases: Sequence[str]) -> StoredVersion:
        kind: Kind = "bundle" if version.startswith("bundle-") else "snapshot"
        try:
            manifest: Manifest
            if kind == "bundle":
                _, manifest = self._read(version, BundleManifest)
            else:
                _, manifest = self._read(version, SnapshotManifest)
        except ArtefactError as error:
            return StoredVersion(
                version, kind, None, size_bytes=0, is_current=is_current, aliases=tuple(aliases), problem=str(error)
            )
        return StoredVersion(
            version,
            kind,
            manifest.created_at,
            size_bytes=sum(entry.size_bytes for entry in manifest.files),
            bundle_versions=_bundles_of(manifest),
            family=manifest.family if isinstance(manifest, BundleManifest) else None,
            num_items=manifest.num_items if isinstance(manifest, SnapshotManifest) else None,
            is_current=is_current,
            aliases=tuple(aliases),
        )


def _bundles_of(manifest: Manifest) -> tuple[str, ...]:
    if isinstance(manifest, BundleManifest):
        return ()
    return tuple([encoded.bundle_version for encoded in manifest.encoded])


def _by_time(entry: StoredVersion) -> tuple[str, str]:
    name = _VERSION.fullmatch(entry.version)
    assert name is not None, "list takes only names that fit"
    # The name has whole seconds; the manifest knows the order within one.
    fraction = f"{entry.created_at:%f}" if entry.created_at else ""
    return name["time"] + fraction, entry.version
