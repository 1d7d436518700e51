"""The service under load: one process for the client, the service's own processes, all on this machine.

For each catalogue size and event store: closed load at several concurrencies, open load at several rates (`client.py`
says what that means), and the price of a full explanation. Writes `benchmarks/results/NAME.json` and `.md`.

    python -m benchmarks.load --items 100000 --stores sqlite --seconds 5       a short run of one setting
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, prepare, server

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
CLIENT = ROOT / "benchmarks/client.py"
NUM_USERS = 2_000
EVENTS_PER_USER = 50
K = 20
EVENTS_PER_REQUEST = 500


def main() -> None:
    """Measure every setting and write the results after each, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=_numbers, default=[10_000, 100_000])
    parser.add_argument("--stores", type=lambda text: text.split(","), default=["sqlite", "redis"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=_numbers, default=[1, 8, 32, 64])
    parser.add_argument("--rates", type=_numbers, default=[500, 1_000, 1_500, 2_000])
    parser.add_argument("--seconds", type=float, default=15.0, help="counted seconds of each load")
    parser.add_argument("--warmup-s", type=float, default=3.0)
    parser.add_argument("--executable", type=Path, default=server.EXECUTABLE)
    parser.add_argument("--name", default="load")
    arguments = parser.parse_args()

    result: dict[str, Any] = {
        "command": "python -m benchmarks.load " + " ".join(sys.argv[1:]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "settings": {"d": prepare.DIM, "L": prepare.HISTORY_LENGTH, "M": len(prepare.MODALITIES), "k": K},
        "workers": arguments.workers,
        "runs": [],
    }
    for num_items in arguments.items:
        store = prepare.store(num_items)
        for kind in arguments.stores:
            run: dict[str, Any] = {"items": num_items, "store": kind, "loads": []}
            result["runs"].append(run)
            for _ in _measure(run, arguments, store=store):
                _write(result, arguments.name)


def _measure(run: dict[str, Any], arguments: argparse.Namespace, *, store: Path) -> Iterator[None]:
    folder = prepare.FOLDER / "run"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "service.log"
    with (
        events_in(run["store"], folder) as history,
        server.service(
            store, history=history, workers=arguments.workers, log=log, executable=arguments.executable
        ) as service,
    ):
        run["ingest"] = _fill(service, num_items=run["items"])
        run["stages"] = _stages(service)
        yield
        loads = [("closed", concurrency, "none") for concurrency in arguments.concurrency]
        loads += [("open", rate, "none") for rate in arguments.rates]
        loads += [("closed", 1, "summary"), ("closed", 1, "full"), ("closed", arguments.workers, "full")]
        for mode, level, explain in loads:
            before = service.cpu_s()
            row = _load(service, mode, level, explain, seconds=arguments.seconds, warmup_s=arguments.warmup_s)
            # The warm-up costs as much a second as the rest, so the share that was counted is known.
            counted = arguments.seconds / (arguments.seconds + arguments.warmup_s)
            row["service_cpu_ms_per_request"] = round(
                1e3 * (service.cpu_s() - before) * counted / max(row["requests"], 1), 3
            )
            run["loads"].append({"mode": mode, "level": level, "explain": explain, **row})
            _say(f"  {mode} {level}, explain {explain}: {row['per_second']}/s, p50 {row['p50_ms']} ms")
            run["processes"] = service.memory_mib()
            yield


@contextmanager
def events_in(kind: str, folder: Path) -> Iterator[str]:
    """Give the address of an empty event store, `sqlite` or `redis`, as long as the block runs."""
    data = folder / "events"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    if kind == "sqlite":
        yield f"sqlite:{data / 'events.db'}"
        return
    with server.redis(data) as store:
        yield store.address


def _fill(service: server.Service, *, num_items: int) -> dict[str, float]:
    """Send every user's history through the events endpoint, and tell how fast that went."""
    _say(f"{num_items} items: storing {NUM_USERS * EVENTS_PER_USER} events")
    draw = random.Random(0)
    start = time.perf_counter()
    batch: list[dict[str, str]] = []
    for number in range(NUM_USERS * EVENTS_PER_USER):
        user, position = divmod(number, EVENTS_PER_USER)
        batch.append(
            {
                "event_id": f"e{number}",
                "user_id": f"user-{user}",
                "item_id": prepare.item_id(draw.randrange(num_items)),
                "type": "click",
                "occurred_at": f"2026-01-{1 + position % 28:02d}T{position // 28:02d}:00:00Z",
            }
        )
        if len(batch) == EVENTS_PER_REQUEST:
            answer, _ = service.post("/v1/events", {"events": batch})
            if answer["accepted"] != len(batch):
                raise RuntimeError(f"events were not accepted: {answer}")
            batch = []
    seconds = time.perf_counter() - start
    return {"events": NUM_USERS * EVENTS_PER_USER, "per_second": round(NUM_USERS * EVENTS_PER_USER / seconds)}


def _stages(service: server.Service, *, requests: int = 300) -> dict[str, float]:
    """Return the median of each stage in milliseconds, one request at a time, as the service itself reports them."""
    seen: dict[str, list[float]] = {}
    for number in range(requests):
        answer, timing = service.post("/v1/recommendations", {"user_id": f"user-{number}", "k": K})
        if number == 0:
            _check(answer)
        for part in timing.split(","):
            name, _, duration = part.strip().partition(";dur=")
            if duration:
                seen.setdefault(name, []).append(float(duration))
        seen.setdefault("took", []).append(float(str(answer["took_ms"])))
    return {name: round(sorted(values)[len(values) // 2], 3) for name, values in seen.items()}


def _check(answer: dict[str, Any]) -> None:
    sources = {item["source"] for item in answer["items"]}
    complete = len(answer["items"]) == K and sources == {"model"} and not answer["degraded"]
    if not complete or answer["events_used"] != EVENTS_PER_USER:
        raise RuntimeError(f"not the answer that is to be measured: {json.dumps(answer)[:1000]}")


def _load(
    service: server.Service, mode: str, level: int, explain: str, *, seconds: float, warmup_s: float
) -> dict[str, Any]:
    extra = {} if explain == "none" else {"explain": explain}
    bodies = [{"user_id": f"user-{user}", "k": K, **extra} for user in range(NUM_USERS)]
    how = {"concurrency": level} if mode == "closed" else {"rate": level}
    load = {"seconds": seconds, "warmup_s": warmup_s, **how}
    return client(service.port, bodies, load, folder=prepare.FOLDER / "run")


def client(
    port: int, bodies: Sequence[object], load: Mapping[str, float], *, folder: Path, path: str = "/v1/recommendations"
) -> dict[str, Any]:
    """Run the load client, and return its summary.

    Args:
        port: Of the server.
        bodies: What is sent, at random.
        load: The client's arguments, such as `seconds` and `rate`.
        folder: Where to put the bodies.
        path: Where to send them.
    """
    file = folder / "bodies.jsonl"
    file.write_text("\n".join(map(json.dumps, bodies)))
    command = [sys.executable, str(CLIENT), "--port", str(port), "--path", path, "--bodies", str(file)]
    for name, value in load.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def _write(result: dict[str, Any], name: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(_report(result))


def _report(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in result["settings"].items())
    lines = ["# The service under load", "", f"`{result['command'].strip()}`, started {result['started_at']}.", ""]
    lines += [f"{result['workers']} workers; {settings}; histories of {EVENTS_PER_USER} events from the store.", ""]
    lines += [machine.table(result["machine"]), ""]
    for run in result["runs"]:
        lines += [f"## {run['items']:,} items, {run['store']}", ""]
        lines += ["| load | explain | answers/s | p50 ms | p90 ms | p99 ms | errors | service CPU ms | client CPU s |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in run["loads"]:
            load = f"open, {row['level']}/s" if row["mode"] == "open" else f"closed, concurrency {row['level']}"
            cells = [load, row["explain"], row["per_second"], row["p50_ms"], row["p90_ms"], row["p99_ms"]]
            cells += [row["errors"], row["service_cpu_ms_per_request"], row["client_cpu_s"]]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        stages = ", ".join(f"{name} {value}" for name, value in run.get("stages", {}).items())
        lines += ["", f"Stages of one request at a time, median ms: {stages}."]
        lines += [f"Events stored through the API: {run['ingest']['per_second']:,}/s, {EVENTS_PER_REQUEST} a request."]
        for row in run.get("processes", []):
            lines.append(f"Process: {row['rss_mib']} MiB resident, {row['pss_mib']} MiB with shared pages divided.")
        lines.append("")
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
