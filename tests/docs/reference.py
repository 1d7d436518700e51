"""The parts of documents that are made from the code, and the command that rewrites them: `make docs`.

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import typer

import index.cli
import service.cli
import training.cli
from benchmarks.chaos import report
from service.settings import settings_markdown
from tests.skips import ROOT

APPS = {"prismrec-train": training.cli.app, "prismrec-index": index.cli.app, "prismrec-serve": service.cli.app}


def commands() -> Iterator[tuple[str, object]]:
    """Every command with its full name, such as `prismrec-index rebuild`."""
    for name, app in APPS.items():
        yield from _leaves(name, typer.main.get_command(app))


def _leaves(name: str, command: object) -> Iterator[tuple[str, object]]:
    inner = getattr(command, "commands", None)
    if not inner:
        yield name, command
        return
    if getattr(command, "invoke_without_command", False):
        yield name, command
    for child, subcommand in inner.items():
        yield from _leaves(f"{name} {child}", subcommand)


def commands_table() -> str:
    """The table of commands with the first sentence of their help."""
    lines = ["| command | does |", "|---|---|"]
    for name, command in commands():
        summary = re.split(r"(?<=\.)\s|\n\n", command.help.strip())[0]
        arguments = " ".join(
            one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument"
        )
        lines.append(f"| `{name} {arguments}".rstrip() + f"` | {' '.join(summary.split())} |")
    return "\n".join(lines) + "\n"


PARTS: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"settings": settings_markdown, "commands": commands_table},
    ROOT / "docs/reliability.md": {"faults": report.table},
}


def with_part(text: str, name: str, content: str) -> str:
    """Return a document with one part replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    assert pattern.search(text), f"there is no part {name!r}"
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def rewrite() -> None:
    """Bring every part up to date."""
    for path, parts in PARTS.items():
        text = path.read_text()
        for name, content in parts.items():
            text = with_part(text, name, content())
        path.write_text(text)
        sys.stdout.write(f"{path.relative_to(ROOT)}: {', '.join(parts)}\n")


if __name__ == "__main__":
    rewrite()
