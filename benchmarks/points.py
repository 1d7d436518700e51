"""The runs of a study, one for each of its points, and their figures over repetitions as a table and as a plot.

Each run that has ended is one small JSON in the study's folder, from which the same command goes on.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from training.compare.one_run import Job
from training.compare.progress import telling, told
from training.compare.records import Records, RunRecord
from training.compare.workers import processes
from training.config import SearchValue

Point = tuple[str, SearchValue, int]
"""A line, a value that it is drawn over, and a repetition, such as a seed."""

Points = Mapping[Point, RunRecord]


def run_points(jobs: Mapping[Point, Job], *, out: Path, num_jobs: int) -> dict[Point, RunRecord]:
    """Return the records of all points; those that are in the folder are not made again."""
    records = Records(out)
    # Points may be the same run, as where a value is the configuration's own.
    waiting = list({job.run: job for job in jobs.values() if not _is_done(job, records.find(job.run))}.values())
    total, running = len(waiting), 0
    with ExitStack() as stack:
        workers = stack.enter_context(processes(num_jobs))
        tell = stack.enter_context(telling())
        done = 0
        while waiting or running:
            while waiting and running < workers.num:
                workers.give(waiting.pop(0))
                running += 1
            for job, record in workers.wait(0.5):
                running, done = running - 1, done + 1
                assert record is not None, "nobody has asked it to stop"
                records.note(record)
                records.forget_checkpoint(job.run)
                tell(told(job, record, monitor=job.config.eval.monitor, left_s=None), done=done, total=total)
    found = {point: records.find(job.run) for point, job in jobs.items()}
    return {point: record for point, record in found.items() if record is not None}


def _is_done(job: Job, record: RunRecord | None) -> bool:
    return record is not None and (job.is_trial or record.is_judged or record.failed is not None)


@dataclass(frozen=True, slots=True)
class Grid:
    """What a study's table and plot show."""

    key: str
    """What the values are of; empty: there is but one."""
    lines: tuple[str, ...]
    values: tuple[SearchValue, ...]
    part: str
    """Of the users: `valid` or `test`."""
    metrics: tuple[str, ...]

    def table(self, points: Points) -> str:
        """Return the figures in Markdown: mean and sample deviation over the repetitions that have not failed."""
        metrics = self._measured(points)
        head = ["", *([self.key] if self.key else []), *metrics]
        rows = [head, ["---"] * len(head)]
        for line in self.lines:
            for value in self.values:
                cells = (_figure(*self._over_repetitions(points, line, value, metric)) for metric in metrics)
                rows.append([line, *([str(value)] if self.key else []), *cells])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def draw(self, points: Points, path: Path) -> None:
        """Write the plot: a panel for each metric.

        Values stand side by side, as they are steps of a grid; without any, lines stand beneath each other.
        """
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot as plt

        metrics = self._measured(points)
        height = 3.2 if self.key else 1.2 + 0.3 * len(self.lines)
        size = (4 * len(metrics), height)
        figure, axes = plt.subplots(
            1, len(metrics), figsize=size, squeeze=False, sharey=not self.key, layout="constrained"
        )
        for axis, metric in zip(axes[0], metrics, strict=True):
            label = f"{metric}, {self.part}"
            if self.key:
                self._draw_values(axis, points, metric)
                axis.set(xlabel=self.key, ylabel=label)
            else:
                self._draw_lines(axis, points, metric)
                axis.set(xlabel=label)
        figure.savefig(path, dpi=150)
        plt.close(figure)

    def _draw_values(self, axis: Any, points: Points, metric: str) -> None:  # noqa: ANN401  # of an optional library
        places = range(len(self.values))
        for line in self.lines:
            figures = [self._over_repetitions(points, line, value, metric) for value in self.values]
            means, deviations = zip(*figures, strict=True)
            axis.errorbar(places, means, yerr=np.nan_to_num(deviations), marker="o", capsize=3, label=line)
        axis.set_xticks(places, [str(value) for value in self.values])
        axis.set_ylim(*_wide(*axis.get_ylim()))
        if len(self.lines) > 1:
            axis.legend()

    def _draw_lines(self, axis: Any, points: Points, metric: str) -> None:  # noqa: ANN401  # of an optional library
        places = range(len(self.lines))
        figures = [self._over_repetitions(points, line, self.values[0], metric) for line in self.lines]
        means, deviations = zip(*figures, strict=True)
        axis.errorbar(means, places, xerr=np.nan_to_num(deviations), fmt="o", capsize=3)
        axis.axvline(means[0], color="grey", linewidth=0.8, linestyle="--")  # all are read against the first
        axis.set_yticks(places, self.lines)
        axis.set_ylim(len(self.lines) - 0.5, -0.5)
        axis.set_xlim(*_wide(*axis.get_xlim()))
        axis.locator_params(axis="x", nbins=4)

    def tell(self, points: Points, out: Path, **about: object) -> None:
        """Write `study.json` with every point, print the table, and draw `study.png` of more than one figure."""
        document = {
            **about,
            "key": self.key,
            "points": [
                {
                    "line": line,
                    "value": value,
                    "repetition": repetition,
                    "failed": record.failed,
                    "seconds": record.seconds,
                    "epochs": record.epochs,
                    self.part: record.metrics.get(self.part),
                }
                for (line, value, repetition), record in points.items()
            ],
        }
        (out / "study.json").write_text(json.dumps(document, indent=2) + "\n")
        sys.stdout.write(self.table(points))
        if len(self.values) * len(self.lines) == 1:
            return
        if find_spec("matplotlib") is None:
            sys.stderr.write("study.png is not drawn: that needs pip install '.[report]'\n")
        else:
            self.draw(points, out / "study.png")

    def _over_repetitions(self, points: Points, line: str, value: SearchValue, metric: str) -> tuple[float, float]:
        """Return mean and sample deviation; NaN where there are too few."""
        values = [
            record.metrics[self.part][metric]
            for (its_line, its_value, _), record in points.items()
            if (its_line, its_value) == (line, value) and record.failed is None
        ]
        mean = float(np.mean(values)) if values else np.nan
        return mean, float(np.std(values, ddof=1)) if len(values) > 1 else np.nan

    def _measured(self, points: Points) -> list[str]:
        """Return the metrics that runs have figures of."""
        return [
            name
            for name in self.metrics
            if any(name in record.metrics.get(self.part, {}) for record in points.values())
        ]


def _wide(low: float, high: float) -> tuple[float, float]:
    """Return limits of an axis that do not make much of a small difference: at least a fifth of what is shown."""
    middle, half = (low + high) / 2, (high - low) / 2
    half = max(half, abs(middle) / 10)
    return middle - half, middle + half


def _figure(mean: float, deviation: float) -> str:
    if np.isnan(mean):
        return "failed"
    return f"{mean:.4f}" if np.isnan(deviation) else f"{mean:.4f} ± {deviation:.4f}"
