"""Few or many keep-alive connections on two workers: neither of them has much more to do than the other."""

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Callers
from benchmarks.chaos.fault import Fault, Finding, Ground

WIDTHS = (16, 64)
MOST = 0.65


def run(ground: Ground) -> Iterator[Finding]:
    """Open so many connections, ask on each of them, and look at both workers."""
    versions = grounds.versions(ground.folder)
    with server.service(
        versions.store.root, history=f"sqlite:{ground.folder / 'events.db'}", workers=2, log=ground.log
    ) as service:
        workers = service.worker_ids()
        for width in WIDTHS:
            idle = [num_sockets(process_id) for process_id in workers]
            with Callers(service.port, grounds.recommend, connections=width, pause_s=0.01):
                time.sleep(0.5)
                cpu_s = list(map(server.cpu_s_of, workers))
                time.sleep(ground.seconds)
                spent_s = [server.cpu_s_of(one) - before for one, before in zip(workers, cpu_s, strict=True)]
                sockets = [num_sockets(one) - before for one, before in zip(workers, idle, strict=True)]
            grounds.wait_until(
                lambda idle=idle: [num_sockets(one) for one in workers] <= idle,  # type: ignore[misc]  # bound at once
                what="the connections are closed",
            )
            yield _finding(f"connections of {width}", sockets)
            yield _finding(f"processor time for {width} connections", spent_s)


def _finding(what: str, parts: list[int] | list[float]) -> Finding:
    share = max(parts) / max(sum(parts), 1e-9)
    return Finding(
        f"{what}: at most {MOST:.0%} on one worker",
        f"{share:.0%} ({' and '.join(f'{part:.3g}' for part in parts)})",
        sum(parts) > 0 and share <= MOST,
    )


def num_sockets(process_id: int) -> int:
    """Return how many sockets a process has open."""
    num = 0
    for file in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            num += str(file.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue  # closed meanwhile
    return num


FAULT = Fault("balance", "16 and 64 connections on two workers", run)
