"""How long a rebuild takes and how much memory it needs, in a process of its own.

    python -m benchmarks.rebuild 100000 [--config index/configs/exact.toml] [--threads 1] [--out FILE.md]

The catalogue is synthetic (`benchmarks.prepare`: four modalities, 480 numbers an item), the bundle a Demure of random
weights (d = 64, L = 50). Peak memory is the kernel's figure for the resident set, which counts the pages of mapped
files, too. The second run finds every item unchanged and copies it.
"""

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, prepare
from index.store import ArtifactStore


@dataclass(frozen=True)
class Run:
    """One rebuild as the operating system saw it."""

    what: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    said: str


def run(what: str, store: Path, bundle: str, data: Path, *, config: Path | None, threads: int) -> Run:
    """Run `prismrec-index rebuild` and measure it."""
    command = [sys.executable, "-m", "index.cli", "rebuild", "--store", str(store), "--bundle", bundle]
    command += ["--data", str(data), *(["--config", str(config)] if config else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    peak_kb = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            peak_kb = max(peak_kb, _peak_kb(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        said = process.stdout.read() if process.stdout else ""
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Run(
        what, seconds, cpu_seconds, peak_kb / 1024, said.split(", in ")[0].strip()
    )  # without this machine's path


def _peak_kb(pid: int) -> int:
    """Return the largest resident set so far. Not `ru_maxrss`: that begins with the size of the process that forked."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Prepare, rebuild twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", type=int)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = prepare.dataset(options.items)
    folder = prepare.FOLDER / f"rebuild-{options.items}"
    shutil.rmtree(folder, ignore_errors=True)
    bundle = prepare.publish(ArtifactStore(folder), data)
    about = {"config": options.config, "threads": options.threads}
    runs = [
        run("all items new", folder, bundle, data.path, **about),
        run("no item changed", folder, bundle, data.path, **about),
    ]
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    lines = [machine.table(machine.describe()), ""]
    lines += [
        f"{options.items:,} items, {options.threads} threads; the store has {size_mb:,.0f} MB after two rebuilds.",
        "",
    ]
    lines += ["| rebuild | seconds | CPU seconds | peak MB |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.seconds:.1f} | {one.cpu_seconds:.1f} | {one.peak_mb:,.0f} |" for one in runs]
    lines += ["", *(f"`{one.said}`" for one in runs)]
    report = "\n".join(lines) + "\n"
    sys.stdout.write(report)
    if options.out:
        options.out.write_text(report, encoding="utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
