"""The guard against skipped tests, tried on a small suite of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import ROOT, SHARED_VARIABLE, shared_root

CONFTEST = """
from tests.skips import SkipGuard
import os

def pytest_configure(config):
    config.addinivalue_line("markers", "needs_shared: x")
    config.pluginmanager.register(SkipGuard({"needs_shared": lambda: os.environ["ABSENT"] == "yes"}))
"""


SUITE = """
import pytest

@pytest.fixture
def absent_thing():
    pytest.skip("reason of the fixture")

def test_skips_inside():
    pytest.skip("reason of the test")

@pytest.mark.skip(reason="reason of the mark")
def test_skips_by_mark():
    pass

def test_skips_in_its_fixture(absent_thing):
    pass

@pytest.mark.needs_shared
def test_needs_data():
    pytest.skip("no data")

@pytest.mark.xfail
def test_is_known_to_fail():
    assert 0

def test_passes():
    pass
"""


def run(folder: Path, *arguments: str, absent: str = "yes") -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments, "--rootdir", folder, folder],
        env={"PYTHONPATH": str(ROOT), "ABSENT": absent, "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(), ("-p", "xdist", "-n", "1")], ids=["one process", "workers"])
def test_an_unexpected_skip_fails_the_run_and_says_why(tmp_path, arguments):
    (tmp_path / "test_it.py").write_text(SUITE)
    code, output = run(tmp_path, *arguments)
    assert code == 1
    for place in ("test", "mark", "fixture"):
        assert f"unexpected skip: Skipped: reason of the {place}" in output
    assert "1 passed, 1 skipped, 1 xfailed" in output


def test_a_test_may_not_be_skipped_when_the_data_that_it_needs_is_there(tmp_path):
    (tmp_path / "test_it.py").write_text(SUITE)
    code, output = run(tmp_path, "-k", "needs_data", absent="no")
    assert code == 1
    assert "unexpected skip: Skipped: no data" in output


def test_a_file_that_is_skipped_whole_fails_the_run(tmp_path):
    (tmp_path / "test_it.py").write_text("import pytest\npytest.importorskip('no_such_module')\ndef test(): pass\n")
    code, output = run(tmp_path)
    assert code == 2
    assert "unexpected skip of a whole file" in output


def test_a_run_without_tests_fails(tmp_path):
    code, _ = run(tmp_path)
    assert code == 5


def test_a_wrong_path_to_the_shared_data_is_an_error_and_not_a_skip(monkeypatch, tmp_path):
    monkeypatch.setenv(SHARED_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(pytest.UsageError, match="nowhere"):
        shared_root()
