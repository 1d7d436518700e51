"""Who may call: a key with the right scope, or, where no keys are configured, a client on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from service.api import problems
from service.api.keys import Key, KeyRing, Scope
from service.api.limits import Allowance, RateLimiter
from service.api.problems import ApiError

_CHALLENGE = ((b"www-authenticate", b'Bearer realm="prismrec"'),)
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    name: str
    """As the keys file says; for logs."""
    id: str
    """Tells one key from another and does not give it away."""


LOOPBACK = Caller("loopback", "")


class Access(Protocol):
    """Decides whether a request may go on."""

    def check(self, headers: Mapping[bytes, bytes], *, client: str | None, scope: Scope | None) -> Allowance | None:
        """Return when the request may go on, with what is left of its key's limit; None: it has none.

        Args:
            headers: Of the request, names in lower case.
            client: The peer's address.
            scope: What the key must allow; None: any key will do.

        Raises:
            ApiError: `unauthenticated`, `forbidden` or `rate-limited`.
        """
        ...

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Return who sends a request; for the few that must know, as `check` is asked of every one.

        Raises:
            ApiError: `unauthenticated`.
        """
        ...


class KeyAccess:
    """Asks for a key: `Authorization: Bearer <key>` or `X-API-Key: <key>`."""

    def __init__(self, ring: KeyRing, limiter: RateLimiter | None = None) -> None:
        self._ring = ring
        self._limiter = limiter or RateLimiter()

    def check(self, headers: Mapping[bytes, bytes], *, client: str | None, scope: Scope | None) -> Allowance | None:  # noqa: ARG002 - of the protocol
        """Look the key up and compare its scopes."""
        key = self._key(headers)
        if scope is not None and scope not in key.scopes:
            raise ApiError(problems.FORBIDDEN, f"The key has no scope '{scope}'.")
        return None if key.limit is None else self._limiter.take(key.digest, key.limit)

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Look the key up."""
        key = self._key(headers)
        return Caller(key.name, key.digest.hex())

    def _key(self, headers: Mapping[bytes, bytes]) -> Key:
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        presented = bearer.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not presented:
            raise ApiError(
                problems.UNAUTHENTICATED,
                "Send a key as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
                headers=_CHALLENGE,
            )
        key = self._ring.find(presented)
        if key is None:
            raise ApiError(problems.UNAUTHENTICATED, "The key is not known.", headers=_CHALLENGE)
        return key


class LoopbackAccess:
    """Serves clients on this machine alone: for trying things out, before there are keys.

    The name that was asked for must be a loopback one too, or any web page could reach the service through a name of
    its own that resolves to 127.0.0.1; and what a proxy forwards does not come from this machine.
    """

    def check(self, headers: Mapping[bytes, bytes], *, client: str | None, scope: Scope | None) -> None:  # noqa: ARG002 - of the protocol
        """Look where the request comes from."""
        host = headers.get(b"host", b"localhost").lower()
        if not is_loopback(client) or any(name in headers for name in _FORWARDED) or not _is_loopback_name(host):
            raise ApiError(
                problems.FORBIDDEN,
                "No API keys are configured, so only clients on the service's own machine are served. "
                "Make a key with 'prismrec-serve new-key' and set PRISMREC_AUTH__KEYS_FILE.",
            )

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:  # noqa: ARG002 - of the protocol
        """Return the one caller that there is."""
        return LOOPBACK


def is_loopback(address: str | None) -> bool:
    """Tell whether an address is one of this machine's own."""
    return address is not None and (address.startswith(("127.", "::ffff:127.")) or address == "::1")


def _is_loopback_name(host: bytes) -> bool:
    name = host if host.endswith(b"]") else host.rpartition(b":")[0] or host
    return name in (b"localhost", b"[::1]") or (name.startswith(b"127.") and name.replace(b".", b"").isdigit())
