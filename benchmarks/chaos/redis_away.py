"""A Redis that is stopped, hangs, is slow, is full, or is killed and started again, under load.

Recommendations go on without it and say so; events are refused and none that was acknowledged is lost.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks import server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Answer, Callers, between, failed, quantile_ms, statuses
from benchmarks.chaos.fault import Fault, Finding, Ground
from benchmarks.chaos.proxy import Proxy

MOST_ADDED_MS = 60.0
MOST_RECOVERY_S = 5.0
DELAY_S = 0.2

Break = Callable[[server.Redis, Proxy], None]


def stop(redis: server.Redis, _: Proxy) -> None:
    """Stop the server in order."""
    redis.end()


def start(redis: server.Redis, _: Proxy) -> None:
    """Start it again."""
    redis.start()


def restart(redis: server.Redis, _: Proxy) -> None:
    """Kill it, and start it again at once."""
    redis.end(signal.SIGKILL)
    redis.start()


def hang(redis: server.Redis, _: Proxy) -> None:
    """Keep it from running: connections stay open and nothing comes."""
    redis.send_signal(signal.SIGSTOP)


def go_on(redis: server.Redis, _: Proxy) -> None:
    """Let it run."""
    redis.send_signal(signal.SIGCONT)


def slow_down(_: server.Redis, proxy: Proxy) -> None:
    """Hold back what it says."""
    proxy.delay_s = DELAY_S


def speed_up(_: server.Redis, proxy: Proxy) -> None:
    """Hold back nothing."""
    proxy.delay_s = 0.0


def use_up_memory(redis: server.Redis, _: Proxy) -> None:
    """Leave it no memory, and nothing that it may evict."""
    redis.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis.say("CONFIG", "SET", "maxmemory", "1000")


def give_memory(redis: server.Redis, _: Proxy) -> None:
    """Bound its memory no more."""
    redis.say("CONFIG", "SET", "maxmemory", "0")


def nothing(_: server.Redis, __: Proxy) -> None:
    """The fault ends by itself."""


@contextmanager
def running(ground: Ground) -> Iterator[tuple[server.Service, server.Redis, Proxy]]:
    """Run Redis, the service, and between them a proxy that can be made slow."""
    versions = grounds.versions(ground.folder)
    with ExitStack() as stack:
        redis = stack.enter_context(server.redis(ground.folder / "redis"))
        proxy = stack.enter_context(Proxy(redis.port))
        service = stack.enter_context(
            server.service(
                versions.store.root,
                history=f"redis://127.0.0.1:{proxy.port}/0",
                workers=ground.workers,
                log=ground.log,
            )
        )
        grounds.fill(service)
        yield service, redis, proxy


def run(ground: Ground, *, begin: Break, end: Break, reads_fail: bool) -> Iterator[Finding]:
    """Load before, during and after the fault.

    Args:
        ground: To work with.
        begin: Breaks something.
        end: Mends it.
        reads_fail: Whether histories can not be read meanwhile, as long as it is broken.
    """
    with running(ground) as (service, redis, proxy):
        callers = Callers(service.port, grounds.recommend, connections=4, pause_s=0.01)
        senders = Callers(service.port, grounds.one_event, connections=2, pause_s=0.02)
        with callers, senders:
            started = time.perf_counter()
            time.sleep(ground.seconds)
            broken = time.perf_counter()
            begin(redis, proxy)
            time.sleep(ground.seconds)
            mending = time.perf_counter()
            end(redis, proxy)
            mended = time.perf_counter()
            time.sleep(max(ground.seconds, MOST_RECOVERY_S + 1))
            ended = time.perf_counter()
        acknowledged, lost = grounds.lost_events(service, senders.answers)

    before, during = between(callers.answers, started, broken), between(callers.answers, broken, mending)
    bad = failed(callers.answers)
    yield Finding("every recommendation is answered", statuses(callers.answers), not bad)
    if reads_fail:
        # Those that were asked while it was being broken or mended may still have had their history.
        settled = [one for one in between(during, broken + 0.5, mending) if one.sent_at + one.took_s < mending]
        whole = sum(not one.degraded for one in settled)
        yield Finding(
            "and says that it is degraded", f"{len(settled) - whole:,} of {len(settled):,}", bool(settled) and not whole
        )
    added_ms = quantile_ms(during, 0.99) - quantile_ms(before, 0.99)
    yield Finding(
        f"at most {MOST_ADDED_MS:g} ms are added (p99)",
        f"{added_ms:+.0f} ms: from {quantile_ms(before, 0.99):.0f} to {quantile_ms(during, 0.99):.0f} ms",
        added_ms <= MOST_ADDED_MS,
    )
    recovery_s = max(_recovered(callers.answers, mended, ended), _recovered(senders.answers, mended, ended))
    yield Finding(
        f"all is well again within {MOST_RECOVERY_S:g} s, without a restart",
        f"{recovery_s:.1f} s",
        recovery_s <= MOST_RECOVERY_S,
    )
    yield Finding(
        "no acknowledged event is lost",
        f"{lost:,} of {acknowledged:,}; sent: {statuses(senders.answers)}",
        lost == 0
        and acknowledged > 0
        and all(one.status in {"200", "503"} for one in senders.answers)
        and all(one.retry_after for one in senders.answers if one.status == "503"),
    )


def _recovered(answers: Sequence[Answer], mended: float, ended: float) -> float:
    """Return the time from the mending to the last answer that still lacks something."""
    late = [one.sent_at + one.took_s for one in between(answers, mended, ended) if one.degraded or one.status != "200"]
    return max([at - mended for at in late], default=0.0)


FAULTS = (
    Fault(
        "redis-stopped", "redis-server is stopped, then started", partial(run, begin=stop, end=start, reads_fail=True)
    ),
    Fault(
        "redis-killed",
        "redis-server is killed and restarted",
        partial(run, begin=restart, end=nothing, reads_fail=False),
    ),
    Fault("redis-hung", "redis-server hangs (SIGSTOP)", partial(run, begin=hang, end=go_on, reads_fail=True)),
    Fault(
        "redis-slow",
        f"Redis answers {DELAY_S * 1e3:g} ms late",
        partial(run, begin=slow_down, end=speed_up, reads_fail=True),
    ),
    Fault(
        "redis-full",
        "Redis is out of memory (noeviction)",
        partial(run, begin=use_up_memory, end=give_memory, reads_fail=False),
    ),
)
