"""What is there before workers are forked survives it: no import starts a thread, and no first application does."""

import subprocess
import sys
import textwrap

from tests.skips import ROOT

PROGRAM = textwrap.dedent(
    """
    from pathlib import Path

    import service.adapters.redis_store
    import service.cli
    from service.main import create_app
    from service.settings import load_settings

    create_app(load_settings(store=Path()))
    print(*[(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()])
    """
)
KNOWS_FORKS = {"jemalloc_bg_thd"}
"""Of pyarrow's allocator, which stops it before a fork and starts it after."""


def test_nothing_that_a_fork_would_lose_is_started_before_workers_are(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    )
    threads = [name for name in done.stdout.split() if name not in KNOWS_FORKS]
    assert len(threads) == 1, threads
