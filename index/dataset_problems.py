"""How something wrong with a dataset folder is told: a problem, the error that carries it, a bounded collection."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning"]

MAX_ROWS_TOLD = 5
"""Of one kind in one file: the first five rows are told, and how many more there are."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a dataset folder."""

    file: str
    """Name below the dataset's folder."""
    detail: str
    row: int | None = None
    """From 0, as the rows of the feature files are counted."""
    column: str | None = None
    """Name of a table's column or a manifest's field, or the number of a feature's column from 0."""
    severity: Severity = "error"
    """A folder with errors must not be used; a warning says what is probably not meant."""

    def __str__(self) -> str:
        place = self.file
        if self.row is not None:
            place += f", row {self.row}"
        if self.column is not None:
            place += f", column {self.column}"
        return f"{place}: {self.detail}"


class DatasetError(ValueError):
    """A dataset folder can not be used; `problem` says where and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Findings:
    """Problems of one file, found batch by batch and kept in bounded memory."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._told: dict[str, list[Problem]] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        kind: str,
        positions: NDArray[np.intp],
        *,
        detail: Callable[[int], str],
        column: str | Callable[[int], str] | None,
        first_row: int = 0,
        severity: Severity = "error",
    ) -> None:
        """Note bad positions of one batch; `detail` and `column` are asked for the few that are told.

        Args:
            kind: Problems of one kind are counted together.
            positions: Within the batch.
            detail: Says what is wrong at a position.
            column: The column, or says it for a position.
            first_row: Row of the file at which the batch starts.
            severity: Of every problem of this kind.
        """
        if not len(positions):
            return
        told = self._told.setdefault(kind, [])
        self._counts[kind] = self._counts.get(kind, 0) + len(positions)
        for position in positions[: MAX_ROWS_TOLD - len(told)]:
            at = int(position)
            name = column(at) if callable(column) else column
            told.append(Problem(self._file, detail(at), row=first_row + at, column=name, severity=severity))

    def problems(self) -> list[Problem]:
        """Return what was found, in the order in which the kinds were met."""
        found: list[Problem] = []
        for kind, told in self._told.items():
            more = self._counts[kind] - len(told)
            found += told
            if more:
                found[-1] = replace(told[-1], detail=f"{told[-1].detail} (and {more} more rows like this)")
        return found
