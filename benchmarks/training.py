"""How fast a run trains: samples a second of wall and of CPU time, and what the time goes into.

    python -m benchmarks.training training/configs/ml1m-base.toml --data DIR --steps 60 --threads 1

Views are on from the first counted step. Validation and export are left out; the first steps are not counted.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from index.dataset import Dataset
from training.config import ContentRun, load_config
from training.models import DemureConfig
from training.trainer import train

WARMUP_STEPS = 10


class Clock:
    """Times the steps after the first `WARMUP_STEPS`."""

    def __init__(self, *, batch_size: int, profiler: profile | None = None) -> None:
        self._batch_size = batch_size
        self._profiler = profiler
        self._from: tuple[int, float, float] | None = None
        self.ms_per_step = self.per_second = self.per_cpu_second = 0.0

    def started(self, *, step: int, total_steps: int, batch_size: int) -> None:
        """Nothing is counted yet."""

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:  # noqa: ARG002 - an observer hears them
        """Count from the warm-up to here."""
        now = (step, time.perf_counter(), time.process_time())
        if self._from is None:
            self._from = now
            if self._profiler is not None:
                self._profiler.start()
            return
        steps, wall_s, cpu_s = (after - before for after, before in zip(now, self._from, strict=True))
        self.ms_per_step = 1e3 * wall_s / steps
        self.per_second, self.per_cpu_second = steps * self._batch_size / wall_s, steps * self._batch_size / cpu_s

    def validated(self, step: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Not counted."""


def main() -> None:
    """Train a few steps twice: once against the clock, once under the profiler."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset = Dataset.open(arguments.data)
    config = load_config(arguments.config, arguments.overrides)
    assert isinstance(config, ContentRun), "models of learned users have other steps"
    config = _short(config, steps=WARMUP_STEPS + arguments.steps)
    clock = _run(config, dataset)
    sys.stdout.write(
        f"{arguments.threads} threads: {clock.ms_per_step:.0f} ms a step, {clock.per_second:,.0f} samples/s, "
        f"{clock.per_cpu_second:,.0f} a CPU second\n"
    )
    profiler = profile(activities=[ProfilerActivity.CPU])
    _run(_short(config, steps=3 * WARMUP_STEPS), dataset, profiler=profiler)
    profiler.stop()
    averages = profiler.key_averages()
    total_us = sum(row.self_cpu_time_total for row in averages)
    for row in sorted(averages, key=lambda row: -row.self_cpu_time_total)[:5]:
        sys.stdout.write(f"{row.key}: {row.self_cpu_time_total / total_us:.0%}\n")


def _short(config: ContentRun, *, steps: int) -> ContentRun:
    """Return the run with so many steps, one validation at its end, and views all along."""
    model = config.model
    if isinstance(model, DemureConfig):
        model = model.model_copy(update={"augment": model.augment.model_copy(update={"warmup_epochs": 0.0})})
    optim = config.optim.model_copy(update={"max_steps": steps})
    return config.model_copy(
        update={"model": model, "optim": optim, "eval": config.eval.model_copy(update={"every_epochs": 1e6})}
    )


def _run(config: ContentRun, dataset: Dataset, *, profiler: profile | None = None) -> Clock:
    clock = Clock(batch_size=config.optim.batch_size, profiler=profiler)
    with tempfile.TemporaryDirectory() as folder:
        train(config, dataset, checkpoints=Path(folder), observer=clock)
    return clock


if __name__ == "__main__":
    main()
