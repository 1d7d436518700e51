"""Files of an artefact: hashed when written, verified before anything is loaded. Where they lie: `index.store`."""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from api_schemas.manifest import FileEntry

MANIFEST = "manifest.json"

_HASH_THREADS = 4
"""`hashlib` lets go of the interpreter while it hashes, so large files are verified next to each other."""

_MANIFEST_MAX_BYTES = 16 * 1024 * 1024

DocumentT = TypeVar("DocumentT", bound=BaseModel)


class ArtefactError(Exception):
    """An artefact that must not be loaded: missing, truncated, changed, of the wrong shape or of an unknown schema."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex, reading it in pieces.

    Raises:
        OSError: The file can not be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Make a file's content or a folder's entries durable.

    Raises:
        OSError: The device reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a small file at once and durably: readers see the old content or the new, never a part.

    Raises:
        OSError: The content can not be written; the old file is as it was.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def list_files(root: Path) -> list[str]:
    """Return the paths of all files below `root`, relative, with forward slashes, sorted.

    Raises:
        ArtefactError: Something below `root` is neither a plain file nor a folder (links are refused).
    """
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(path.relative_to(root).as_posix())
            elif not stat.S_ISDIR(mode):
                raise ArtefactError(path, "is not a plain file")
    return sorted(found)


def describe_files(root: Path, *, on_file: Callable[[str], None] | None = None) -> list[FileEntry]:
    """Hash every file below `root` and make it durable; `on_file` hears each path when it is done.

    Raises:
        ArtefactError: Something below `root` is not a plain file.
        OSError: A file can not be read or made durable.
    """

    def describe(name: str) -> FileEntry:
        path = root / name
        fsync_path(path)
        entry = FileEntry(path=name, size_bytes=path.stat().st_size, sha256=sha256_of(path))
        if on_file is not None:
            on_file(name)
        return entry

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        entries = list(pool.map(describe, list_files(root)))
    for folder, _, _ in os.walk(root):
        fsync_path(Path(folder))
    return entries


def verify_files(root: Path, files: Sequence[FileEntry]) -> None:
    """Compare every file below `root` with what the manifest says: none missing, none more, sizes and hashes equal.

    Raises:
        ArtefactError: Names the first file that differs, and how.
    """
    listed = {entry.path for entry in files}
    if len(listed) != len(files):
        raise ArtefactError(root / MANIFEST, "names a file twice")
    extra = sorted(set(list_files(root)) - listed - {MANIFEST})
    if extra:
        raise ArtefactError(root / extra[0], "is not in the manifest")
    for entry in files:  # sizes first: they cost nothing and find what was cut
        path = root / entry.path
        try:
            size = path.stat().st_size
        except OSError:
            raise ArtefactError(path, "is missing") from None
        if size != entry.size_bytes:
            raise ArtefactError(path, f"has {size} bytes, the manifest says {entry.size_bytes}")

    def verify(entry: FileEntry) -> None:
        path = root / entry.path
        try:
            found = sha256_of(path)
        except OSError as error:
            raise ArtefactError(path, f"can not be read: {error.strerror}") from error
        if found != entry.sha256:
            raise ArtefactError(path, "has another SHA-256 than the manifest says")

    largest_first = sorted(files, key=lambda entry: -entry.size_bytes)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        for _ in pool.map(verify, largest_first):
            pass


def read_document(path: Path, schema: type[DocumentT]) -> DocumentT:
    """Read and validate a JSON document.

    Raises:
        ArtefactError: The file is missing, is not JSON, or does not follow the schema; names the first wrong field.
    """
    try:
        if path.stat().st_size > _MANIFEST_MAX_BYTES:
            raise ArtefactError(path, f"is larger than {_MANIFEST_MAX_BYTES} bytes")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(path, "is missing") from None
    except OSError as error:
        raise ArtefactError(path, f"can not be read: {error.strerror}") from error
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise ArtefactError(path, f"{field}: {first['msg']}") from None
