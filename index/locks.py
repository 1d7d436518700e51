"""Locks between processes on files and folders, which the kernel drops with the process that holds them."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"
"""How the names of all things begin that are not published."""


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; whoever comes second waits.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Keep a folder from `remove_unless_in_use` while the block runs.

    Raises:
        FileNotFoundError: There is no such folder, or it was removed just now.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(descriptor)


def make_locked_folder(parent: Path, *, label: str) -> tuple[Path, int]:
    """Make a temporary folder and lock it, for its path and the descriptor that holds the lock until it is closed."""
    while True:
        path = parent / f"{TEMPORARY}{label}-{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # a sweep came between mkdir and the lock
            continue
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                return path, descriptor
        os.close(descriptor)


def remove_unless_in_use(folder: Path) -> bool:
    """Remove a folder that no process holds a lock on; tell whether it was removed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Out of sight in one step first, so that nobody ever sees a version with some of its files gone.
        hidden = folder.with_name(f"{TEMPORARY}removed-{secrets.token_hex(4)}")
        folder.rename(hidden)
        shutil.rmtree(hidden)
    except (BlockingIOError, FileNotFoundError):  # in use; or another process was first
        return False
    finally:
        os.close(descriptor)
    return True
