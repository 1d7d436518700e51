"""Measures this service beside a floor and other servers, and writes how they compare.

    python -m benchmarks.peers                     all of them: `benchmarks/results/peers.json` and `.md`
    python -m benchmarks.peers --seconds 2 --only floor,triton

A server that does not start is listed with the reason. Ends with 1 when an aim is missed or could not be told.
"""

import argparse
import json
import sys
import urllib.request
from datetime import UTC, datetime
from typing import Any

import uvloop

from benchmarks import load, machine, prepare, stages
from benchmarks.peers import floor, libserving, prismrec, triton
from benchmarks.peers.task import K, NotStarted, Peer, Running, Task

PEERS = (prismrec.PEER, floor.PEER, libserving.PEER, triton.PEER)
ENGINE = "engine"
NUM_ITEMS = 100_000
CONCURRENCY = (8, 32)
SHARE_OF_SLOWEST = 0.5
"""The open load is this part of what the slowest can answer, so that all of them sustain it."""
CHECKED_USERS = 20
LEAST_COMMON = 0.95
"""Of the items: equal scores, and sums in another order, may change the last place."""
AIMS = {"libserving": 4.0, "triton": 2.0, ENGINE: 0.5}
"""At least so many times the throughput of these, with 8 connections."""


def main() -> int:
    """Measure, write, and hold against the aims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=[peer.name for peer in PEERS])
    parser.add_argument("--items", type=int, default=NUM_ITEMS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="counted seconds of each load")
    parser.add_argument("--warmup-s", type=float, default=2.0)
    parser.add_argument("--name", default="peers", help="of the results")
    arguments = parser.parse_args()
    folder = prepare.FOLDER / "run/peers"
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(prepare.store(arguments.items), folder, num_items=arguments.items, workers=arguments.workers)
    result: dict[str, Any] = {
        "command": "python -m benchmarks.peers " + " ".join(sys.argv[1:]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "items": arguments.items,
        "workers": arguments.workers,
        "servers": {},
    }
    peers = [peer for peer in PEERS if peer.name in {*arguments.only, prismrec.PEER.name}]
    rows = {peer.name: {"what": peer.what} for peer in peers}
    result["servers"] = rows
    for peer in peers:
        _measure(peer, task, rows, arguments, [("concurrency", level) for level in CONCURRENCY])
    rows[ENGINE] = {"what": "the recommender in one process, without HTTP", **_engine(task, arguments.seconds)}
    running = [name for name in rows if f"concurrency {CONCURRENCY[0]}" in rows[name] and name != ENGINE]
    rate = round(SHARE_OF_SLOWEST * min(_throughput(rows[name], CONCURRENCY[0]) for name in running))
    for peer in [peer for peer in peers if peer.name in running]:
        _measure(peer, task, rows, arguments, [("rate", rate)])
    for row in rows.values():
        row.pop("slates", None)
    text, shown = _report(result, rate)
    path = load.RESULTS / arguments.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    path.with_suffix(".md").write_text(text)
    sys.stdout.write(text)
    return 0 if shown else 1


def _measure(
    peer: Peer, task: Task, rows: dict[str, Any], arguments: argparse.Namespace, loads: list[tuple[str, int]]
) -> None:
    row = rows[peer.name]
    try:
        with peer.start(task) as running:
            row["slates"] = [running.item_ids(_ask(running, user)) for user in range(CHECKED_USERS)]
            row["common"] = _common(rows[prismrec.PEER.name]["slates"], row["slates"])
            for mode, level in loads:
                row[f"{mode} {level}"] = load.client(
                    running.port,
                    running.bodies,
                    {"seconds": arguments.seconds, "warmup_s": arguments.warmup_s, mode: level},
                    folder=task.folder,
                    path=running.path,
                )
                sys.stderr.write(f"{peer.name}, {mode} {level}: {row[f'{mode} {level}']['per_second']}/s\n")
    except NotStarted as error:
        row["not_started"] = str(error)
        sys.stderr.write(f"{peer.name}: {error}\n")


def _common(ours: list[list[str]], theirs: list[list[str]]) -> float:
    """Return the share of our items that are also theirs.

    Raises:
        NotStarted: They answer something else.
    """
    common = sum(len(set(our) & set(their)) for our, their in zip(ours, theirs, strict=True))
    share = common / (K * CHECKED_USERS)
    if share < LEAST_COMMON:
        raise NotStarted(f"it answers something else: {share:.0%} of the items are those of the service")
    return share


def _ask(running: Running, user: int) -> Any:  # noqa: ANN401 - JSON of any server
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}{running.path}",
        data=json.dumps(running.bodies[user]).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _engine(task: Task, seconds: float) -> dict[str, Any]:
    with task.servable() as servable:
        histories = stages.Histories(servable)
        return {
            f"concurrency {level}": uvloop.run(stages.load_line(servable, histories, callers=level, seconds=seconds))
            for level in CONCURRENCY
        }


def _throughput(row: dict[str, Any], level: int) -> float:
    return float(row[f"concurrency {level}"]["per_second"])


def _report(result: dict[str, Any], rate: int) -> tuple[str, bool]:
    """Return the table, and whether all aims are met."""
    rows = result["servers"]
    ours = rows[prismrec.PEER.name]
    lines = ["# Beside other servers", "", f"`{result['command'].strip()}`, started {result['started_at']}.", ""]
    lines += [f"{result['items']:,} items, d = {prepare.DIM}, L = {prepare.HISTORY_LENGTH}, k = {K}; "]
    lines[-1] += f"{result['workers']} workers each (the engine: one process)."
    lines += ["Ratios are this service's throughput over the server's.", "", machine.table(result["machine"]), ""]
    heads = ["server", "what"]
    for level in CONCURRENCY:
        heads += [f"closed {level}: answers/s", "ratio", "p99 ms"]
    lines += ["| " + " | ".join([*heads, f"open {rate}/s: p50 ms", "p99 ms", "same items"]) + " |"]
    lines += ["|---" * (len(heads) + 3) + "|"]
    for name, row in rows.items():
        if f"concurrency {CONCURRENCY[0]}" not in row:
            lines.append(f"| {name} | {row['what']}: **did not start**: {row.get('not_started', '')} |")
            continue
        cells = [name, row["what"]]
        for level in CONCURRENCY:
            seen = row[f"concurrency {level}"]
            ratio = _throughput(ours, level) / max(_throughput(row, level), 1e-9)
            p99_ms = seen["p99_ms"] if "p99_ms" in seen else round(seen["p99_us"] / 1e3, 3)
            cells += [seen["per_second"], f"{ratio:.2f}", p99_ms]
        opened = row.get(f"rate {rate}", {})
        common = row.get("common")
        cells += [opened.get("p50_ms", ""), opened.get("p99_ms", ""), "" if common is None else f"{common:.0%}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    shown = True
    for name, aim in AIMS.items():
        if name not in rows or f"concurrency {CONCURRENCY[0]}" not in rows[name]:
            lines.append(f"- at least {aim:g} x {name}: not told")
            shown = False
            continue
        ratio = _throughput(ours, CONCURRENCY[0]) / _throughput(rows[name], CONCURRENCY[0])
        shown &= ratio >= aim
        lines.append(f"- at least {aim:g} x {name}: {ratio:.2f}, {'yes' if ratio >= aim else '**no**'}")
    return "\n".join(lines) + "\n", shown


if __name__ == "__main__":
    sys.exit(main())
