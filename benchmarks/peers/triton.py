"""Triton by way of nvidia-pytriton: our encoder and search behind its HTTP port and its dynamic batcher.

To its favour: the history comes with the request, as rows, so nothing is looked up in a store; rows come back, not ids;
as many instances as the service has workers, batches of up to 16, none waited for; two threads for HTTP and more.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from benchmarks import prepare, server
from benchmarks.peers.environments import environment, process
from benchmarks.peers.task import LENGTH, Peer, Running, Task

PYTHON = "/usr/bin/python3.11"
"""Debian's own: Triton loads libpython3.11 (apt-get install python3-venv libpython3.11)."""
SAME = ("onnxruntime", "faiss-cpu")
"""What computes is of the version that the service has; the rest is as Triton's client asks for it."""
INSTALLS = (
    (
        "nvidia-pytriton==0.7.0",
        *[f"{name}=={version(name)}" for name in SAME],
        *("pyarrow==20.0.0", "pydantic", "structlog"),  # this pyarrow still takes the NumPy 1 that pytriton asks for
    ),
)
ROOT = prepare.FOLDER.parent


@contextmanager
def start(task: Task) -> Iterator[Running]:
    """Run it."""
    folder = environment("triton", python=PYTHON, installs=INSTALLS)
    port = server.free_port()
    script = ROOT / "benchmarks/peers/triton_server.py"
    command = [folder / "bin/python", script, task.store.resolve(), port, server.free_port(), task.workers]
    variables = {"PYTHONPATH": str(ROOT), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    log = task.folder / "triton.log"
    with process(command, port=port, ready="/v2/models/recommend/ready", log=log, variables=variables):
        yield Running(
            port,
            "/v2/models/recommend/infer",
            [
                {"inputs": [{"name": "rows", "shape": [1, LENGTH], "datatype": "INT64", "data": rows}]}
                for rows in task.histories.tolist()
            ],
            lambda answer: [prepare.item_id(row) for row in answer["outputs"][0]["data"]],
        )


PEER = Peer("triton", "nvidia-pytriton 0.7.0: the same encoder and search", start)
