"""Serving needs no torch: importing the service loads none of it, nor of what only training needs."""

import subprocess
import sys

from tests.skips import ROOT

NOT_FOR_SERVING = ("torch", "onnx", "onnxscript", "polars", "PIL", "scipy", "safetensors", "training")


def test_the_service_is_imported_without_torch():
    program = "import sys, service.main, service.cli, service.worker, service.adapters.redis_store, index.cli\n"
    program += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT, env={"PATH": "/nowhere"}
    )
    assert not set(done.stdout.split()) & set(NOT_FOR_SERVING)
