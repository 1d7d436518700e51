"""`prismrec-train`: make data, train, evaluate, compare. Commands parse, call one function and print."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import torch
import typer

from index.artefacts import ArtefactError
from index.bundle import Bundle
from index.dataset import Dataset
from index.metrics import METRICS, mean_and_deviation
from index.progress import reporting
from index.store import ArtifactStore
from training.baselines import run_baselines
from training.checkpoint import remove_checkpoints
from training.compare.comparison import LEADERBOARD_FILES
from training.compare.comparison import compare as compare_models
from training.compare.markdown import to_markdown
from training.compare.one_run import RunError
from training.compare.progress import telling
from training.compare.space import enter
from training.compare.tournament import Stopped
from training.compare.workers import processes
from training.config import AnyRun, ConfigError, load_config
from training.data.candidates import sampled_only, without_sampled
from training.data.cli import app as data_app
from training.data.interactions import read_interactions
from training.data.split import SplitConfig, SplitKind, make_split
from training.evaluate_bundle import Which, judge_bundle, judged_users
from training.golden import ParityError
from training.interrupt import stopping_on_signals
from training.progress import watching
from training.publish import publish_bundle
from training.runs import run_training
from training.trainer import Interrupted, TrainingError, run_digest

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make data sets, train models and publish them as bundles, evaluate bundles.",
)
app.add_typer(data_app, name="data")

DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="Dataset folder.")]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, such as optim.lr=1e-3; may be given several times."),
]
StoreOption = Annotated[
    Path, typer.Option("--store", metavar="STORE", file_okay=False, help="Folder of the artefact store.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write what is printed as JSON, too.")
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run; see training/configs.")],
    *,
    data: DataOption,
    store: StoreOption,
    overrides: OverridesOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of the configuration's.")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to train.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same run was stopped, if it was.")] = False,
) -> None:
    """Train a model, export it, prove the export, and publish the bundle."""
    settings = _settings(config, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    if device == "cuda" and not torch.cuda.is_available():
        _wrong_usage("--device cuda: this torch sees no GPU")
    with _failing_in_one_line():
        dataset = Dataset.open(data)
        checkpoints = store / ".checkpoints" / f"{settings.name}-{run_digest(settings, dataset)[:12]}"
        with watching(monitor=settings.eval.monitor) as observer, stopping_on_signals() as should_stop:
            made = run_training(
                settings,
                dataset,
                checkpoints=checkpoints,
                observer=observer,
                device=torch.device(device),
                resume=resume,
                should_stop=should_stop,
            )
        with reporting() as report:
            version = publish_bundle(
                ArtifactStore(store),
                model=made.model,
                config=settings,
                dataset=dataset,
                metrics=made.metrics,
                judged=judged_users(dataset, made.interactions, made.unseen, settings),
                extras=made.extras,
                on_progress=report,
            )
        remove_checkpoints(checkpoints)
    for part, values in made.metrics.items():
        typer.echo(f"{part}: {_told(_main_figures(without_sampled(values)))}")
    for part, values in made.metrics.items():
        if sampled := sampled_only(values):
            typer.echo(f"{part}, sampled: {_told(_main_figures(sampled))}")
    state = made.state
    for stage in state.reports:
        typer.echo(f"{stage.name}: {stage.steps:,} steps in {stage.seconds:,.1f} s {_facts(stage.facts)}".rstrip())
    best = "" if state.reports else f"; the best were the first {state.best_step:,}"
    steps = state.step + sum(stage.steps for stage in state.reports)
    typer.echo(f"trained {steps:,} steps in {state.elapsed_s:,.0f} s{best}")
    typer.echo(f"published in {store}: {version}")


@app.command()
def evaluate(
    *,
    store: StoreOption,
    bundle: Annotated[str, typer.Option("--bundle", metavar="VERSION", help="Bundle to judge.")],
    data: DataOption,
    split: Annotated[
        Which,
        typer.Option(help="test: the bundle's own test users. all: every user of the folder, seen in training or not."),
    ] = "test",
    explained_users: Annotated[
        int | None, typer.Option(min=0, help="Users for the faithfulness of explanations; default: as in the run.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure a bundle's ranking and the faithfulness of its explanations, through the graphs that are served."""
    with _failing_in_one_line():
        path, manifest = ArtifactStore(store).open_bundle(bundle)
        with reporting() as report:
            found = judge_bundle(
                Bundle.open(path), Dataset.open(data), which=split, num_explained=explained_users, on_progress=report
            )
        faithfulness = {method: values.model_dump() for method, values in found.faithfulness.items()}
        _write_json(
            json_file,
            {
                "bundle": manifest.version,
                "family": manifest.family,
                "data": str(data),
                "split": split,
                "num_users": found.num_users,
                "metrics": found.metrics,
                "metrics_of_known": found.metrics_of_known,
                "faithfulness": faithfulness,
            },
        )
    for method, values in faithfulness.items():
        typer.echo(f"{method}: {_told({name: value for name, value in values.items() if value is not None})}")
    metrics, sampled = without_sampled(found.metrics), sampled_only(found.metrics)
    for told, values in (("", metrics), ("sampled: ", sampled)):
        for name in METRICS:
            if named := {key: value for key, value in values.items() if key.startswith(f"{name}@")}:
                typer.echo(told + _told(named))
    if found.metrics_of_known is not None:
        known = found.metrics_of_known
        typer.echo(f"from their learned vectors: {_told(_main_figures(without_sampled(known)))}")
        if sampled:
            typer.echo(f"from their learned vectors, sampled: {_told(_main_figures(sampled_only(known)))}")
    typer.echo(f"{manifest.version} on {found.num_users:,} users ({split}): {_told(_main_figures(metrics))}")


@app.command()
def baselines(
    *,
    data: DataOption,
    split: Annotated[
        SplitKind, typer.Option(help="Which split, as `split.kind` in a run; of five folds the first is the test.")
    ] = "auto",
    seeds: Annotated[str, typer.Option(metavar="SEED,...", help="Of the split, as in `run`.")] = "0",
    json_file: JsonOption = None,
) -> None:
    """Judge popularity, item-kNN and EASE on the same split, each tuned on the validation users."""
    with _failing_in_one_line():
        interactions = read_interactions(Dataset.open(data))
        runs: dict[str, list[dict[str, float]]] = {}
        for seed in _seeds(seeds):
            with reporting() as report:
                made = make_split(interactions, SplitConfig(kind=split), seed=seed)
                results = run_baselines(made, cutoffs=(10, 20, 50), on_progress=report)
            for result in results:
                name = f"{result.name} {result.setting}".strip()
                typer.echo(f"seed {seed}, {name}: {_told(_main_figures(result.test))}")
                runs.setdefault(result.name, []).append(result.test)
        _write_json(json_file, runs)
    for name, found in runs.items():
        figures = mean_and_deviation([_main_figures(values) for values in found])
        told = ", ".join(f"{metric} {mean:.4f} +- {deviation:.4f}" for metric, (mean, deviation) in figures.items())
        typer.echo(f"mean of {len(found)}, {name}: {told}")


@app.command()
def compare(
    configs: Annotated[
        list[Path],
        typer.Argument(metavar="CONFIG.toml...", help="Models, each with what to search."),
    ],
    *,
    data: DataOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", file_okay=False, help="Folder of all that is made, to go on from.")
    ],
    trials: Annotated[int, typer.Option(min=1, help="Settings of each model that are tried on validation.")] = 8,
    seeds: Annotated[
        str, typer.Option(metavar="SEED,...", help="Of the runs that count; the first for trials.")
    ] = "0,1,2",
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Runs side by side, which share the cores.")] = 1,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare all with this model; default: the best other one.")
    ] = None,
    overrides: OverridesOption = None,
) -> None:
    """Tune several models alike on validation, train the best settings with several seeds, and compare them on test."""
    numbers = _seeds(seeds)
    if len(set(numbers)) < len(numbers):
        _wrong_usage(f"--seeds {seeds}: has a seed twice")
    try:
        entrants = enter([_settings(config, overrides or []) for config in configs], num_trials=trials)
    except ConfigError as error:
        _wrong_usage(str(error))
    if against is not None and against not in [entrant.name for entrant in entrants]:
        _wrong_usage(f"--against {against}: is none of {', '.join(entrant.name for entrant in entrants)}")
    with _failing_in_one_line(), telling() as tell, stopping_on_signals() as should_stop:
        board = compare_models(
            entrants,
            Dataset.open(data),
            out=out,
            seeds=numbers,
            num_trials=trials,
            against=against,
            workers=lambda: processes(jobs),
            tell=tell,
            should_stop=should_stop,
        )
    typer.echo(to_markdown(board))
    if not board.models:
        _fail("all models failed: the reasons are above")
    typer.echo(f"compared {len(board.models)} models: {' and '.join(str(out / name) for name in LEADERBOARD_FILES)}")


def _settings(config: Path, overrides: list[str]) -> AnyRun:
    try:
        return load_config(config, overrides)
    except ConfigError as error:
        _wrong_usage(str(error))


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        _wrong_usage(f"--seeds {text}: expected whole numbers with commas between them, such as 0,1,2")
    return [int(part) for part in parts]


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    """Turn what may go wrong with data, files and training into one line and exit code 1."""
    try:
        yield
    except Interrupted as stopped:
        _fail(f"{stopped}; the same command with --resume goes on from there")
    except Stopped as stopped:
        _fail(f"{stopped}; the same command goes on from there")
    except RunError as error:
        _fail(f"{error}; what is done is kept, and the same command goes on from there")
    except (ArtefactError, ParityError, TrainingError, ValueError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _fail(reason: str) -> NoReturn:
    typer.echo(f"prismrec-train: {reason}", err=True)
    raise typer.Exit(1)


def _wrong_usage(reason: str) -> NoReturn:
    typer.echo(f"prismrec-train: {reason}", err=True)
    raise typer.Exit(2)


def _main_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(("recall@", "ndcg@"))}


def _facts(facts: Mapping[str, float | list[float]]) -> str:
    return ", ".join(
        f"{name} {' '.join(f'{one:.3g}' for one in value) if isinstance(value, list) else f'{value:.3g}'}"
        for name, value in facts.items()
    )


def _told(values: Mapping[str, float | int]) -> str:
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _write_json(path: Path | None, document: object) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
