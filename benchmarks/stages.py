"""What each stage of a recommendation costs in process, and the whole recommender under closed load.

Stages: the ids of a history to its rows (gather), the user encoder, the search, all of them with filter and metadata,
and explanations of a top 20 by every method. Times are per user; CPU counts all threads, so it is what a request costs
wherever it runs. Writes `benchmarks/results/stages.json` and `.md`.

    OMP_NUM_THREADS=1 python -m benchmarks.stages --items 100000 --seconds 1       a short run of one size
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks import machine, prepare
from index.store import ArtifactStore
from service.recommend.admission import Admission
from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.explain import explain_answer
from service.recommend.job import Job
from service.recommend.ports import StoredHistory
from service.recommend.recommender import Recommender
from service.recommend.types import ItemId, Query, Subject, user_subject
from service.runtime.executor import Executor
from service.runtime.registry import ServableRegistry
from service.runtime.servable import LoadedServable, load_servable
from service.settings import ComputeSettings

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = (1, 4, 8, 16)
CALLERS = (1, 8, 32)
K = 20
SUBJECT = user_subject("bench")
NEVER = Deadline.after(1e6)

Line = dict[str, Any]


class Histories:
    """A store that answers at once, with another history each time."""

    def __init__(self, servable: LoadedServable, *, count: int = 512) -> None:
        random = np.random.default_rng(0)
        length = servable.history_length
        times = tuple(map(float, range(length)))
        rows = [random.choice(servable.num_items, size=length, replace=False) for _ in range(count)]
        self.stored = [StoredHistory(tuple(map(ItemId, servable.item_ids(one))), times) for one in rows]
        self._next = 0

    async def history(self, subject: Subject, *, limit: int) -> StoredHistory:  # noqa: ARG002 - the port's signature
        """Return the next one."""
        self._next += 1
        return self.stored[self._next % len(self.stored)]

    def batch(self, turn: int, size: int) -> list[StoredHistory]:
        """Return some histories, others each turn."""
        start = turn * size % (len(self.stored) - size)
        return self.stored[start : start + size]


def timed(work: Callable[[int], object], *, users: int, seconds: float) -> Line:
    """Call `work(0)`, `work(1)`, ... for so long and return its times in microseconds a user."""
    for turn in range(5):
        work(turn)
    times: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < 20:
        begun = time.perf_counter()
        work(len(times))
        times.append(time.perf_counter() - begun)
    return quantiles(times, users=users, cpu_s=time.process_time() - cpu)


def quantiles(times: list[float], *, users: int, cpu_s: float) -> Line:
    """Return p50, p90, p99 and CPU in microseconds a user."""
    p50, p90, p99 = np.quantile(times, (0.5, 0.9, 0.99)) / users * 1e6
    values = {"p50_us": p50, "p90_us": p90, "p99_us": p99, "cpu_us": cpu_s / len(times) / users * 1e6}
    return {name: round(float(value), 1) for name, value in values.items()}


def stage_lines(servable: LoadedServable, histories: Histories, *, batch: int, seconds: float) -> list[Line]:
    """Time the stages by themselves for so many users at once."""
    length, query = servable.history_length, Query(subject=SUBJECT, k=K)
    mask_BL = np.ones((batch, length), dtype=np.bool_)

    def gather(turn: int) -> NDArray[np.float32]:
        ids = [item_id for stored in histories.batch(turn, batch) for item_id in stored.item_ids]
        return servable.history(servable.rows(ids)).reshape(batch, length, -1)

    def answer(turn: int) -> object:
        return answer_jobs([Job(servable, query, NEVER, stored) for stored in histories.batch(turn, batch)])

    gathered = [gather(turn) for turn in range(16)]
    queries = [servable.encode_users(history_BLH, mask_BL) for history_BLH in gathered]
    works: dict[str, Callable[[int], object]] = {
        "gather": gather,
        "encode": lambda turn: servable.encode_users(gathered[turn % 16], mask_BL),
        f"search, k = {K + length}": lambda turn: servable.search(queries[turn % 16], k=K + length),
        "all, with filter and metadata": answer,
    }
    return [
        {"stage": name, "users": batch, **timed(work, users=batch, seconds=seconds)} for name, work in works.items()
    ]


def explain_lines(servable: LoadedServable, histories: Histories, *, seconds: float) -> list[Line]:
    """Time full explanations of a top K by every method, and the default method's summary."""
    lines: list[Line] = []
    for method in servable.methods:
        for level in ("summary", "full") if method == servable.methods[0] else ("full",):
            query = Query(subject=SUBJECT, k=K, explain=level, method=method)
            jobs = [Job(servable, query, NEVER, stored) for stored in histories.stored[:16]]
            pairs = list(zip(jobs, answer_jobs(jobs), strict=True))

            def work(turn: int, pairs: list[tuple[Job, Any]] = pairs) -> object:
                job, answer = pairs[turn % len(pairs)]
                return explain_answer(job, answer, deadline=NEVER)

            lines.append({"stage": f"explain {level}, {method}", "users": 1, **timed(work, users=1, seconds=seconds)})
    return lines


async def load_line(servable: LoadedServable, histories: Histories, *, callers: int, seconds: float) -> Line:
    """Time the whole recommender with so many callers that each wait for their answer."""
    registry = ServableRegistry()
    executor = Executor(max_waiting=1_000, on_loop_below_s=ComputeSettings().on_loop_below_ms / 1e3)
    assert servable.retain()
    registry.swap(servable)
    recommender = Recommender(
        servables=registry, history=histories, compute=executor, admission=Admission(1_000), store_timeout_s=1.0
    )
    query = Query(subject=SUBJECT, k=K)
    times: list[float] = []

    async def call(until: float) -> None:
        while time.perf_counter() < until:
            begun = time.perf_counter()
            await recommender.recommend(query, deadline=Deadline.after(5.0))
            times.append(time.perf_counter() - begun)

    serving = asyncio.create_task(executor.serve())
    await call(time.perf_counter() + 0.2)
    times.clear()
    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.gather(*(call(start + seconds) for _ in range(callers)))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    serving.cancel()
    await asyncio.wait([serving])
    registry.close()
    line = {"stage": f"recommend, {callers} callers", "users": 1, **quantiles(times, users=1, cpu_s=cpu)}
    return {**line, "per_second": round(len(times) / wall)}


def measure(folder: Path, *, seconds: float) -> Line:
    """Measure the current version of a store."""
    store = ArtifactStore(folder)
    version = store.current()
    if version is None:
        raise SystemExit(f"{folder}: CURRENT names no snapshot")
    started = time.perf_counter()
    servable = load_servable(store, version)
    loaded_s = time.perf_counter() - started
    histories = Histories(servable)
    lines: list[Line] = []
    for batch in BATCHES:
        lines += stage_lines(servable, histories, batch=batch, seconds=seconds)
    lines += explain_lines(servable, histories, seconds=seconds)
    for callers in CALLERS:
        lines.append(uvloop.run(load_line(servable, histories, callers=callers, seconds=seconds)))
    num_items = servable.num_items
    servable.release()
    return {"items": num_items, "loaded_s": round(loaded_s, 2), "lines": lines}


def report(result: Line) -> str:
    """Return the results as Markdown."""
    parts = ["# Stages in process", "", f"`{result['command'].strip()}`, started {result['started_at']}.", ""]
    parts += [machine.table(result["machine"]), ""]
    for run in result["runs"]:
        parts += [f"## {run['items']:,} items", "", f"Loaded, verified and warm in {run['loaded_s']} s.", ""]
        parts += [
            "| stage | users at once | p50 us | p90 us | p99 us | CPU us | a second |",
            "|---|---|---|---|---|---|---|",
        ]
        for line in run["lines"]:
            names = ("stage", "users", "p50_us", "p90_us", "p99_us", "cpu_us")
            parts.append("| " + " | ".join(str(line[name]) for name in names) + f" | {line.get('per_second', '')} |")
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Measure every size, or one store, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=lambda text: list(map(int, text.split(","))), default=[10_000, 100_000])
    parser.add_argument("--store", type=Path, help="measure this one instead of what `--items` makes")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line of the table")
    parser.add_argument("--json", type=Path, default=RESULTS / "stages.json", help="the report goes beside it as .md")
    arguments = parser.parse_args()
    result: Line = {
        "command": "python -m benchmarks.stages " + " ".join(sys.argv[1:]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "runs": [],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    folders = [arguments.store] if arguments.store else map(prepare.store, arguments.items)
    for folder in folders:
        result["runs"].append(measure(folder, seconds=arguments.seconds))
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        arguments.json.with_suffix(".md").write_text(report(result))
    sys.stdout.write(report(result))


if __name__ == "__main__":
    main()
