"""API keys: who may call what. Keys are stored hashed, compared in constant time, rotated without a restart.

A line of the keys file is `<name> <scopes> sha256:<hex>`, scopes separated by commas. A limit may follow, such as
`rate=50/100`: 50 requests a second, 100 at once. `#` begins a comment. A key is 32 random bytes, so a plain SHA-256 of
it can not be searched for; a slow hash would only slow down every request.
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import structlog

from service.api.limits import RateLimit
from service.observability.logging import KEYS_LOADED, KEYS_MISSED, KEYS_REFUSED

Scope = Literal["serve", "events", "explain", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_RATE = re.compile(r"rate=([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:/([0-9]{1,6}))?")
_log = structlog.get_logger()


class KeysFileError(ValueError):
    """The keys file can not be read: says which line and why, and never quotes it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of the keys file."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    limit: RateLimit | None = None


def new_key(*, name: str, scopes: Iterable[str]) -> tuple[str, str]:
    """Return a fresh key, to be shown once, and its line for the keys file.

    Raises:
        ValueError: The name has other characters than letters, digits and `_ . -`, or a scope is none.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: {name!r} may have letters, digits and '_', '.', '-', 64 at most")
    wanted = set(scopes)
    if not wanted or not wanted <= set(SCOPES):
        raise ValueError(f"scope: give one or more of {', '.join(SCOPES)}")
    chosen = [scope for scope in SCOPES if scope in wanted]
    key = f"prk_{secrets.token_urlsafe(32)}"
    return key, f"{name} {','.join(chosen)} sha256:{_digest(key.encode()).hex()}"


def parse_keys(text: str, *, source: str) -> tuple[Key, ...]:
    """Read a keys file.

    Raises:
        KeysFileError: Names the line.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        if len(parts) not in (3, 4):
            raise KeysFileError(f"{source}, line {number}: needs a name, scopes and a hash, and may have a rate")
        name, scopes, hashed = parts[:3]
        if not _NAME.fullmatch(name):
            raise KeysFileError(f"{source}, line {number}: the name may have letters, digits and '_', '.', '-'")
        unknown = sorted(set(scopes.split(",")) - set(SCOPES))
        if unknown:
            raise KeysFileError(f"{source}, line {number}: there is no scope {unknown[0]!r}, only {', '.join(SCOPES)}")
        match = _HASH.fullmatch(hashed)
        if match is None:
            raise KeysFileError(f"{source}, line {number}: the hash must be sha256: and 64 hexadecimal digits")
        limit = None
        if len(parts) == 4:
            limit = _parse_limit(parts[3])
            if limit is None:
                raise KeysFileError(
                    f"{source}, line {number}: the rate must be such as rate=50 or rate=50/100, above 0"
                )
        keys.append(Key(name, frozenset(s for s in SCOPES if s in scopes.split(",")), bytes.fromhex(match[1]), limit))
    return tuple(keys)


def _parse_limit(text: str) -> RateLimit | None:
    match = _RATE.fullmatch(text)
    if match is None or float(match[1]) <= 0 or (match[2] is not None and int(match[2]) < 1):
        return None
    rate = float(match[1])
    return RateLimit(rate, int(match[2]) if match[2] is not None else max(math.ceil(rate), 1))


class KeyRing:
    """The keys of a file, read again when the file changes."""

    def __init__(self, file: Path, *, check_every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            KeysFileError: It can not be read, or a line of it is wrong.
        """
        self._file = file
        self._check_every_s = check_every_s
        self._clock = clock
        self._checked_at = clock()
        try:
            self._stamp = self._look()
            self._keys = parse_keys(file.read_text(encoding="utf-8"), source=str(file))
        except OSError as error:
            raise KeysFileError(f"{file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise KeysFileError(f"{file}: is not UTF-8 text") from error

    def find(self, presented: bytes) -> Key | None:
        """Return the entry of a key, or None. Takes the same time whichever entry it is."""
        self._refresh()
        digest = _digest(presented)
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def _refresh(self) -> None:
        """Read the file again when it has changed; a file that is gone or wrong leaves the keys as they are."""
        now = self._clock()
        if now - self._checked_at < self._check_every_s:
            return
        self._checked_at = now
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._keys = parse_keys(self._file.read_text(encoding="utf-8"), source=str(self._file))
        except OSError as error:
            _log.warning(KEYS_MISSED, file=str(self._file), reason=error.strerror)
        except ValueError as error:  # KeysFileError, or no UTF-8
            _log.error(KEYS_REFUSED, reason=str(error))
        else:
            _log.info(KEYS_LOADED, num_keys=len(self._keys))

    def _look(self) -> tuple[int, int, int]:
        stat = self._file.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
