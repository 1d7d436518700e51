"""What is kept of each run in the folder of a comparison: one small JSON, and arrays of its test users beside it.

A file is named by the digest of the run's resolved configuration and the data, so the same command finds what is done.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from api_schemas.base import OnDisk
from index.artefacts import write_durably
from training.checkpoint import StageReport, remove_checkpoints
from training.config import SearchValue
from training.evaluate import Judged

_NAME_LENGTH = 20
"""Of a digest in file names: 80 bits."""

USERS = "users"


class RunRecord(OnDisk):
    """One finished run. A trial has figures of the validation users only, until it has won."""

    schema_version: Literal[1] = 1
    run: str = Field(description="Digest of configuration and data.")
    name: str
    seed: int
    settings: dict[str, SearchValue] = Field(description="What was drawn from the search space.")
    failed: str | None = Field(None, description="Why the run has no figures.")
    metrics: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="By part: valid, test, and both read from_history."
    )
    seconds: float = Field(0.0, description="Of training with its validations, all stages.")
    epochs: float = Field(0.0, description="Passes over the training pairs, in all stages that make such.")
    seconds_per_epoch: float | None = None
    num_parameters: int = 0
    stages: list[StageReport] = Field(default_factory=list)
    threads: int = Field(1, description="Of torch.")

    @property
    def is_judged(self) -> bool:
        """Return whether there are figures of the test users."""
        return "test" in self.metrics

    def without_test(self) -> "RunRecord":
        """Return what a trial may tell that has not won."""
        metrics = {part: values for part, values in self.metrics.items() if not part.startswith("test")}
        return self.model_copy(update={"metrics": metrics})


class Records:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of a comparison; it is made with the first record."""
        self._runs = folder / "runs"
        self._checkpoints = folder / "checkpoints"
        self._known: dict[str, RunRecord] = {}

    def checkpoints(self, run: str) -> Path:
        """Return the folder of a run's checkpoint."""
        return self._checkpoints / run[:_NAME_LENGTH]

    def find(self, run: str) -> RunRecord | None:
        """Return what is known of a run; None when it is not done.

        Raises:
            ValueError: Its file is damaged.
        """
        if run not in self._known:
            path = self._path(run)
            if not path.exists():
                return None
            try:
                record = RunRecord.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise ValueError(f"{path}: is damaged; remove it to run this again") from error
            has_arrays = path.with_suffix(".npz").exists()
            self._known[run] = record if has_arrays or not record.is_judged else record.without_test()
        return self._known[run]

    def keep(self, record: RunRecord) -> None:
        """Write a record, in place of what there was of the same run.

        Raises:
            OSError: It can not be written; what there was is as it was.
        """
        self._runs.mkdir(parents=True, exist_ok=True)
        content = record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"
        write_durably(self._path(record.run), content)
        self._known[record.run] = record

    def keep_judged(self, record: RunRecord, users_B: NDArray[np.int64], judged: Mapping[str, Judged]) -> None:
        """Write a record with what each test user got, by part: the record last, so that it never lacks them."""
        self._runs.mkdir(parents=True, exist_ok=True)
        arrays = {f"{part}/{name}": values_B for part, values in judged.items() for name, values_B in values.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{USERS: users_B}, **arrays)
        write_durably(self._path(record.run).with_suffix(".npz"), buffer.getvalue())
        self.keep(record)

    def judged(self, record: RunRecord, *names: str) -> list[NDArray[np.float64]]:
        """Return arrays of a judged run, such as `users` and `test/recall@20`.

        Raises:
            ValueError: The file is damaged.
        """
        path = self._path(record.run).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as file:
                return [file[name] for name in names]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: is damaged; remove it to judge this run again") from error

    def forget_test(self, record: RunRecord) -> None:
        """Drop figures of test users of a run that no longer wins, as when there are more trials than before."""
        if record.is_judged:
            self.keep(record.without_test())
            self._path(record.run).with_suffix(".npz").unlink(missing_ok=True)

    def forget_checkpoint(self, run: str) -> None:
        """Remove a run's checkpoint, if there is one."""
        if self.checkpoints(run).exists():
            remove_checkpoints(self.checkpoints(run))

    def note(self, record: RunRecord) -> None:
        """Take note of a record that another process has written."""
        self._known[record.run] = record

    def _path(self, run: str) -> Path:
        return self._runs / f"{run[:_NAME_LENGTH]}.json"
