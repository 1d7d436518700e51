"""`prismrec-serve`: parses, checks, starts one process or several, prints where they answer."""

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import structlog
import typer

from index.config import RebuildConfig
from index.store import ArtefactError, ArtifactStore
from service.api.keys import SCOPES, new_key
from service.fork_server import ForkServer
from service.item_records import export_items, trim_items
from service.main import Drain, create_app, open_access
from service.observability.logging import SETTING_IGNORED, configure
from service.recommend.errors import StoreUnavailable
from service.server import GracefulServer, address_of, listen, run
from service.settings import (
    ServiceSettings,
    SettingsError,
    load_settings,
    settings_markdown,
    unknown_variables,
)
from service.stores import ItemStore, open_store, with_items
from service.supervisor import Supervisor
from service.worker import work

FAILED = 1
WRONG_USAGE = 2

Y = TypeVar("Y")

app = typer.Typer(
    help="Serve recommendations and explanations over HTTP.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    *,
    store: Annotated[Path | None, typer.Option(help="Folder of bundles and snapshots.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. Default: 8000.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer. Default: 1.")] = None,
    history: Annotated[
        str | None, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB. Default: events.db in the store folder.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with further settings.")] = None,
) -> None:
    """Serve what the store's CURRENT names. Every other setting: environment or TOML, see the documentation."""
    if context.invoked_subcommand is not None:
        return
    try:
        settings = load_settings(
            config_file=config, store=store, host=host, port=port, workers=workers, history=history
        )
        check(settings)
    except ValueError as error:
        _end(str(error), code=WRONG_USAGE)
    configure(level=settings.log.level, style=settings.log.format)
    for name in unknown_variables():
        structlog.get_logger().warning(SETTING_IGNORED, variable=name)
    if settings.auth.keys_file is None:
        _say("No API keys: only clients on this machine are served (see 'prismrec-serve new-key --help').")
    raise typer.Exit(_run_alone(settings) if settings.workers == 1 else _run_workers(settings))


def _run_alone(settings: ServiceSettings) -> int:
    listener = _listen(settings)
    return run(SingleServer(settings, on_ready=partial(_announce, settings, listener)), sockets=[listener])


def _run_workers(settings: ServiceSettings) -> int:
    create_app(settings)  # for practice: what libraries make for it and keep, all workers then have
    # Before there is a port, which would stay open as long as any process that has inherited it.
    with ForkServer(partial(work, settings)) as fork_server:
        listener = _listen(settings)
        on_ready = partial(_announce, settings, listener)
        return asyncio.run(Supervisor(settings, listener=listener, fork_server=fork_server, on_ready=on_ready).run())


def _listen(settings: ServiceSettings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        _end(f"{settings.host}:{settings.port}: {error.strerror or error}", code=FAILED)


def _announce(settings: ServiceSettings, listener: socket.socket) -> None:
    noun = "process" if settings.workers == 1 else "processes"
    typer.echo(f"Prismrec answers at {address_of(listener)} ({settings.workers} {noun})")
    sys.stdout.flush()


@app.command("new-key")
def make_key(
    scope: Annotated[list[str], typer.Option(help=f"What it allows: {', '.join(SCOPES)}; may be given several times.")],
    name: Annotated[str, typer.Option(help="Whose it is; stands in the keys file.")] = "client",
) -> None:
    """Make an API key: show it once, and the line that goes into the keys file."""
    try:
        key, line = new_key(name=name, scopes=scope)
    except ValueError as error:
        _end(str(error), code=WRONG_USAGE)
    typer.echo(f"key (shown once): {key}")
    typer.echo(f"line for the file that PRISMREC_AUTH__KEYS_FILE names:\n{line}")


HistoryOption = Annotated[str, typer.Option(help="Where the service keeps its events and changes of items.")]


@app.command("export-items")
def export_changes(
    history: HistoryOption,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the changed items are written.", dir_okay=False)],
) -> None:
    """Write the items that have changed to a file, for 'prismrec-index fold'."""
    end = _with_items(history, lambda changes: export_items(changes, out))
    typer.echo(f"{out}: {end.num_items:,} changed items, up to change {end.changes_seq}")


@app.command("trim-items")
def trim_changes(
    history: HistoryOption,
    store: Annotated[Path, typer.Option(help="Folder of bundles and snapshots.", file_okay=False)],
) -> None:
    """Forget changes that are in all indexes in use, and in those that a rollback would go to."""
    up_to, left = _with_items(history, lambda changes: trim_items(changes, ArtifactStore(store)))
    typer.echo(f"changes up to {up_to} are in the indexes; {left:,} changed or hidden items are kept")


def _with_items(history: str, work: Callable[[ItemStore], Awaitable[Y]]) -> Y:
    """Run something on the store of changes, and say in one line what is wrong with it."""
    try:
        return with_items(history, work, timeout_s=30)
    except (ArtefactError, ValueError, OSError, StoreUnavailable) as error:
        _end(" ".join(str(error).split()), code=FAILED)


@app.command()
def openapi() -> None:
    """Print the OpenAPI document, as in docs/openapi.json."""
    typer.echo(json.dumps(create_app(load_settings(store=Path())).openapi(), indent=2, ensure_ascii=False))


@app.command()
def settings() -> None:
    """Print the table of all settings in Markdown, as in docs/configuration.md."""
    typer.echo(settings_markdown(), nl=False)


def check(settings: ServiceSettings) -> None:
    """Find what would keep the service from starting, while it can still be said in one line.

    Raises:
        ValueError: Says what.
    """
    if not settings.store.is_dir():
        raise SettingsError(f"{settings.store}: there is no such folder; 'prismrec-index rebuild' makes one")
    open_access(settings)
    if settings.builds.config is not None:
        RebuildConfig.load(settings.builds.config)
    asyncio.run(open_store(settings.history_url, settings.events).close())


class SingleServer(GracefulServer):
    """The one process, when there is one."""

    def __init__(self, settings: ServiceSettings, *, on_ready: Callable[[], None]) -> None:
        drain = Drain()
        super().__init__(create_app(settings, drain=drain, on_failure=self.fail), http=settings.http, drain=drain)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets=sockets)
        self._on_ready()


def _say(text: str) -> None:
    typer.echo(f"prismrec-serve: {text}", err=True)


def _end(text: str, *, code: int) -> NoReturn:
    _say(text)
    raise typer.Exit(code)
