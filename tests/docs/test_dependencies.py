"""Dependencies are argued for, and pinned."""

import itertools
import re
import tomllib

from tests.docs import tree
from tests.skips import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bare(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def test_every_dependency_has_one_line_of_reason_and_no_line_lacks_its_dependency():
    wanted = {(bare(entry), "base") for entry in PROJECT["dependencies"]}
    for extra, entries in PROJECT["optional-dependencies"].items():
        wanted |= {(bare(entry), extra) for entry in entries if bare(entry) != PROJECT["name"]}
    table = tree.rows((ROOT / "docs/adr/0009-dependencies.md").read_text())
    assert sorted((cells[0], cells[1]) for cells in table) == sorted(wanted)
    assert all(cells[2] for cells in table)


def test_every_dependency_is_pinned_in_the_constraints():
    extras = itertools.chain.from_iterable(PROJECT["optional-dependencies"].values())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {bare(line) for line in lines if "==" in line}
    assert {bare(entry) for entry in [*PROJECT["dependencies"], *extras]} - {PROJECT["name"]} <= pinned
