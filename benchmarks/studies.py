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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.points import Grid, Point, run_points
from index.dataset import Dataset
from training.compare.one_run import Job
from training.config import SearchValue, load_config, with_settings
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
    dataset = Dataset.open(arguments.data)
    jobs: dict[Point, Job] = {}
    for line, settings in study.lines.items():
        for value in values:
            for seed in (int(one) for one in arguments.seeds.split(",")):
                config = with_settings(base, {**settings, study.key: value, "seed": seed})
                digest = run_digest(config, dataset)
                told = {"line": line, study.key: value}
                jobs[line, value, seed] = Job(digest, config, told, arguments.data, arguments.out, is_trial=True)
    points = run_points(jobs, out=arguments.out, num_jobs=arguments.jobs)
    grid = Grid(study.key, tuple(study.lines), values, "valid", METRICS)
    about = {"study": arguments.study, "config": arguments.config.name, "overrides": arguments.overrides}
    grid.tell(points, arguments.out, **about)


if __name__ == "__main__":
    main()
