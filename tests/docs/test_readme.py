"""What the documents say about commands and settings is what the code does."""

import re
import shlex

import pytest

from tests.docs import reference, tree
from tests.skips import ROOT

FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = dict(reference.commands())
SHOWN = sorted(
    {
        (tree.name(document), line.strip())
        for document in tree.documents()
        for block in FENCE.findall(document.read_text())
        for line in re.sub(r"\\\n\s*", " ", block).splitlines()
        if re.match(r"\s*(?:\.venv/bin/)?prismrec-|\s*make ", line)
    }
)
PARTS = [(path, name) for path, parts in reference.PARTS.items() for name in parts]


@pytest.mark.parametrize(("path", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_part_made_from_the_code_is_up_to_date(path, name):
    text = path.read_text()
    assert reference.with_part(text, name, reference.PARTS[path][name]()) == text, "run: make docs"


def test_the_documents_show_commands():
    assert len(SHOWN) >= 10


@pytest.mark.parametrize(("document", "line"), SHOWN)
def test_a_command_that_a_document_shows_exists_with_its_options(document, line):
    words = shlex.split(re.split(r"\s{2,}|\s[#|>]", line)[0])
    if words[0] == "make":
        targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
        assert {word for word in words[1:] if "=" not in word} <= targets
        return
    words[0] = words[0].rpartition("/")[2]
    name = next((" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in COMMANDS), None)
    assert name, f"no such command: {line}"
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
    shown = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert shown <= options


def test_every_benchmark_that_a_document_names_exists():
    text = "".join(document.read_text() for document in tree.documents()) + (ROOT / "Makefile").read_text()
    named = set(re.findall(r"python -m benchmarks\.(\w+)", text))
    assert named
    homes = {name: (ROOT / f"benchmarks/{name}.py", ROOT / f"benchmarks/{name}/__main__.py") for name in named}
    assert not [name for name, files in homes.items() if not any(file.is_file() for file in files)]


def test_every_command_says_what_it_does_and_what_each_option_is():
    silent = [name for name, command in COMMANDS.items() if not command.help]
    silent += [
        f"{name} {parameter.opts[0]}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.param_type_name == "option" and not getattr(parameter, "help", None)
    ]
    assert not silent


def test_every_path_that_the_architecture_names_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:api_schemas|index|training|service|tests|docs|benchmarks)/[\w./-]*)`", text))
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_architecture_is_a_page_and_not_a_book():
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 200


def test_the_changelog_has_a_place_for_what_is_not_released():
    assert tree.section((ROOT / "CHANGELOG.md").read_text(), "[Unreleased]").strip()


def test_no_setting_is_named_that_does_not_exist():
    from service.settings import NOT_SETTINGS, describe_settings

    known = {row.variable for row in describe_settings()} | set(NOT_SETTINGS)
    files = [*tree.documents(), ROOT / "compose.yaml", ROOT / "Dockerfile", ROOT / "Makefile", ROOT / ".ci/run"]
    named = {(tree.name(path), name) for path in files for name in re.findall(r"PRISMREC_[A-Z0-9_]+", path.read_text())}
    assert not [(path, name) for path, name in sorted(named) if name not in known]
