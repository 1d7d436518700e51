"""What a measurement was made on: a figure without its machine says nothing."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

LIBRARIES = ("fastapi", "uvicorn", "uvloop", "onnxruntime", "faiss-cpu", "numpy", "pydantic", "redis", "torch")


def describe() -> dict[str, str]:
    """Return processor, cores, memory, kernel, versions and git revision, as text by name."""
    return {
        "processor": _first_match(Path("/proc/cpuinfo"), "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)},
        "redis-server": _output("redis-server", "--version").removeprefix("Redis server ").split(" sha=")[0],
        "revision": _revision(),
        "load at start": f"{os.getloadavg()[0]:.2f}",
    }


def table(description: dict[str, str]) -> str:
    """Return the description as a Markdown table."""
    rows = [f"| {name} | {value} |" for name, value in description.items() if value]
    return "\n".join(["| machine | |", "|---|---|", *rows])


def _first_match(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _memory() -> str:
    kib = int(_first_match(Path("/proc/meminfo"), "MemTotal").split()[0])
    return f"{kib / 2**20:.1f} GiB"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _revision() -> str:
    revision = _output("git", "rev-parse", "--short=12", "HEAD")
    return revision + ("+changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")
