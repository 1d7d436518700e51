"""What has to stay as it is: time to be ready, the memory of one more worker, latency after many requests.

    python -m benchmarks.steady                                                as it is to be measured
    python -m benchmarks.steady --items 100000 --requests 5000                 a short run

Writes `benchmarks/results/steady.json`, prints each figure beside its aim, and ends with 1 when one is missed.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import load, machine, prepare, server

MOST_READY_S = {100_000: 3.0, 1_000_000: 10.0}
MOST_OF_THE_FIRST = 0.2
"""A further worker shares what was loaded, so it may take this part of what one alone takes."""
MOST_SLOWER = 1.1
CONNECTIONS = 8

Line = dict[str, Any]


def main() -> int:
    """Measure all three; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=lambda text: list(map(int, text.split(","))), default=list(MOST_READY_S))
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--name", default="steady")
    arguments = parser.parse_args()
    folder = prepare.FOLDER / "run"
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for num_items in arguments.items:
        lines += ready_and_memory(prepare.store(num_items), folder, num_items=num_items)
    lines += latency(prepare.store(arguments.items[0]), folder, requests=arguments.requests)
    result = {
        "command": "python -m benchmarks.steady " + " ".join(sys.argv[1:]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "lines": lines,
    }
    load.RESULTS.mkdir(parents=True, exist_ok=True)
    (load.RESULTS / f"{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    for line in lines:
        sys.stdout.write(f"{'holds' if line['holds'] else 'MISSED'}: {line['asked']}: {line['seen']}\n")
    return 0 if all(line["holds"] for line in lines) else 1


def ready_and_memory(store: Path, folder: Path, *, num_items: int) -> list[Line]:
    """Start one worker, then two and three, and look at the time that takes and the memory that is added.

    With several there are a supervisor and the process that workers are forked from, which share their pages: it is the
    third worker that says what one more costs.
    """
    memory_mib: list[float] = []
    ready_s = 0.0
    for workers in (1, 2, 3):
        with load.events_in("sqlite", folder) as history:
            service = server.launch(store, history=history, workers=workers, log=folder / "service.log")
            try:
                took_s = service.wait_until_ready()
                for number in range(300):  # so that all have touched what answering touches
                    service.post("/v1/recommendations", {"history": [{"item_id": prepare.item_id(number)}]})
                memory_mib.append(sum(row["pss_mib"] for row in service.memory_mib()))
            finally:
                service.stop()
        ready_s = max(ready_s, took_s)
    aim_s = MOST_READY_S.get(num_items, max(MOST_READY_S.values()))
    one, two, three = memory_mib
    share = (three - two) / one
    return [
        {
            "asked": f"{num_items:,} items: ready within {aim_s:g} s of the start",
            "seen": f"{ready_s:.2f} s",
            "holds": ready_s <= aim_s,
        },
        {
            "asked": f"{num_items:,} items: one more worker adds less than {MOST_OF_THE_FIRST:.0%} of one alone (PSS)",
            "seen": f"{share:.0%}: {one:.0f} MiB by one, {two:.0f} by two, {three:.0f} by three, all processes",
            "holds": share < MOST_OF_THE_FIRST,
        },
    ]


def latency(store: Path, folder: Path, *, requests: int) -> list[Line]:
    """Ask so often, and hold the last tenth of the answers against the first one."""
    bodies = [
        {"history": [{"item_id": prepare.item_id(user * 10 + place)} for place in range(10)], "k": load.K}
        for user in range(1_000)
    ]
    with (
        load.events_in("sqlite", folder) as history,
        server.service(store, history=history, workers=2, log=folder / "service.log") as service,
    ):
        seen = load.client(service.port, bodies, {"requests": requests, "concurrency": CONNECTIONS}, folder=folder)
    first, *_, last = seen["parts"]
    return [
        {
            "asked": f"after {requests:,} requests {name} is at most {MOST_SLOWER:g} times that of the first tenth",
            "seen": f"{last[key] / first[key]:.2f}: " + ", ".join(str(part[key]) for part in seen["parts"]) + " ms",
            "holds": last[key] <= MOST_SLOWER * first[key] and seen["errors"] == 0,
        }
        for name, key in (("p50", "p50_ms"), ("p99", "p99_ms"))
    ]


if __name__ == "__main__":
    sys.exit(main())
