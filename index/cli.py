"""`prismrec-index`: fold, rebuild, check, list, current, rollback, prune. Parses, calls a function, prints a result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from api_schemas.aliases import DEFAULT_SCENARIO
from index.bundle import Bundle
from index.check import RECALL_TOLERANCE, check_snapshot
from index.config import RebuildConfig
from index.dataset import Dataset
from index.fold import fold as fold_items
from index.fold import read_records
from index.progress import reporting
from index.rebuild import rebuild as rebuild_index
from index.snapshot import IndexSnapshot
from index.store import ArtefactError, ArtifactStore, StoredVersion

app = typer.Typer(
    name="prismrec-index",
    help="Make index snapshots from bundles and catalogues, and look after the store that they lie in.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the artefact store.", file_okay=False)]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what may go wrong with files, data and configuration into one line and exit code 1."""
    try:
        yield
    except (ArtefactError, ValueError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _fail(reason: str) -> NoReturn:
    typer.echo(f"prismrec-index: {reason}", err=True)
    raise typer.Exit(1)


@app.command()
def rebuild(
    *,
    store: StoreOption,
    bundle: Annotated[str, typer.Option("--bundle", metavar="VERSION", help="Bundle to encode with.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Dataset folder with the catalogue.")],
    ranker: Annotated[
        str | None,
        typer.Option("--ranker", metavar="VERSION", help="Bundle of a ranker, to order what the other one retrieves."),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="TOML", help="See index/configs.")] = None,
    make_current: Annotated[
        bool, typer.Option("--current/--not-current", help="Whether services take it, or only aliases that name it.")
    ] = True,
) -> None:
    """Encode a catalogue, build and check its index, publish it and make it current."""
    with _one_line_errors(), reporting() as report:
        made = rebuild_index(
            ArtifactStore(store),
            bundle_version=bundle,
            ranker_version=ranker,
            dataset=Dataset.open(data),
            config=RebuildConfig.load(config) if config else RebuildConfig(),
            make_current=make_current,
            report=report,
        )
    by_ranker = "" if made.num_encoded_by_ranker is None else f", {made.num_encoded_by_ranker:,} for the ranker"
    typer.echo(
        f"{made.version}: {made.num_items:,} items ({made.num_encoded:,} encoded{by_ranker}), {made.factory}, "
        f"recall@100 {made.recall_at_100:.4f}, in {made.path}{'; it is current now' if make_current else ''}"
    )


@app.command()
def fold(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Dataset folder, as it was.")],
    items: Annotated[
        Path, typer.Option("--items", metavar="FILE", help="Changed items, by 'prismrec-serve export-items'.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new dataset folder; not there yet.")],
) -> None:
    """Write a dataset with the items that a service has changed since; to be rebuilt from, and trained on."""
    with _one_line_errors():
        made = fold_items(Dataset.open(data), read_records(items), out)
    typer.echo(
        f"{out}: {made.dataset.num_items:,} items ({made.num_added:,} added, {made.num_changed:,} changed, "
        f"{made.num_deleted:,} deleted, {made.num_ignored:,} ignored), changes up to "
        f"{made.dataset.manifest.changes_seq} are in it"
    )


@app.command()
def check(
    store: StoreOption,
    version: Annotated[str | None, typer.Option("--version", help="Snapshot; the current one by default.")] = None,
    min_recall: Annotated[
        float | None, typer.Option("--min-recall", min=0, max=1, help="Floor; by default what the rebuild measured.")
    ] = None,
) -> None:
    """Verify every hash of a snapshot and its bundles, replay the golden answers, measure the recall@100 again."""
    artefacts = ArtifactStore(store)
    with _one_line_errors(), reporting() as report:
        wanted = version or _current(artefacts)
        path, manifest = artefacts.open_snapshot(wanted)
        bundle, *rest = [Bundle.open(artefacts.open_bundle(one.bundle_version)[0]) for one in manifest.encoded]
        snapshot = IndexSnapshot.open(path, manifest)
        floor = manifest.recall_at_100 - RECALL_TOLERANCE if min_recall is None else min_recall
        found = check_snapshot(
            snapshot,
            bundle,
            snapshot.queries,
            ranker=rest[0] if rest else None,
            min_recall_at_100=floor,
            report=report,
        )
    names = _bundles([one.bundle_version for one in manifest.encoded], joined_by=" and ")
    typer.echo(
        f"{wanted}: all files are as published, {manifest.num_items:,} items, {names} reproduced the golden answers, "
        f"{manifest.factory} finds {found.recall_at_100:.4f} of the exact top 100"
    )


@app.command("list")
def list_versions(store: StoreOption) -> None:
    """Print all published versions, oldest first: what is current, what a rollback would go to, what is broken."""
    artefacts = ArtifactStore(store)
    with _one_line_errors():
        entries = artefacts.list()
        target = artefacts.rollback_target()
    for entry in entries:
        typer.echo(_line(entry, is_rollback_target=entry.version == target))
    if not entries:
        typer.echo(f"{store}: no version is published here")


def _line(entry: StoredVersion, *, is_rollback_target: bool) -> str:
    remarks = [
        "current" if entry.is_current else "",
        "rollback goes here" if is_rollback_target else "",
        *[f"alias {scenario}" for scenario in entry.aliases if scenario != DEFAULT_SCENARIO],
        f"broken: {entry.problem}" if entry.problem else "",
    ]
    size = f"{entry.size_bytes / 1e6:,.1f} MB"
    parts = [f"{entry.version:<44}", f"{size:>12}", _bundles(entry.bundle_versions, joined_by="  "), *remarks]
    return "  ".join(part for part in parts if part)


def _bundles(versions: Sequence[str], *, joined_by: str) -> str:
    """Return the bundles of a snapshot and what each is for."""
    return joined_by.join(f"{role} {version}" for role, version in zip(("bundle", "ranker"), versions, strict=False))


@app.command()
def current(store: StoreOption) -> None:
    """Print the version that services load."""
    with _one_line_errors():
        typer.echo(_current(ArtifactStore(store)))


def _current(store: ArtifactStore) -> str:
    version = store.current()
    if version is None:
        raise ArtefactError(store.root / "CURRENT", "there is no current snapshot: run prismrec-index rebuild")
    return version


@app.command()
def rollback(store: StoreOption) -> None:
    """Make the snapshot current that was it before; services follow. Once more goes back one more."""
    with _one_line_errors():
        typer.echo(f"{ArtifactStore(store).rollback()} is current now")


@app.command()
def prune(
    store: StoreOption,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Newest snapshots and bundles that stay.")] = 3,
) -> None:
    """Remove old versions. The current one, the one before it, their bundles and what is in use always stay."""
    with _one_line_errors():
        removed = ArtifactStore(store).prune(keep=keep)
    for version in removed:
        typer.echo(f"removed {version}")
    typer.echo(f"{len(removed)} removed")


if __name__ == "__main__":
    app()
