"""The Makefile, CI's script and the container files name things that exist, and each other's parts."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest

from tests.skips import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()
SCRIPTS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_help_comes_first_and_lists_every_target():
    shown = make()
    assert shown.returncode == 0
    assert set(re.findall(r"^  make ([a-z-]+)", shown.stdout, re.MULTILINE)) == TARGETS


def test_every_target_can_be_planned():
    done = make("--dry-run", *sorted(TARGETS - {"clean"}))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_missing_or_failing_python_is_told_in_words(tmp_path, python):
    done = make("install", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "Prismrec needs Python 3.11 or newer" in done.stderr
    assert python in done.stderr


def test_a_missing_redis_server_is_told_in_words_and_no_test_is_skipped_for_it(tmp_path):
    for tool in ("bash", "touch"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = make("test", "--old-file=.venv/.dev", f"PATH={tmp_path}")
    assert done.returncode != 0
    assert "The tests need redis-server: apt-get install redis-server" in done.stderr


@pytest.mark.parametrize(
    ("said", "code", "asked"),
    [
        ("No known vulnerabilities found", 0, True),
        ("Found 1 known vulnerability in 1 package", 1, True),
        ("ERROR:pip_audit._cli:numpy: Dependency not found on PyPI and could not be audited", 1, False),
    ],
)
def test_an_audit_passes_only_when_all_could_be_asked_and_says_when_not(tmp_path, said, code, asked):
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\necho '{said}'\nexit {code}\n")
    (tmp_path / "pip-audit").chmod(0o755)
    done = make("audit", "--old-file=.venv/.dev", f"BIN={tmp_path}")
    assert (done.returncode == 0) == (code == 0)
    assert said in done.stdout
    assert ("could not be asked" in done.stderr) != asked


def test_the_script_of_ci_installs_what_is_missing_and_ends_as_its_check_ends(tmp_path):
    calls = tmp_path / "calls"
    for tool in ("bash", "dirname", "env", "id"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    for stub, code in {"apt-get": 0, "sudo": 0, "curl": 0, "git": 0, "make": 3}.items():
        (tmp_path / stub).write_text(f'#!{shutil.which("bash")}\necho "{stub} $*" >> {calls}\nexit {code}\n')
        (tmp_path / stub).chmod(0o755)
    done = subprocess.run([ROOT / ".ci/run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert re.findall(r"apt-get (?:update|install).*|make .*", calls.read_text()) == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends redis-server",
        "make check",
    ]


def test_the_images_are_built_from_files_that_exist_and_are_let_through():
    lines = (ROOT / ".dockerignore").read_text().split()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let_through)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == let_through


def test_the_images_start_scripts_that_exist_and_copy_from_stages_that_exist():
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert stages[-1] == "service", "the last stage is what a build without --target gives"
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= set(stages)
    assert set(re.findall(r"^FROM ([a-z-]+) AS", DOCKERFILE, re.MULTILINE)) <= set(stages)
    assert set(re.findall(r'^ENTRYPOINT \["(\S+)"\]$', DOCKERFILE, re.MULTILINE)) <= SCRIPTS
    for stage in ("service", "training"):
        body = DOCKERFILE.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert re.search(r"^USER prismrec$", body, re.MULTILINE), f"{stage} runs as root"
        assert not re.search(r"pip|apt-get", body), f"{stage} installs something"


def test_the_service_image_asks_for_what_sends_traces_and_no_other_extra_and_proves_its_health_where_readiness_is():
    install = re.search(r"^FROM base AS build-service\n(.*?)^FROM ", DOCKERFILE, re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r"pip install --constraint constraints.txt (\S+)", install) == ['".[otel]"']
    assert "/readyz" in re.search(r"^HEALTHCHECK .*?^ENTRYPOINT", DOCKERFILE, re.MULTILINE | re.DOTALL)[0]


def test_compose_builds_a_target_that_exists_and_runs_a_redis_that_loses_nothing():
    assert re.findall(r"target: (\S+)", COMPOSE) == ["service"]
    assert '"--appendonly", "yes", "--appendfsync", "always"' in COMPOSE
