"""The `CURRENT` file: which snapshot readers take, and by which way it came to that."""

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from index.artefacts import ArtefactError, write_durably

_SNAPSHOT_VERSION = re.compile(r"snapshot-[a-z0-9_.-]{1,119}")


class _Change(BaseModel):
    """One line of `CURRENT.log`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: datetime
    action: Literal["set", "rollback"]
    before: str | None
    after: str


class CurrentFile:
    """Reads and replaces `CURRENT`, and keeps `CURRENT.log`. Whoever writes holds the store's lock."""

    def __init__(self, root: Path) -> None:
        self.path = root / "CURRENT"
        self._log = root / "CURRENT.log"

    def read(self) -> str | None:
        """Return the version that `CURRENT` names, or None when there is none yet.

        Raises:
            ArtefactError: The file can not be read or holds something else than a snapshot's version.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(256)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtefactError(self.path, f"can not be read: {error.strerror}") from error
        version = content.decode("ascii", errors="replace").removesuffix("\n")
        if not _SNAPSHOT_VERSION.fullmatch(version):
            raise ArtefactError(self.path, f"holds {version[:80]!r}, which is not a snapshot's version")
        return version

    def write(self, version: str, *, action: Literal["set", "rollback"]) -> None:
        """Name another version, durably and at once.

        Raises:
            OSError: The disk is full or fails; `CURRENT` is as it was.
        """
        try:
            before = self.read()
        except ArtefactError:  # a damaged CURRENT is what one sets it anew for
            before = None
        change = _Change(at=datetime.now(UTC), action=action, before=before, after=version)
        # The log first: should we be killed between the two, CURRENT rules and `way` passes the line over.
        with self._log.open("a+b") as log:
            if log.seek(0, os.SEEK_END):
                log.seek(-1, os.SEEK_END)
                if log.read(1) != b"\n":  # a line that a crash cut short is ended, or it would spoil ours
                    log.write(b"\n")
            log.write(change.model_dump_json().encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())
        write_durably(self.path, version.encode() + b"\n")

    def way(self) -> list[str]:
        """Return the versions that led to the current one, oldest first, without what was rolled back.

        The last is the current one; going back one means the one before it.

        Raises:
            ArtefactError: `CURRENT` can not be read.
        """
        way: list[str] = []
        for change in self._changes():
            _cut(way, change.before)
            if change.action == "rollback":
                _cut(way, change.after)
            elif change.after != change.before:
                way.append(change.after)
        _cut(way, self.read())
        return way

    def _changes(self) -> list[_Change]:
        try:
            lines = self._log.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        changes: list[_Change] = []
        for line in lines:
            with suppress(ValidationError):  # cut short by a crash, so the change did not happen
                changes.append(_Change.model_validate_json(line))
        return changes


def _cut(way: list[str], version: str | None) -> None:
    """Make `version` the end of the way: drop what lies behind its last place in it, or append it."""
    if version is None:
        way.clear()
    elif version in way:
        del way[len(way) - way[::-1].index(version) :]
    else:
        way.append(version)
