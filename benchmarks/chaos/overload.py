"""Three times as many requests as can be answered: the rest is refused at once, and soon all is as it was.

The bound on requests in flight is set to what saturates the service (`compute.max_in_flight` = 32 in each of two
workers), as whoever runs one that has to keep its latency does.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks import load, server
from benchmarks.chaos import grounds
from benchmarks.chaos.fault import Fault, Finding, Ground

IN_FLIGHT = 32
TIMES = 3.0
CONNECTIONS = 512
MOST_REFUSAL_MS = 50.0
MOST_SLOWER = 2.0
RECOVERY_S = 5.0


def run(ground: Ground) -> Iterator[Finding]:
    """Find saturation, send three times as much, then half as much."""
    versions = grounds.versions(ground.folder)
    with server.service(
        versions.store.root,
        history=f"sqlite:{ground.folder / 'events.db'}",
        workers=ground.workers,
        log=ground.log,
        settings={"PRISMREC_COMPUTE__MAX_IN_FLIGHT": str(IN_FLIGHT)},
    ) as service:
        grounds.fill(service)
        bodies = [body for _, body in map(grounds.recommend, range(grounds.NUM_USERS))]

        def ask(**arguments: float) -> dict[str, Any]:
            return load.client(service.port, bodies, {"warmup_s": 0.5, **arguments}, folder=ground.folder)

        full = ask(seconds=ground.seconds, concurrency=IN_FLIGHT * ground.workers)
        rate = full["per_second"]
        calm = ask(seconds=ground.seconds, concurrency=CONNECTIONS, rate=0.5 * rate)
        flooded = ask(seconds=ground.seconds, concurrency=CONNECTIONS, rate=TIMES * rate)
        after = ask(seconds=RECOVERY_S, concurrency=CONNECTIONS, rate=0.5 * rate)
    refused, accepted = flooded["by_status"].get("503", {}), flooded["by_status"]["200"]
    share = flooded["statuses"].get("503", 0) / flooded["requests"]
    yield Finding(
        "the excess is refused, and nothing else fails",
        f"{rate:,.0f}/s saturate; of {TIMES:g} times that {share:.0%} are refused: {flooded['statuses']}",
        share > 0 and set(flooded["statuses"]) == {"200", "503"},
    )
    yield Finding(
        f"refused within {MOST_REFUSAL_MS:g} ms (p99)",
        f"{refused.get('p50_ms')} ms (p50), {refused.get('p99_ms')} ms (p99) from when they were due",
        bool(refused) and refused["p99_ms"] <= MOST_REFUSAL_MS,
    )
    yield Finding(
        "the p99 of what is accepted at most doubles",
        f"{accepted['p99_ms']} ms; {full['by_status']['200']['p99_ms']} ms at saturation",
        accepted["p99_ms"] <= MOST_SLOWER * full["by_status"]["200"]["p99_ms"],
    )
    last = after["parts"][-1]
    yield Finding(
        f"within {RECOVERY_S:g} s half the load is answered as before",
        f"p50 {calm['p50_ms']} ms before, {last['p50_ms']} ms at the end of these {RECOVERY_S:g} s",
        after["parts"][-1]["p50_ms"] <= MOST_SLOWER * calm["p50_ms"],
    )


FAULT = Fault("overload", "Three times the load that saturates", run)
