"""Tables and figures of PAMD's paper (Han et al., WWW 2022) with the models that are here, on the data that are here.

    python -m benchmarks.pamd_studies models --data DIR --catalogue ml1m --out out/models --jobs 2
    python -m benchmarks.pamd_studies sparsity --data DIR --catalogue tiktok --out out/sparsity --folds 0 --values 0,0.4

`models`: all of them (Table 2; VECF without the regions and reviews that it was made for). `parts`: PAMD without one
of its own (Tables 3 to 5). `epochs`: of pretraining (Figure 3a). `sparsity`: a share of what items have of each
modality is masked (Figure 3b). `plugged`: other models on pretrained features in place of raw ones (Figure 3c).

The protocol is the paper's: five folds of each user's interactions, 3:1:1, and targets among 1,000 items in all; its
NDCG is `ndcg_untruncated`. The same of the whole catalogue stands beside. Settings are those of the shipped
configurations; as nothing is chosen by these figures, they are of test users. Everything is in `--out`: masked copies,
one small JSON of each run that has ended, from which the same command goes on, then study.json and, where there is
something to draw, study.png, which needs `pip install '.[report]'`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.points import Grid, Point, run_points
from index.dataset import Dataset
from training.compare.one_run import Job
from training.config import AnyRun, SearchValue, load_config, with_settings
from training.data.mask import mask_dataset
from training.trainer import run_digest

CONFIGS = Path("training/configs")
PROTOCOL = (
    "split.kind=folds",
    "split.seed=0",
    "eval.cutoffs=[5, 10]",
    "eval.monitor=recall@10",
    "eval.sampled.n=1000",
    "eval.sampled.rule=total",
)
METRICS = ("recall@5", "recall@10", "ndcg_untruncated@5", "ndcg_untruncated@10")
FOLDS = "0,1,2,3,4"
MASKED = "masked share"
"""The key of a study whose values are no setting, but which copy of the data is learned from."""


@dataclass(frozen=True, slots=True)
class Line:
    """A model in a study."""

    config: str
    """Of the shipped ones, without the catalogue."""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """Models by what they are called, and what they are drawn over: a setting, `MASKED`, or nothing."""

    lines: dict[str, Line]
    key: str = ""
    values: tuple[SearchValue, ...] = ("",)


MODELS = {
    "popularity": Line("popularity"),
    "BPR": Line("mf-bpr"),
    "BPR++": Line("bpr-plus"),
    "Corr-AE": Line("corr-ae"),
    "NeuMF++": Line("neumf"),
    "NFM++": Line("nfm"),
    "VECF": Line("vecf"),
    "MMGCN": Line("mmgcn"),
    "PAMD": Line("pamd"),
    "PAMD by user": Line("pamd-user"),
}
PARTS = {
    "PAMD": Line("pamd"),
    "common alone": Line("pamd", ("model.representations=common",)),
    "specific alone": Line("pamd", ("model.representations=specific",)),
    "softplus": Line("pamd", ("model.pretraining.contrast=softplus",)),
    "without contrast": Line("pamd", ("model.pretraining.contrast=none",)),
    "encoder's loss alone": Line("pamd", ("model.pretraining.contrast_weight=0",)),
    "contrast alone": Line("pamd", ("model.pretraining.encoder_weight=0",)),
    "not pretrained": Line("pamd", ("model.pretraining.epochs=0",)),
    "ids alone": Line("pamd", ("model.modalities=[]", "model.pretraining.epochs=0")),
}
MASKED_LINES = ("BPR++", "NeuMF++", "NFM++", "Corr-AE", "MMGCN", "PAMD")
PLUGGED = {name: MODELS[name] for name in ("BPR++", "NeuMF++", "NFM++", "MMGCN")} | {"Demure": Line("demure")}
STUDIES = {
    "models": Study(MODELS),
    "parts": Study(PARTS),
    "epochs": Study({"PAMD": MODELS["PAMD"]}, "model.pretraining.epochs", (0, 25, 50, 100, 200)),
    "sparsity": Study({name: MODELS[name] for name in MASKED_LINES}, MASKED, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    "plugged": Study(PLUGGED, "features.kind", ("raw", "pamd")),
}


def main() -> None:
    """Do what is not done yet of a study, and tell it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--catalogue", required=True, help="whose configurations: ml1m, tiktok")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", default=FOLDS)
    parser.add_argument("--lines", help="some of the study's, such as BPR,BPR++")
    parser.add_argument("--values", help="others than the study's own, such as 0,0.4")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    if arguments.lines:
        names = arguments.lines.split(",")
        if strange := set(names) - set(study.lines):
            parser.error(f"--lines: {min(strange)!r} is none of {', '.join(study.lines)}")
        study = replace(study, lines={name: study.lines[name] for name in names})
    if arguments.values:
        if not study.key:
            parser.error(f"--values: {arguments.study} is drawn over nothing")
        study = replace(study, values=tuple(json.loads(f"[{arguments.values}]")))
    study = configured(study, arguments.catalogue)
    if not study.lines:
        parser.error(f"--catalogue: no configuration of these models begins with {arguments.catalogue}-")
    folds = [int(fold) for fold in arguments.folds.split(",")]
    jobs = jobs_of(
        study,
        data=arguments.data,
        catalogue=arguments.catalogue,
        folds=folds,
        overrides=arguments.overrides,
        out=arguments.out,
    )
    points = run_points(jobs, out=arguments.out, num_jobs=arguments.jobs)
    shown = shown_metrics(next(iter(jobs.values())).config)
    about = {"study": arguments.study, "catalogue": arguments.catalogue, "overrides": arguments.overrides}
    Grid(study.key, tuple(study.lines), study.values, "test", shown).tell(points, arguments.out, **about, folds=folds)


def jobs_of(
    study: Study, *, data: Path, catalogue: str, folds: Sequence[int], overrides: Sequence[str], out: Path
) -> dict[Point, Job]:
    """Return the run of each point; masked copies are made for them in `out`."""
    dataset = Dataset.open(data)
    jobs: dict[Point, Job] = {}
    for value in study.values:
        source = dataset
        if study.key == MASKED:
            assert isinstance(value, int | float)
            source = masked_copy(dataset, value, out)
        settings: dict[str, SearchValue] = {study.key: value} if study.key not in ("", MASKED) else {}
        for name, line in study.lines.items():
            path = config_path(catalogue, line)
            for fold in folds:
                config = load_config(path, [*PROTOCOL, *line.overrides, f"split.fold={fold}", *overrides])
                config = with_settings(config, settings)
                told: dict[str, SearchValue] = {"line": name, **({study.key: value} if study.key else {})}
                digest = run_digest(config, source)
                jobs[name, value, fold] = Job(digest, config, told, source.path, out, is_trial=False)
    return jobs


def configured(study: Study, catalogue: str) -> Study:
    """Return the study of those models that are configured for a catalogue: Demure needs histories in time."""
    lines = {name: line for name, line in study.lines.items() if config_path(catalogue, line).exists()}
    return replace(study, lines=lines)


def config_path(catalogue: str, line: Line) -> Path:
    """Return where the shipped configuration of a line is."""
    return CONFIGS / f"{catalogue}-{line.config}.toml"


def masked_copy(dataset: Dataset, share: float, out: Path) -> Dataset:
    """Return the data set with a share masked: itself for none, else a copy that is made once."""
    if share == 0:
        return dataset
    path = out / "data" / f"{dataset.fingerprint()[:12]}-masked-{share:g}"
    return Dataset.open(path) if path.exists() else mask_dataset(dataset, path, share=share)


def shown_metrics(config: AnyRun) -> tuple[str, ...]:
    """Return the paper's metrics, and the same of the whole catalogue."""
    sampled = config.eval.sampled
    return METRICS if sampled is None else (*(sampled.named(metric) for metric in METRICS), *METRICS)


if __name__ == "__main__":
    main()
