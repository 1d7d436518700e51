"""Studies of the settings of SLMRec and Demure: figures of the validation users over values of one, and a plot of them.

    python -m benchmarks.studies batch --data DIR --out out/batch --jobs 2
    python -m benchmarks.studies gammas --data DIR --out out/gammas --seeds 0,1,2

Of SLMRec: `batch`, self-supervision alone (no main loss), each task by itself, over batch sizes; `alpha`, the weight of
FAC; `tau`, `tau-ssl`, the temperatures of the main and of the self-supervised losses. Of Demure: `gammas`, how much of
items and of modalities the views replace (Table 3); `views`, J (Table 4); `parts`, without one of its own. Everything
is in `--out`: one small JSON of each run that has ended, from which the same command goes on, then study.json and
study.png. Settings are studied on validation users: test users are left for what is chosen. Plots need
`pip install '.[report]'`.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.points import Grid, Point, run_points
from index.dataset import Dataset
from training.compare.one_run import Job
from training.config import SearchValue, load_config, with_settings
from training.trainer import run_digest

CONFIGS = Path("training/configs")
SLMREC, DEMURE, BASE = (CONFIGS / name for name in ("tiktok-slmrec.toml", "ml1m-demure.toml", "ml1m-base.toml"))
METRICS = ("recall@10", "recall@20", "recall@50", "ndcg@20", "ndcg@50")
TASKS = ("fac", "fm", "fd")


@dataclass(frozen=True, slots=True)
class Line:
    """A model in a study, by what is set of it."""

    settings: Mapping[str, SearchValue] = field(default_factory=dict)
    config: Path | None = None
    """Another one than the study's."""


@dataclass(frozen=True, slots=True)
class Study:
    """Lines by what they are called, over the values of one setting, or of nothing."""

    config: Path
    lines: Mapping[str, Line]
    key: str = ""
    values: tuple[SearchValue, ...] = ("",)


def _alone(task: str) -> Line:
    """Return the line of one self-supervised task as all that is learned from."""
    weights: dict[str, SearchValue] = {f"model.{one}_weight": float(one == task) for one in TASKS}
    return Line({"model.main_weight": 0.0, **weights})


def _replacing(gamma_items: float, gamma_modalities: float) -> Line:
    return Line({"model.augment.gamma_items": gamma_items, "model.augment.gamma_modalities": gamma_modalities})


_GAMMAS = ((0.2, 0.6), (0.4, 0.4), (0.6, 0.2), (0.2, 0.4), (0.3, 0.3), (0.4, 0.2), (0.1, 0.3), (0.2, 0.2), (0.3, 0.1))
"""Of items and of modalities, as the paper's Table 3 has them."""

STUDIES = {
    "batch": Study(
        SLMREC, {task.upper(): _alone(task) for task in TASKS}, "optim.batch_size", (128, 256, 512, 1024, 2048)
    ),
    "alpha": Study(SLMREC, {"SLMRec": Line()}, "model.fac_weight", (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "tau": Study(SLMREC, {"SLMRec": Line()}, "model.tau", (0.05, 0.1, 0.2, 0.5, 1.0)),
    "tau-ssl": Study(SLMREC, {"SLMRec": Line()}, "model.tau_ssl", (0.05, 0.1, 0.2, 0.5, 1.0)),
    "gammas": Study(
        DEMURE,
        {"Base": Line(config=BASE), **{f"items {items}, modalities {m}": _replacing(items, m) for items, m in _GAMMAS}},
    ),
    "views": Study(DEMURE, {"Demure": Line()}, "model.augment.views", (1, 2, 4)),
    "parts": Study(
        DEMURE,
        {
            "Base": Line(config=BASE),
            "Demure": Line(),
            "items alone": Line({"model.augment.gamma_modalities": 0.0}),
            "modalities alone": Line({"model.augment.gamma_items": 0.0}),
            "without the contrast": Line({"model.augment.lambda_contrast": 0.0}),
            "without the views' softmax": Line({"model.augment.lambda_softmax": 0.0}),
            "chosen at random": Line({"model.augment.selector": "random"}),
            "replaced by anything": Line({"model.augment.law": "uniform"}),
        },
    ),
}


def main() -> None:
    """Do what is not done yet of a study, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("config", nargs="?", type=Path, help="of all lines, in place of the study's own")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--values", help="others than the study's own, such as 128,256")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    if arguments.values and not study.key:
        parser.error(f"--values: {arguments.study} is drawn over nothing")
    values = tuple(json.loads(f"[{arguments.values}]")) if arguments.values else study.values
    dataset = Dataset.open(arguments.data)
    jobs: dict[Point, Job] = {}
    for name, line in study.lines.items():
        base = load_config(arguments.config or line.config or study.config, arguments.overrides)
        for value in values:
            for seed in (int(one) for one in arguments.seeds.split(",")):
                over: dict[str, SearchValue] = {study.key: value} if study.key else {}
                config = with_settings(base, {**line.settings, **over, "seed": seed})
                digest = run_digest(config, dataset)
                jobs[name, value, seed] = Job(
                    digest, config, {"line": name, **over}, arguments.data, arguments.out, is_trial=True
                )
    points = run_points(jobs, out=arguments.out, num_jobs=arguments.jobs)
    grid = Grid(study.key, tuple(study.lines), values, "valid", METRICS)
    about = {
        "study": arguments.study,
        "config": (arguments.config or study.config).name,
        "overrides": arguments.overrides,
    }
    grid.tell(points, arguments.out, **about)


if __name__ == "__main__":
    main()
