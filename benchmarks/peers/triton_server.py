"""Runs in Triton's environment, not in ours: `triton_server.py STORE HTTP_PORT GRPC_PORT INSTANCES`.

Legend: `B` users, `L` history length, `H` history row, `K` results.
"""

import signal
import sys
import threading
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from index.features import Rows
from index.store import ArtifactStore
from service.runtime.servable import load_servable

K = 20
MAX_BATCH = 16


def main() -> None:
    """Serve until SIGTERM."""
    artifacts = ArtifactStore(Path(sys.argv[1]))
    http_port, grpc_port, instances = map(int, sys.argv[2:])
    version = artifacts.current()
    assert version is not None
    servable = load_servable(artifacts, version)
    length = servable.history_length

    @batch
    def recommend(rows: Rows) -> dict[str, Rows]:
        history_BLH = servable.history(rows.ravel()).reshape(*rows.shape, -1)
        queries = servable.encode_users(history_BLH, np.ones(rows.shape, dtype=np.bool_))
        _, found = servable.search(queries, k=K + length)
        # The first K of each line that are not in its history: a stable sort puts them before the others.
        seen = (found[:, :, np.newaxis] == rows[:, np.newaxis, :]).any(axis=2)
        order = np.argsort(seen, axis=1, kind="stable")[:, :K]
        return {"best": np.take_along_axis(found, order, axis=1)}

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        allow_metrics=False,
        http_thread_count=2,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="recommend",
            infer_func=[recommend] * instances,
            inputs=[Tensor(name="rows", dtype=np.int64, shape=(length,))],
            outputs=[Tensor(name="best", dtype=np.int64, shape=(K,))],
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.run()
        stopped.wait()


if __name__ == "__main__":
    main()
