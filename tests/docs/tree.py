"""The repository as its documents and checks see it."""

import re
import subprocess
from functools import cache
from pathlib import Path

from tests.skips import ROOT

PACKAGES = ("api_schemas", "index", "training", "service")
TEXT_SUFFIXES = {"", ".cfg", ".ini", ".json", ".lua", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return tuple(sorted(path for name in listed if name and (path := ROOT / name).is_file()))


def texts() -> tuple[Path, ...]:
    """Of these, the ones that people read."""
    return tuple(path for path in files() if path.suffix in TEXT_SUFFIXES)


def documents() -> tuple[Path, ...]:
    """The Markdown files."""
    return tuple(path for path in files() if path.suffix == ".md")


def modules() -> tuple[Path, ...]:
    """The Python files of the product's packages."""
    return tuple(path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES)


def name(path: Path) -> str:
    """The path as a test's id."""
    return str(path.relative_to(ROOT))


def section(text: str, heading: str) -> str:
    """Return what stands under a Markdown heading, up to the next heading of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(heading)}\n", text, re.MULTILINE)
    assert match, f"no heading {heading!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """Return the body rows of the first Markdown table in a text, cell by cell."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines[2:]]
