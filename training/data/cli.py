"""`prismrec-train data`: make, import, mask and validate dataset folders."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from index.dataset import Dataset, DatasetError
from index.dataset_validate import validate as find_problems
from index.dataset_write import DatasetWriter
from index.progress import reporting
from training.data.featurise import HashedText, ImageDescriptor
from training.data.featurise.adapters import EncoderError, OnnxImageFeaturiser, Scaling, SentenceFeaturiser
from training.data.featurise.batches import PictureError
from training.data.generator import GeneratorConfig, make_dataset
from training.data.importers import mind, movielens, tables
from training.data.importers.items import FeatureFile, FeatureOptions
from training.data.importers.sources import SourceError
from training.data.importers.tables import TimeUnit
from training.data.mask import mask_dataset

app = typer.Typer(no_args_is_help=True, help="Make, import, mask and validate dataset folders.")

_DEFAULTS = GeneratorConfig()


class Kind(StrEnum):
    """What can be imported."""

    MOVIELENS = "movielens"
    MIND = "mind"
    TABLES = "tables"


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must not exist yet.")],
    users: Annotated[int, typer.Option(min=1, help="Number of users.")] = _DEFAULTS.num_users,
    items: Annotated[int, typer.Option(min=16, help="Number of items.")] = _DEFAULTS.num_items,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = _DEFAULTS.seed,
    covers: Annotated[
        int | None, typer.Option(min=16, max=1024, metavar="PIXELS", help="Keep the covers as PNG files of this side.")
    ] = None,
) -> None:
    """Generate a catalogue with covers, texts and categories, and users driven by one modality each."""
    config = GeneratorConfig(num_users=users, num_items=items, seed=seed, covers_side=covers)
    with _failing_cleanly(), reporting() as on_progress:
        dataset = make_dataset(folder, config, on_progress=on_progress)
    typer.echo(f"made {_described(dataset)}")


@app.command("import")
def import_(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="movielens, mind or tables.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", exists=True, file_okay=False, help="Folder as it was published.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must not exist yet.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the data set; default: that of SOURCE.")] = None,
    min_rating: Annotated[float | None, typer.Option(help="movielens: leave out ratings below this one.")] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of pictures named by item id.")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE.npy[,IDS.txt]", help="A ready-made modality; may be given several times."),
    ] = None,
    image_model: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="ONNX vision model for the pictures.")
    ] = None,
    image_scaling: Annotated[Scaling, typer.Option(help="How the ONNX model wants its colours.")] = Scaling.IMAGENET,
    text_model: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="sentence-transformers model for the texts.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="tables: a column that is called otherwise there."),
    ] = None,
    time_unit: Annotated[TimeUnit | None, typer.Option(help="tables: what timestamps are; default: seconds.")] = None,
) -> None:
    """Import a published data set, or tables of your own, in bounded memory."""
    _refuse_foreign("--min-rating", min_rating, kind, Kind.MOVIELENS)
    _refuse_foreign("--column", columns, kind, Kind.TABLES)
    _refuse_foreign("--time-unit", time_unit, kind, Kind.TABLES)
    files = tuple(_feature_file(text) for text in features or [])
    mapping = dict(_pair("--column", text) for text in columns or [])
    with _failing_cleanly(), reporting() as on_progress:
        image_featuriser = OnnxImageFeaturiser(image_model, scaling=image_scaling) if image_model else ImageDescriptor()
        options = FeatureOptions(
            images=images,
            files=files,
            image_featuriser=image_featuriser,
            text_featuriser=SentenceFeaturiser.load(text_model) if text_model else HashedText(),
        )
        with DatasetWriter(folder, name=name or source.resolve().name, licence=_LICENCES.get(kind, "")) as writer:
            if kind is Kind.MOVIELENS:
                movielens.import_movielens(
                    writer, source, features=options, min_rating=min_rating, on_progress=on_progress
                )
            elif kind is Kind.MIND:
                mind.import_mind(writer, source, features=options, on_progress=on_progress)
            else:
                unit = time_unit or TimeUnit.SECONDS
                tables.import_tables(
                    writer, source, features=options, columns=mapping, time_unit=unit, on_progress=on_progress
                )
            dataset = writer.publish(on_progress=on_progress)
    typer.echo(f"imported {_described(dataset)}")


@app.command()
def mask(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A dataset folder; it stays as it is.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must not exist yet.")],
    *,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the items that have a modality, how many lose it.")],
    modalities: Annotated[
        list[str] | None,
        typer.Option("--modality", metavar="NAME", help="Mask this one alone; may be given several times."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="What is masked at a share is masked at a larger one, too.")] = 0,
) -> None:
    """Copy a dataset folder with a share of what items have of each modality marked absent."""
    with _failing_cleanly(), reporting() as on_progress:
        dataset = mask_dataset(
            Dataset.open(source), folder, share=share, modalities=modalities, seed=seed, on_progress=on_progress
        )
    typer.echo(f"masked {_described(dataset)}")


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")],
) -> None:
    """Check every value of a dataset folder and tell all that is wrong."""
    with reporting() as on_progress:
        problems = find_problems(folder, on_progress=on_progress)
    for problem in problems:
        typer.echo(f"{problem.severity}: {problem}")
    num_errors = sum(problem.severity == "error" for problem in problems)
    if num_errors:
        typer.echo(f"{folder}: not valid, {num_errors} errors", err=True)
        raise typer.Exit(1)
    typer.echo(f"valid: {_described(Dataset.open(folder))}")


_LICENCES = {Kind.MOVIELENS: movielens.LICENCE, Kind.MIND: mind.LICENCE}


@contextmanager
def _failing_cleanly() -> Iterator[None]:
    """Turn what can go wrong into one line and exit code 1."""
    try:
        yield
    except (DatasetError, SourceError, PictureError, EncoderError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _described(dataset: Dataset) -> str:
    manifest = dataset.manifest
    counts = f"{manifest.num_users:,} users, {manifest.num_items:,} items, {manifest.num_interactions:,} interactions"
    modalities = ", ".join(f"{modality.name} ({modality.dim})" for modality in manifest.modalities)
    return f"{dataset.path}: {counts}; {modalities}"


def _feature_file(text: str) -> FeatureFile:
    name, value = _pair("--features", text)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise typer.BadParameter(f"--features: {name!r} is no name of a modality (lower case letters, digits, _)")
    path, _, ids = value.partition(",")
    return FeatureFile(name, Path(path), Path(ids) if ids else None)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{option}: {text!r} is not NAME=VALUE")
    return name, value


def _refuse_foreign(option: str, value: object, kind: Kind, meant_for: Kind) -> None:
    if value is not None and kind is not meant_for:
        raise typer.BadParameter(f"{option} is for {meant_for.value}, not for {kind.value}")
