"""Kill -9 at random moments of publishing, rebuilding and serving: what is there afterwards is whole."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import server
from benchmarks.chaos import grounds
from benchmarks.chaos.callers import Answer, Callers
from benchmarks.chaos.fault import Fault, Finding, Ground
from index.bundle import Bundle
from index.snapshot import IndexSnapshot
from index.store import ArtefactError, ArtifactStore

KILLS = 200
"""A third of them of each kind."""
MOST_READY_S = 10.0
INDEX = Path(sys.executable).parent / "prismrec-index"


def run(ground: Ground) -> Iterator[Finding]:
    """Kill writers of the store, then the service with its store of events."""
    amount = ground.amount(KILLS // 3)
    yield from kill_publishers(ground, amount)
    yield from kill_rebuilds(ground, amount)
    for kind in ("sqlite", "redis"):
        yield from kill_services(ground, kind, max(1, amount // 2))


def kill_publishers(ground: Ground, amount: int) -> Iterator[Finding]:
    """Kill a process that publishes one bundle after another."""
    versions = grounds.versions(_folder(ground, "publish"))
    store, current = versions.store, versions.store.current()
    _, snapshot = store.open_snapshot(versions.snapshots[0])
    command = [sys.executable, "-m", "benchmarks.chaos.publisher", str(store.root), snapshot.bundle_version]
    broken: list[str] = []
    published = 0
    for _ in range(amount):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
            _kill_after(process, ground.random.uniform(0.0, 0.2))
        listed = [entry.version for entry in store.list() if entry.kind == "bundle"]
        published = max(published, len(listed))
        broken += problems(store)
        store.prune(keep=grounds.NUM_VERSIONS)
    yield Finding(
        "a bundle is published whole or not at all",
        "; ".join(broken[:1]) or f"whole after {amount} kills of its publisher; up to {published} in the store",
        not broken and store.current() == current,
    )


def kill_rebuilds(ground: Ground, amount: int) -> Iterator[Finding]:
    """Kill a rebuild that would make a new version current."""
    versions = grounds.versions(_folder(ground, "rebuild"))
    store = versions.store
    _, snapshot = store.open_snapshot(versions.snapshots[-1])
    command = [str(INDEX), "rebuild", "--store", str(store.root), "--data", str(versions.data)]
    command += ["--bundle", snapshot.bundle_version]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole_s = time.monotonic() - started
    broken: list[str] = []
    finished = 0
    for _ in range(amount):
        before = store.current()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _kill_after(process, ground.random.uniform(0.0, 1.1 * whole_s))
        broken += problems(store)
        finished += store.current() != before
        store.prune(keep=grounds.NUM_VERSIONS)
    leftovers = list(store.root.rglob(".tmp-*"))
    yield Finding(
        "CURRENT names a whole version",
        "; ".join(broken[:1])
        or f"whole after {amount} kills of a rebuild; {finished} were done before; {len(leftovers)} leftovers",
        not broken and not leftovers,
    )


def kill_services(ground: Ground, kind: str, amount: int) -> Iterator[Finding]:
    """Kill the service under load, and its redis-server with it, and start both again."""
    folder = _folder(ground, kind)
    versions = grounds.versions(folder)
    port = server.free_port()
    ready_s: list[float] = []
    answers: list[Answer] = []
    with ExitStack() as stack:
        redis = stack.enter_context(server.redis(folder / "redis")) if kind == "redis" else None
        history = redis.address if redis else f"sqlite:{folder / 'events.db'}"

        def start() -> server.Service:
            return server.launch(versions.store.root, history=history, workers=2, log=ground.log, port=port)

        service = start()

        def kill() -> None:
            service.kill()  # whichever runs then

        stack.callback(kill)
        service.wait_until_ready()
        callers = stack.enter_context(Callers(port, grounds.one_event, connections=4, pause_s=0.002))
        for _ in range(amount):
            time.sleep(ground.random.uniform(0.0, 1.0))
            if redis is not None and ground.random.random() < 0.5:
                redis.end(signal.SIGKILL)
                redis.start()
            service.kill()
            service = start()
            if ground.random.random() < 0.3:  # while it starts, too
                time.sleep(ground.random.uniform(0.0, 1.0))
                service.kill()
                service = start()
            ready_s.append(service.wait_until_ready())
        callers.stop()
        answers = callers.answers
        acknowledged, lost = grounds.lost_events(service, answers)
    yield Finding(
        f"{kind}: ready within {MOST_READY_S:g} s",
        f"at most {max(ready_s):.1f} s after {amount} kills of all processes",
        max(ready_s) <= MOST_READY_S,
    )
    yield Finding(
        f"{kind}: no acknowledged event is lost",
        f"{lost:,} of {acknowledged:,} over {amount} kills",
        lost == 0 and acknowledged > 0,
    )


def problems(store: ArtifactStore) -> list[str]:
    """Return what is wrong with the versions of a store and with the one that CURRENT names."""
    found = []
    try:
        for entry in store.list():
            (store.open_bundle if entry.kind == "bundle" else store.open_snapshot)(entry.version)
        current = store.current()
        assert current is not None
        path, manifest = store.open_snapshot(current)
        IndexSnapshot.open(path, manifest)
        Bundle.open(store.open_bundle(manifest.bundle_version)[0]).check_golden()
    except ArtefactError as error:
        found.append(str(error))
    return found


def _kill_after(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def _folder(ground: Ground, name: str) -> Path:
    folder = ground.folder / name
    folder.mkdir()
    return folder


FAULT = Fault("kills", "kill -9 while publishing, rebuilding and serving", run)
