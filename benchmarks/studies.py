"""Studies of SLMRec's settings: figures of the validation users over values of one setting, and a plot of them.

    python -m benchmarks.studies batch --data DIR --out out/batch --jobs 2
    python -m benchmarks.studies alpha --data DIR --out out/alpha --seeds 0,1,2

`batch`: self-supervision alone (no main loss), each task by itself, over batch sizes. `alpha`: the weight of FAC.
`tau`, `tau-ssl`: the temperatures of the main and of the self-supervised losses. Everything is in `--out`: one small
JSON of each run that has ended, from which the same command goes on, then study.json and study.png. Settings are
studied on validation users: test users are left for what is chosen. Plots need `pip install '.[report]'`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.dataset import Dataset
from training.compare.one_run import Job
from training.compare.progress import telling, told
from training.compare.records import Records, RunRecord
from training.compare.workers import processes
from training.config import RunConfig, SearchValue, load_config, with_settings
from training.trainer import run_digest

CONFIG = Path("training/configs/tiktok-slmrec.toml")
METRICS = ("recall@10", "recall@20", "ndcg@20")
TASKS = ("fac", "fm", "fd")


@dataclass(frozen=True, slots=True)
class Study:
    """Values of one setting, and the lines that are drawn over them."""

    key: str
    values: tuple[SearchValue, ...]
    lines: dict[str, dict[str, SearchValue]]
    """By name: what else is set."""


def _alone(task: str) -> dict[str, SearchValue]:
    """Return settings under which one self-supervised task is all that is learned from."""
    weights: dict[str, SearchValue] = {f"model.{one}_weight": float(one == task) for one in TASKS}
    return {"model.main_weight": 0.0, **weights}


_ONE_LINE: dict[str, dict[str, SearchValue]] = {"SLMRec": {}}
STUDIES = {
    "batch": Study("optim.batch_size", (128, 256, 512, 1024, 2048), {task.upper(): _alone(task) for task in TASKS}),
    "alpha": Study("model.fac_weight", (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), _ONE_LINE),
    "tau": Study("model.tau", (0.05, 0.1, 0.2, 0.5, 1.0), _ONE_LINE),
    "tau-ssl": Study("model.tau_ssl", (0.05, 0.1, 0.2, 0.5, 1.0), _ONE_LINE),
}

Point = tuple[str, SearchValue, int]
"""A line, a value and a seed."""


def main() -> None:
    """Do what is not done yet of a study, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--values", help="others than the study's own, such as 128,256")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    values = tuple(json.loads(f"[{arguments.values}]")) if arguments.values else study.values
    base = load_config(arguments.config, arguments.overrides)
    jobs = {
        (line, value, seed): with_settings(base, {**settings, study.key: value, "seed": seed})
        for line, settings in study.lines.items()
        for value in values
        for seed in (int(one) for one in arguments.seeds.split(","))
    }
    records = _run(jobs, key=study.key, data=arguments.data, out=arguments.out, num_jobs=arguments.jobs)
    document = {
        "study": arguments.study,
        "key": study.key,
        "config": arguments.config.name,
        "overrides": arguments.overrides,
        "points": [
            {
                "line": line,
                "value": value,
                "seed": seed,
                "failed": record.failed,
                "seconds": record.seconds,
                "epochs": record.epochs,
                "valid": record.metrics.get("valid"),
            }
            for (line, value, seed), record in records.items()
        ],
    }
    (arguments.out / "study.json").write_text(json.dumps(document, indent=2) + "\n")
    draw(records, study, values, path=arguments.out / "study.png")
    sys.stdout.write(table(records, study, values))


def _run(configs: dict[Point, RunConfig], *, key: str, data: Path, out: Path, num_jobs: int) -> dict[Point, RunRecord]:
    """Return the records of all points; those that are in the folder are not made again."""
    dataset, records = Dataset.open(data), Records(out)
    jobs = {
        point: Job(run_digest(config, dataset), config, {"line": point[0], key: point[1]}, data, out, is_trial=True)
        for point, config in configs.items()
    }
    # Points may be the same run, as where a value is the configuration's own.
    waiting = list({job.run: job for job in jobs.values() if records.find(job.run) is None}.values())
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


def _over_seeds(records: dict[Point, RunRecord], line: str, value: SearchValue, metric: str) -> tuple[float, float]:
    """Return mean and sample deviation of the runs that have not failed; NaN where there are too few."""
    values = [
        record.metrics["valid"][metric]
        for (its_line, its_value, _), record in records.items()
        if (its_line, its_value) == (line, value) and record.failed is None
    ]
    mean = float(np.mean(values)) if values else np.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _told(mean: float, deviation: float) -> str:
    return f"{mean:.4f}" if np.isnan(deviation) else f"{mean:.4f} ± {deviation:.4f}"


def table(records: dict[Point, RunRecord], study: Study, values: Sequence[SearchValue]) -> str:
    """Return the figures in Markdown."""
    metrics = _measured(records)
    rows = [f"| | {study.key} | {' | '.join(metrics)} |", "|---" * (len(metrics) + 2) + "|"]
    for line in study.lines:
        for value in values:
            cells = (_told(*_over_seeds(records, line, value, metric)) for metric in metrics)
            rows.append(f"| {line} | {value} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def draw(records: dict[Point, RunRecord], study: Study, values: Sequence[SearchValue], *, path: Path) -> None:
    """Write the plot: a panel for each metric; values stand side by side, as they are steps of a grid."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    metrics = _measured(records)
    figure, axes = plt.subplots(1, len(metrics), figsize=(4 * len(metrics), 3.2), squeeze=False, layout="constrained")
    places = np.arange(len(values))
    for axis, metric in zip(axes[0], metrics, strict=True):
        for line in study.lines:
            means, deviations = zip(*(_over_seeds(records, line, value, metric) for value in values), strict=True)
            axis.errorbar(places, means, yerr=np.nan_to_num(deviations), marker="o", capsize=3, label=line)
        axis.set_xticks(places, [str(value) for value in values])
        axis.set(xlabel=study.key, ylabel=f"{metric}, validation")
        if len(study.lines) > 1:
            axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _measured(records: dict[Point, RunRecord]) -> list[str]:
    """Return the metrics that runs have figures of."""
    return [name for name in METRICS if any(name in record.metrics.get("valid", {}) for record in records.values())]


if __name__ == "__main__":
    main()
