"""`prismrec-serve`: what it says before it serves, and what it prints instead of serving."""

import json
import re

import pytest
from typer.testing import CliRunner

from service.api.keys import parse_keys
from service.cli import app
from service.settings import settings_markdown


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("PRISMREC_"):
            monkeypatch.delenv(name)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "PRISMREC_STORE: is required"),
        (["--store", "{tmp}/none"], "none: there is no such folder; 'prismrec-index rebuild' makes one"),
        (["--store", "{tmp}", "--port", "70000"], "PRISMREC_PORT: Input should be less than or equal to 65535"),
        (["--store", "{tmp}", "--workers", "0"], "PRISMREC_WORKERS"),
        (["--store", "{tmp}", "--history", "mongodb://x"], "PRISMREC_HISTORY: .*sqlite:PATH or redis://"),
        (["--store", "{tmp}", "--history", "sqlite:{tmp}/no/e.db"], "no/e.db: the folder .*no does not exist"),
        (["--store", "{tmp}", "--history", "redis://localhost:port"], "port"),
        (["--store", "{tmp}", "--config", "{tmp}/none.toml"], r"none\.toml: No such file"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_line_with_exit_code_2(tmp_path, arguments, says):
    result = run(*[argument.format(tmp=tmp_path) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert re.search(rf"^prismrec-serve: .*{says}", result.output, re.MULTILINE), result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_bad_keys_file_keeps_it_from_starting(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMREC_AUTH__KEYS_FILE", str(tmp_path / "keys"))
    assert "No such file" in run("--store", tmp_path).output
    (tmp_path / "keys").write_text("nonsense")
    result = run("--store", tmp_path)
    assert (result.exit_code, "line 1" in result.output) == (2, True)


def test_a_new_key_is_shown_with_the_line_that_lets_it_in():
    result = run("new-key", "--scope", "serve", "--scope", "events", "--name", "shop")
    assert result.exit_code == 0
    key, line = result.output.splitlines()[0].split(": ")[1], result.output.splitlines()[-1]
    (entry,) = parse_keys(line, source="x")
    assert (entry.name, entry.scopes) == ("shop", {"serve", "events"})
    assert key.startswith("prk_")
    assert run("new-key", "--scope", "fly").exit_code == 2
    assert run("new-key").exit_code == 2


def test_the_openapi_document_and_the_settings_are_printed():
    assert "/v1/recommendations" in json.loads(run("openapi").output)["paths"]
    assert run("settings").output == settings_markdown()
