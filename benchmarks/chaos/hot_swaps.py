"""Fifty swaps between three versions while requests come in: nothing fails, nothing is mixed, nothing is kept."""

import re
import urllib.request
from collections.abc import Iterator

from benchmarks import server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Body, Callers, failed
from benchmarks.chaos.fault import Fault, Finding, Ground

SWAPS = 50
CALLERS = 8
ASKED_USERS = 20
MOST_GROWTH = 0.05
SWAPS_COUNTED = re.compile(r"^prismrec_servable_swaps_total (\S+)$", re.MULTILINE)


def ask(number: int) -> tuple[str, object]:
    """Bring the history along, so that the answer depends on the version alone."""
    history = [{"item_id": item_id} for item_id in grounds.own_items(number % ASKED_USERS)]
    return "/v1/recommendations", {"history": history, "k": grounds.K}


def run(ground: Ground) -> Iterator[Finding]:
    """Swap, and hold every answer against what its version answers when it is left alone."""
    versions = grounds.versions(ground.folder)
    expected: dict[tuple[str, int], set[str]] = {}
    models: dict[str, str] = {}
    seen: set[str] = set()

    def judge(number: int, answer: Body) -> str | None:
        version = answer["index"]["version"]
        seen.add(version)
        if answer["model"]["version"] != models[version]:
            return f"{version} with {answer['model']['version']}"
        # One place may differ: two equal scores are ordered by how many requests were computed together.
        common = expected[version, number % ASKED_USERS] & items_of(answer)
        return None if len(common) >= grounds.K - 1 else f"{version} answers request {number} with other items"

    with server.service(
        versions.store.root,
        history=f"sqlite:{ground.folder / 'events.db'}",
        workers=ground.workers,
        log=ground.log,
        settings={"PRISMREC_RELOAD__INTERVAL_S": "0.1"},
    ) as service:
        swaps = num_swaps(service)

        def swap_to(version: str) -> None:
            nonlocal swaps
            versions.store.set_current(version)
            swaps += ground.workers
            grounds.wait_until(lambda: num_swaps(service) >= swaps, what=f"all workers serve {version}")

        for version in (*versions.snapshots[1:], versions.snapshots[0]):
            swap_to(version)
            for number in range(ASKED_USERS):
                answer, _ = service.post(*ask(number))
                models[version] = answer["model"]["version"]
                expected[version, number] = items_of(answer)

        amount = ground.amount(SWAPS)
        warm = min(max(3, amount // 10), amount - 1)
        memory_mib: list[float] = []
        with Callers(service.port, ask, connections=CALLERS, judge=judge, pause_s=0.005) as callers:
            for number in range(1, amount + 1):
                swap_to(versions.snapshots[number % len(versions.snapshots)])
                memory_mib.append(sum(row["pss_mib"] for row in service.memory_mib()))
    answers = callers.answers
    yield Finding(
        "no request fails", f"{len(failed(answers)):,} of {len(answers):,} over {amount} swaps", not failed(answers)
    )
    yield Finding(
        "no answer mixes versions",
        "; ".join(callers.complaints[:1]) or f"none; {len(seen)} versions answered",
        not callers.complaints and len(seen) == len(versions.snapshots),
    )
    growth = memory_mib[-1] / memory_mib[warm] - 1
    yield Finding(
        f"memory grows by less than {MOST_GROWTH:.0%} after the first swaps",
        f"{memory_mib[warm]:.0f} to {memory_mib[-1]:.0f} MiB ({growth:+.1%}) over {amount - 1 - warm} swaps",
        growth < MOST_GROWTH,
    )


def items_of(answer: Body) -> set[str]:
    """Return the ids of an answer's items."""
    return {item["item_id"] for item in answer["items"]}


def num_swaps(service: server.Service) -> int:
    """Return how many swaps all workers together have counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=10) as page:
        counted = SWAPS_COUNTED.search(page.read().decode())
    return 0 if counted is None else int(float(counted[1]))


FAULT = Fault("hot-swaps", "Hot swaps under load", run)
