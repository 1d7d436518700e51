"""SIGTERM with 64 connections under load: traffic goes on until `/readyz` says no, and not one request fails."""

import time
import urllib.error
from collections.abc import Iterator

from benchmarks import server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Callers, failed, statuses
from benchmarks.chaos.fault import Fault, Finding, Ground

CONNECTIONS = 64
DRAIN_S = 2.0
BALANCER_LOOKS_EVERY_S = 0.1
BALANCER_IS_LATE_S = 0.2
ROUNDS = 5


def run(ground: Ground) -> Iterator[Finding]:
    """Stop the service again and again, as a load balancer sees it."""
    versions = grounds.versions(ground.folder)
    rounds = ground.amount(ROUNDS)
    total = bad = 0
    seen = ""
    codes: list[int] = []
    for _ in range(rounds):
        service = server.launch(
            versions.store.root,
            history=f"sqlite:{ground.folder / 'events.db'}",
            workers=ground.workers,
            log=ground.log,
            settings={"PRISMREC_HTTP__DRAIN_S": f"{DRAIN_S:g}"},
        )
        try:
            service.wait_until_ready()
            with Callers(service.port, grounds.mixed(10), connections=CONNECTIONS, pause_s=0.02) as callers:
                time.sleep(min(ground.seconds, 3.0))
                service.process.terminate()
                while is_ready(service):
                    time.sleep(BALANCER_LOOKS_EVERY_S)
                time.sleep(BALANCER_IS_LATE_S)
            codes.append(service.process.wait(timeout=server.STOP_TIMEOUT_S))
        finally:
            service.kill()
        total, bad = total + len(callers.answers), bad + len(failed(callers.answers))
        seen = statuses(callers.answers)
    yield Finding(
        "no request fails",
        f"{bad} of {total:,} on {CONNECTIONS} connections over {rounds} stops; the last: {seen}",
        bad == 0,
    )
    yield Finding("every process ends with 0", f"{codes}", set(codes) == {0})


def is_ready(service: server.Service) -> bool:
    """Tell what a load balancer finds out: whether requests should be sent there."""
    try:
        service.get("/readyz")
    except urllib.error.HTTPError:
        return False
    return True


FAULT = Fault("sigterm", "SIGTERM under load", run)
