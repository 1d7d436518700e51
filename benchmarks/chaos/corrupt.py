"""Artefacts that are cut, changed, incomplete, or wrong as a whole: refused by name, and the version before goes on."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from api_schemas.manifest import SnapshotManifest
from benchmarks import prepare, server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Callers, failed, statuses
from benchmarks.chaos.fault import Fault, Finding, Ground
from index.artefacts import MANIFEST, sha256_of
from index.dataset import Dataset
from index.store import ArtifactStore

TABLE = "candidates.npy"
OTHER_DIM = 32


class Spoiler:
    """Publishes copies of a good snapshot, and spoils them."""

    def __init__(self, versions: grounds.Versions) -> None:
        self._store: ArtifactStore = versions.store
        self._data = versions.data
        _, self._good = versions.store.open_snapshot(versions.snapshots[1])

    def folder(self, version: str) -> Path:
        """Return where a version lies."""
        return self._store.path_of(version)

    def copy(self, change: Callable[[Path], None] | None = None, **update: object) -> str:
        """Publish a copy; what is changed before carries the right hashes."""
        with self._store.stage("snapshot") as stage:
            shutil.copytree(self.folder(self._good.version), stage.path, dirs_exist_ok=True)
            if change is not None:
                change(stage.path)
            return stage.publish(self._good.model_copy(update=update))

    def truncated(self) -> str:
        """Cut the end of a table off."""
        table = self.folder(version := self.copy()) / TABLE
        table.write_bytes(table.read_bytes()[:-10])
        return version

    def flipped_bit(self) -> str:
        """Change one bit of a table."""
        table = self.folder(version := self.copy()) / TABLE
        content = bytearray(table.read_bytes())
        content[len(content) // 2] ^= 0x40
        table.write_bytes(content)
        return version

    def missing_file(self) -> str:
        """Take a file away."""
        (self.folder(version := self.copy()) / "items.arrow").unlink()
        return version

    def extra_row(self) -> str:
        """Give a table one item more than the manifest and the ids have, under a right hash."""

        def change(path: Path) -> None:
            table = np.load(path / TABLE)
            np.save(path / TABLE, np.concatenate([table, table[:1]]))

        return self.copy(change)

    def wrong_dims(self) -> str:
        """Name a bundle of another width, by its right hash."""
        bundle = prepare.publish(self._store, Dataset.open(self._data), dim=OTHER_DIM)
        return self.copy(bundle_version=bundle, bundle_sha256=sha256_of(self.folder(bundle) / MANIFEST))

    def not_a_number(self) -> str:
        """Put a NaN into a vector, under a right hash."""

        def change(path: Path) -> None:
            table = np.load(path / TABLE)
            table[len(table) // 2, 0] = np.nan
            np.save(path / TABLE, table)

        return self.copy(change)

    def wrong_manifest_hash(self) -> str:
        """Change the manifest of the bundle, which the snapshot names by its hash."""
        with self._store.stage("bundle") as stage:
            path, manifest = self._store.open_bundle(self._good.bundle_version)
            shutil.copytree(path, stage.path, dirs_exist_ok=True)
            bundle = stage.publish(manifest)
        manifest_file = self.folder(bundle) / MANIFEST
        version = self.copy(bundle_version=bundle, bundle_sha256=sha256_of(manifest_file))
        manifest_file.write_text(manifest_file.read_text() + "\n")
        return version

    def foreign_version(self) -> str:
        """Let the manifest be of a schema that this software does not know."""
        file = self.folder(version := self.copy()) / MANIFEST
        known = SnapshotManifest.model_fields["schema_version"].default
        file.write_text(file.read_text().replace(f'"schema_version": {known}', '"schema_version": 999'))
        return version

    @property
    def kinds(self) -> dict[str, Callable[[], str]]:
        """All of these by name."""
        return {
            "a truncated table": self.truncated,
            "a flipped bit": self.flipped_bit,
            "a missing file": self.missing_file,
            "an extra row": self.extra_row,
            "wrong dimensions": self.wrong_dims,
            "a NaN": self.not_a_number,
            "a wrong hash of a manifest": self.wrong_manifest_hash,
            "a foreign schema version": self.foreign_version,
        }


def run(ground: Ground) -> Iterator[Finding]:
    """Point CURRENT at each of them, without the checks that the store makes, under load."""
    versions = grounds.versions(ground.folder)
    spoiler = Spoiler(versions)
    with server.service(
        versions.store.root,
        history=f"sqlite:{ground.folder / 'events.db'}",
        workers=1,  # so that /readyz speaks for all
        log=ground.log,
        settings={"PRISMREC_RELOAD__INTERVAL_S": "0.1"},
    ) as service:
        served = service.get("/version")["index"]
        for name, spoil in spoiler.kinds.items():
            bad = spoil()
            with Callers(service.port, grounds.recommend, connections=2, pause_s=0.02) as callers:
                _point(versions.store, bad)
                try:
                    grounds.wait_until(lambda bad=bad: bad in _refused(service), what="refused", timeout_s=20)  # type: ignore[misc]  # bound at once
                    said = _refused(service)[bad].rpartition("/")[2]
                except RuntimeError:
                    said = "not refused"
                still = service.get("/version")["index"]
            yield Finding(
                f"{name}: refused by name, the version before goes on",
                f"{said}; {statuses(callers.answers)}",
                said != "not refused" and still == served and not failed(callers.answers),
            )
            _point(versions.store, versions.snapshots[0])
            grounds.wait_until(
                lambda: service.get("/version")["index"] == served and not _refused(service), what="all is well"
            )


def _refused(service: server.Service) -> dict[str, str]:
    refused: dict[str, str] = service.get("/readyz")["refused_versions"]
    return refused


def _point(store: ArtifactStore, version: str) -> None:
    """Write CURRENT without the checks of `set_current`."""
    new = store.root / ".tmp-current"
    new.write_text(version + "\n")
    new.replace(store.root / "CURRENT")


FAULT = Fault("corrupt", "Corrupt artefacts", run)
