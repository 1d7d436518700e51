"""Dataset folders with the changes of items that builds have folded in: `STORE/folded/<data>/<origin>-<seq>`.

Callers go on naming the folder that they have always named; a build goes on from what was made of it. `origin` is the
beginning of that folder's fingerprint: once it holds something else, nothing that was made of it before counts.
Written by the process that builds alone, of which there is one at a time.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from index.dataset import Dataset
from index.fold import fold, read_records
from index.locks import TEMPORARY
from index.progress import Reporter, silent

KEPT = 2
"""Folders of one name that stay: the last one, and the one before for whoever reads it still."""

_FOLDED = re.compile(r"(?P<origin>[0-9a-f]{16})-(?P<seq>[0-9]+)")


@dataclass(frozen=True, slots=True)
class FoldedIn:
    """A dataset with all changes there were."""

    dataset: Dataset
    num_changes: int
    """Items that have changed since what it was made of; 0: it is that itself."""
    seq_before: int
    """The change up to which that went."""


def fold_in(root: Path, named: Dataset, changes: Path, *, report: Reporter = silent) -> FoldedIn:
    """Fold the changes into what was last made of a dataset, and keep the result; without new ones, return that.

    Args:
        root: Of the artefact store.
        named: The dataset that the caller has named.
        changes: The file that the service has exported.
        report: Hears of the checks of the new folder.

    Raises:
        ValueError: The changes can not be folded into it; names file, line and item.
        OSError: The disk is full or fails.
    """
    folder = root / "folded" / named.path.name
    _sweep(root / "folded")
    latest = _latest(folder, named)
    records, before = read_records(changes), latest.manifest.changes_seq
    if records.end.changes_seq < before:
        raise ValueError(
            f"{latest.path}: has the changes of items up to {before}, and the service has had "
            f"{records.end.changes_seq}: they were counted elsewhere"
        )
    num_changes = records.num_after(before)
    if not num_changes and records.end.trimmed_to <= before:
        return FoldedIn(latest, 0, before)
    made = fold(latest, records, folder / f"{_origin(named)}-{records.end.changes_seq}", report=report)
    _forget_old(folder)
    return FoldedIn(made.dataset, num_changes, before)


def _latest(folder: Path, named: Dataset) -> Dataset:
    """Return of a dataset and what was made of it as it is now the one with the most changes."""
    made = _folded(folder)
    if not made:  # so that nobody pays for the fingerprint
        return named
    origin = _origin(named)
    own = [(seq, path) for seq, path in made if path.name.startswith(f"{origin}-")]
    if not own or own[-1][0] <= named.manifest.changes_seq:
        return named
    return Dataset.open(own[-1][1])


def _folded(folder: Path) -> list[tuple[int, Path]]:
    """Return the folders, that with the fewest changes first."""
    found = [(match, path) for path in folder.glob("*") if (match := _FOLDED.fullmatch(path.name))]
    return sorted((int(match["seq"]), path) for match, path in found)


def _origin(named: Dataset) -> str:
    return named.fingerprint()[:16]


def _forget_old(folder: Path) -> None:
    for _, path in _folded(folder)[:-KEPT]:
        hidden = path.with_name(f"{TEMPORARY}{path.name}")  # in one step: nobody sees half of it
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep(folded: Path) -> None:
    """Remove what builds that were killed have left half-written, or half-removed."""
    for path in folded.glob(f"*/{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
