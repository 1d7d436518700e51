"""Load for a long time: neither memory nor latency grows. `--seconds 3600` for the hour that tells."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks import server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Callers, failed, quantile_ms, statuses
from benchmarks.chaos.fault import Fault, Finding, Ground

CALLERS = 8
PAUSE_S = 0.03
SAMPLES = 120
MOST_GROWTH_AN_HOUR = 0.01
MOST_SLOWER = 1.1
LONG_ENOUGH_S = 1_800.0
"""In a shorter run, what the first requests allocate weighs more than a percent an hour."""


def run(ground: Ground) -> Iterator[Finding]:
    """Ask and send events, and measure memory meanwhile."""
    versions = grounds.versions(ground.folder)
    with server.service(
        versions.store.root, history=f"sqlite:{ground.folder / 'events.db'}", workers=ground.workers, log=ground.log
    ) as service:
        grounds.fill(service)
        times_s: list[float] = []
        memory_mib: list[float] = []
        with Callers(service.port, grounds.mixed(10), connections=CALLERS, pause_s=PAUSE_S) as callers:
            started = time.perf_counter()
            for sample in range(1, SAMPLES + 1):
                time.sleep(max(0.0, started + ground.seconds * sample / SAMPLES - time.perf_counter()))
                times_s.append(time.perf_counter() - started)
                memory_mib.append(sum(row["pss_mib"] for row in service.memory_mib()))
    answers = callers.answers
    yield Finding("no request fails", statuses(answers), not failed(answers))
    yield _memory(times_s, memory_mib, ground.seconds)
    tenth = len(answers) // 10
    # The first tenth warms up what is not warm yet; the second one is the first to compare with.
    first_ms, last_ms = quantile_ms(answers[tenth : 2 * tenth], 0.5), quantile_ms(answers[-tenth:], 0.5)
    yield Finding(
        f"latency at most {MOST_SLOWER:g} times that of the beginning (p50)",
        f"{last_ms / first_ms:.2f}: {first_ms:.2f} and {last_ms:.2f} ms of {len(answers):,} requests",
        last_ms <= MOST_SLOWER * first_ms,
    )


def _memory(times_s: Sequence[float], memory_mib: Sequence[float], seconds: float) -> Finding:
    """Judge the slope over the second half of the run."""
    half = len(times_s) // 2
    slope_mib_s, _ = np.polyfit(times_s[half:], memory_mib[half:], 1)
    growth = float(slope_mib_s) * 3_600 / float(np.mean(memory_mib[half:]))
    return Finding(
        f"memory grows by less than {MOST_GROWTH_AN_HOUR:.0%} an hour",
        f"{growth:+.1%} an hour; {memory_mib[half]:.0f} to {memory_mib[-1]:.0f} MiB in {seconds / 2:g} s",
        growth < MOST_GROWTH_AN_HOUR if seconds >= LONG_ENOUGH_S else None,
    )


FAULT = Fault("soak", "Load for a long time", run)
