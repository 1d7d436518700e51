"""Nothing is told to anybody: ONNX Runtime is loaded with its reports turned off, whoever loads it."""

import subprocess
import sys

import pytest

from tests.skips import ROOT

LOADS = "import {module}, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"


def run(program, home, **variables):
    environment = {"PATH": "/nowhere", "HOME": str(home), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["index.bundle", "index.scan", "training.golden"])
def test_onnx_runtime_reports_nothing(module, tmp_path):
    assert run(LOADS.format(module=module), tmp_path) == "1"
    assert not list(tmp_path.iterdir()), "it keeps no device id either"


def test_whoever_wants_the_reports_can_have_them(tmp_path):
    assert run(LOADS.format(module="index.bundle"), tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
