"""Environments of the peers, each of its own, made when missing and kept in `.bench/peers`."""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import prepare, server
from benchmarks.peers.task import NotStarted

FOLDER = prepare.FOLDER / "peers"
START_TIMEOUT_S = 120.0


def environment(name: str, *, python: str, installs: Sequence[Sequence[str]]) -> Path:
    """Return the folder of a virtual environment with what was asked for.

    Args:
        name: Of the folder.
        python: Which one.
        installs: Arguments of `pip install`, one call each.

    Raises:
        NotStarted: It can not be made; with the last thing that was said.
    """
    folder, done = FOLDER / name, FOLDER / f"{name}.installed"
    wanted = repr(installs)
    if done.is_file() and done.read_text() == wanted:
        return folder
    found = shutil.which(python)
    if found is None:
        raise NotStarted(f"there is no {python}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    commands = [[found, "-m", "venv", str(folder)]]
    commands += [[str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *install] for install in installs]
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            said = (ended.stderr or ended.stdout).strip().splitlines() or ["it said nothing"]
            raise NotStarted(f"its environment can not be made: {said[-1]}")
    done.write_text(wanted)
    return folder


@contextmanager
def process(
    command: Sequence[object],
    *,
    port: int,
    ready: str,
    log: Path,
    status: int = 200,
    variables: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Run a server until the block ends.

    Args:
        command: Starts it.
        port: Where it is to answer.
        ready: A path that is answered with `status` when it is ready.
        log: What it says.
        status: Of that answer.
        variables: Of its environment, beyond those of this process.

    Raises:
        NotStarted: It ends, or does not answer in time; with the last thing that it said.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        started = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
        )
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while _status(f"http://127.0.0.1:{port}{ready}") != status:
            if started.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise NotStarted(f"it does not answer: {said[-1]}")
            time.sleep(0.1)
        yield
    finally:
        started.terminate()
        try:
            started.wait(timeout=server.STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def _status(address: str) -> int | None:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
