"""A skipped test proves nothing, so a skip is a failure unless its reason is on the list below."""

import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_VARIABLE = "PRISMREC_TEST_SHARED"


def shared_root() -> Path | None:
    """Return the folder of measured data sets that are not part of the repository, or None where there is none.

    Raises:
        pytest.UsageError: The variable names a folder that does not exist.
    """
    named = os.environ.get(SHARED_VARIABLE)
    folder = Path(named) if named else ROOT.parent / "shared"
    if folder.is_dir():
        return folder
    if named:
        raise pytest.UsageError(f"{SHARED_VARIABLE}={named}: no such folder")
    return None


ALLOWED: Mapping[str, Callable[[], bool]] = {"needs_shared": lambda: shared_root() is None}
"""Marker to the condition under which a test that carries it may be skipped. There is no other way to skip."""


class SkipGuard:
    """Turns an unexpected skip into a failure where it is reported, so that every runner and worker counts it."""

    def __init__(self, allowed: Mapping[str, Callable[[], bool]] = ALLOWED) -> None:
        self.allowed = allowed

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        expected = any(item.get_closest_marker(name) and condition() for name, condition in self.allowed.items())
        if report.skipped and not hasattr(report, "wasxfail") and not expected:
            report.outcome = "failed"
            report.longrepr = f"unexpected skip: {_reason(report)}"
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.skipped:
            report.outcome = "failed"
            report.longrepr = f"unexpected skip of a whole file: {_reason(report)}"
        return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
