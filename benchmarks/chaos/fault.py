"""What a fault is: something that is broken under load, and what is asked of the service meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is asked, and what was seen."""

    asked: str
    seen: str
    holds: bool | None
    """None: this run was too short to tell."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a fault has to work with."""

    folder: Path
    """Empty, and its own."""
    share: float = 1.0
    """Of the full amounts: below 1 in a short run."""
    seconds: float = 10.0
    """Of each phase under load."""
    workers: int = 2
    random: Random = field(default_factory=lambda: Random(0))

    def amount(self, full: int) -> int:
        """Return this run's share of a full amount, at least 1."""
        return max(1, round(self.share * full))

    @property
    def log(self) -> Path:
        """Where the service writes what it says."""
        return self.folder / "service.log"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something to be broken."""

    name: str
    what: str
    """In a few words, for the table."""
    run: Callable[[Ground], Iterator[Finding]]
