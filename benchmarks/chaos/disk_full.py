"""No room left on the disk, during a rebuild and while events come: nothing is half there, and the service goes on.

Needs a small file system of its own, and so the right to mount one (root): without it the fault can not be made, which
is a failure of the run and not a pass.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import server
from benchmarks.chaos import grounds, kills
from benchmarks.chaos.callers import Callers, between, failed, statuses
from benchmarks.chaos.fault import Fault, Finding, Ground

EVENTS_MIB = 24
ROOM_MIB = 1
"""What is left for a rebuild that needs several times as much."""
MIB = 2**20


@contextmanager
def small_disk(path: Path, *, mib: int) -> Iterator[Path]:
    """Mount a file system of so many MiB as long as the block runs.

    Raises:
        RuntimeError: This process may not mount one.
    """
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"a small file system can not be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def run(ground: Ground) -> Iterator[Finding]:
    """Fill the disk of the store, then that of the events, under load."""
    whole = grounds.versions(_folder(ground, "measured"))
    used = sum(file.stat().st_size for file in whole.store.root.rglob("*") if file.is_file())
    with (
        small_disk(ground.folder / "store-disk", mib=used // MIB + 1 + ROOM_MIB + 1) as store_disk,
        small_disk(ground.folder / "events-disk", mib=EVENTS_MIB) as events_disk,
    ):
        versions = grounds.versions(store_disk)
        with server.service(
            versions.store.root,
            history=f"sqlite:{events_disk / 'events.db'}",
            workers=ground.workers,
            log=ground.log,
        ) as service:
            grounds.fill(service)
            yield from rebuild_without_room(ground, versions, service)
            yield from events_without_room(ground, events_disk, service)


def rebuild_without_room(ground: Ground, versions: grounds.Versions, service: server.Service) -> Iterator[Finding]:
    """Rebuild where there is no room for the result."""
    store = versions.store
    current, listed = store.current(), store.list()
    _, snapshot = store.open_snapshot(versions.snapshots[-1])
    command = [str(kills.INDEX), "rebuild", "--store", str(store.root), "--data", str(versions.data)]
    command += ["--bundle", snapshot.bundle_version]
    _use_up(store.root / "ballast", leave=ROOM_MIB * MIB)
    with Callers(service.port, grounds.recommend, connections=4, pause_s=0.01) as callers:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    (store.root / "ballast").unlink()
    said = (done.stderr or done.stdout).strip().splitlines()[-1][-120:]
    yield Finding(
        "a rebuild without room says so and ends with 1",
        f"{done.returncode}: {said.replace(str(ground.folder), '').strip()}",
        done.returncode == 1 and "No space left" in done.stderr + done.stdout,
    )
    broken = kills.problems(store)
    leftovers = list(store.root.rglob(".tmp-*"))
    yield Finding(
        "nothing of it is published or left",
        "; ".join(broken) or f"CURRENT as before, {len(store.list())} versions, {len(leftovers)} leftovers",
        not broken and not leftovers and store.current() == current and store.list() == listed,
    )
    yield Finding("recommendations go on meanwhile", statuses(callers.answers), not failed(callers.answers))


def events_without_room(ground: Ground, disk: Path, service: server.Service) -> Iterator[Finding]:
    """Send events before, while and after there is no room for them."""
    callers = Callers(service.port, grounds.recommend, connections=4, pause_s=0.01)
    senders = Callers(service.port, grounds.one_event, connections=4, pause_s=0.002)
    with callers, senders:
        time.sleep(ground.seconds)
        _use_up(disk / "ballast", leave=0)
        full = time.perf_counter()
        refused_after_s = grounds.wait_until(
            lambda: any(one.status == "503" for one in between(senders.answers, full, time.perf_counter())),
            what="events are refused",
        )
        time.sleep(ground.seconds)
        (disk / "ballast").unlink()
        emptied = time.perf_counter()
        time.sleep(ground.seconds)
        ended = time.perf_counter()
    during = between(senders.answers, full + refused_after_s, emptied)
    after = between(senders.answers, emptied + 0.5 * ground.seconds, ended)
    acknowledged, lost = grounds.lost_events(service, senders.answers)
    yield Finding(
        "events without room are refused, 503 with Retry-After",
        statuses(during),
        all(one.status in {"200", "503"} for one in during)
        and any(one.status == "503" for one in during)
        and all(one.retry_after for one in during if one.status == "503"),
    )
    yield Finding("no acknowledged event is lost", f"{lost:,} of {acknowledged:,}", lost == 0 and acknowledged > 0)
    yield Finding(
        "with room again they are taken, without a restart", statuses(after), bool(after) and not failed(after)
    )
    yield Finding("recommendations go on throughout", statuses(callers.answers), not failed(callers.answers))


def _use_up(file: Path, *, leave: int) -> None:
    """Fill a file system up to so many bytes."""
    disk = os.statvfs(file.parent)
    with file.open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(disk.f_bavail * disk.f_frsize - leave, 1))


def _folder(ground: Ground, name: str) -> Path:
    folder = ground.folder / name
    folder.mkdir()
    return folder


FAULT = Fault("disk-full", "No room on the disk", run)
