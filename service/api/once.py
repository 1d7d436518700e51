"""`Idempotency-Key`: a write that is sent again with the key of the first time is not done again, but answered again.

Keys are each caller's own, and stand for one method, path and body. Only successes are kept: a request that was refused
has changed nothing, and may be sent again with its key, mended or not.
"""

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import structlog
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from api_schemas.problem import FieldProblem
from service.api import problems
from service.api.keys import Scope as KeyScope
from service.api.parts import PartsSource
from service.api.problems import ApiError
from service.api.routing import TRACE, Border, Trace, next_piece
from service.recommend.errors import StoreUnavailable
from service.recommend.once import MAX_ANSWER_BYTES, Claim, KeptAnswer

KEY = b"idempotency-key"
REPLAYED = (b"idempotency-replayed", b"true")
ANSWER_NOT_KEPT = "answer_not_kept"

_PATTERN = "[\\x21-\\x7e]{1,255}"
_VALID = re.compile(_PATTERN.encode())
_KEPT_HEADERS = (b"content-type", b"location", b"etag")
_PARAMETER: dict[str, object] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": f"^{_PATTERN}$", "maxLength": 255},
    "description": "Any text of yours that names this request. Sent again with it, the request is not done again: the "
    "first answer comes again, with `Idempotency-Replayed: true`. With another body it is 422, while the first one is "
    "being answered 409.",
}
_SAFE = frozenset({"GET", "HEAD"})

MAX_UNREAD_BYTES = 65_536
"""A body of which an endpoint leaves more unread is not waited for, and its answer not kept."""

_log = structlog.get_logger()

RouteT = TypeVar("RouteT", bound=APIRoute)
Handle = Callable[[Scope, Receive, Send], Awaitable[None]]


def keyed(kind: type[RouteT], parts: PartsSource, border: Border) -> type[RouteT]:
    """Return a kind of route whose writes heed `Idempotency-Key`, and say so in the documentation."""

    class Keyed(kind):  # type: ignore[valid-type,misc]  # mypy knows no class that is an argument
        def __init__(self, path: str, endpoint: Callable[..., Any], **options: object) -> None:
            super().__init__(path, endpoint, **options)
            _document(self)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            method = scope["method"]
            if KEY not in scope[TRACE].headers or method not in self.methods or method in _SAFE:
                await super().handle(scope, receive, send)
                return
            scope[TRACE].route = self.path_format
            await _Once(parts, border).answer(scope, receive, send, super().handle, needs=_scope_of(self))

    return cast("type[RouteT]", Keyed)


def _document(route: APIRoute) -> None:
    """Say that a route takes a key, once: FastAPI makes a route of a route when a router is included."""
    extra: dict[str, Any] = dict(route.openapi_extra or {})
    said: list[object] = extra.get("parameters", [])
    if (route.methods or set()) - _SAFE and _PARAMETER not in said:
        route.openapi_extra = {**extra, "parameters": [*said, _PARAMETER]}


def _scope_of(route: APIRoute) -> KeyScope:
    """Return the scope that the route's documentation names."""
    return cast("KeyScope", (route.openapi_extra or {})["x-key-scope"])


class _Once:
    """One request that brings a key."""

    def __init__(self, parts: PartsSource, border: Border) -> None:
        self._answers = parts().answers
        self._border = border

    async def answer(self, scope: Scope, receive: Receive, send: Send, handle: Handle, *, needs: KeyScope) -> None:
        """Carry a request out, or say again what it was answered.

        Raises:
            ApiError: `unauthenticated`, `conflict`, or `validation-error` for a key that is none or was another's.
            StoreUnavailable: It is not known what the key stands for; nothing was done.
        """
        trace: Trace = scope[TRACE]
        caller = self._border.caller(scope)
        given = trace.headers[KEY]
        if not _VALID.fullmatch(given):
            raise _invalid("Input should be 1 to 255 printable ASCII characters without spaces")
        key = hashlib.sha256(f"{caller.id} ".encode() + given).hexdigest()
        token = secrets.token_hex(16)
        found = await self._answers.claim(key, token=token)
        if found is Claim.TAKEN:
            raise ApiError(
                problems.CONFLICT,
                "A request with this Idempotency-Key is being answered; send it again in a moment.",
                headers=[(b"retry-after", b"1")],
            )
        body = _Body(scope, receive)
        if isinstance(found, KeptAnswer):
            self._border.check_access(scope, needs=needs)
            await self._again(found, body, send)
        else:
            await self._first(scope, body, send, handle, key=key, token=token)

    async def _again(self, kept: KeptAnswer, body: "_Body", send: Send) -> None:
        """Answer as the first time, if this is the same request."""
        if not await body.end(limit_bytes=kept.size_bytes, timeout_s=self._border.body_timeout_s) or (
            body.digest != kept.digest
        ):
            raise _invalid("Input should be a key that no other request of yours had")
        text = kept.body.encode()
        headers = [(name.encode(), value.encode()) for name, value in kept.headers]
        length = [(b"content-length", str(len(text)).encode())] if text else []
        await send({"type": "http.response.start", "status": kept.status, "headers": [*headers, *length, REPLAYED]})
        await send({"type": "http.response.body", "body": text})

    async def _first(self, scope: Scope, body: "_Body", send: Send, handle: Handle, *, key: str, token: str) -> None:
        """Carry the request out, keep its answer, then give it; a failure gives the claim up."""
        said: list[Message] = []

        async def note(message: Message) -> None:
            said.append(message)

        try:
            await handle(scope, body.receive, note)
        except Exception:
            await self._release(key, token)
            raise
        answer = await self._to_keep(said, body)
        try:
            if answer is None or not await self._answers.keep(key, answer, token=token):
                await self._answers.release(key, token=token)
        except StoreUnavailable as error:  # it is done: the caller must hear of it
            _log.warning(ANSWER_NOT_KEPT, reason=str(error))
        for message in said:
            await send(message)

    async def _to_keep(self, said: Sequence[Message], body: "_Body") -> KeptAnswer | None:
        """Return what is kept of an answer; None: it is no success, too large, or of a body that did not end."""
        start, *rest = said
        text = b"".join(message.get("body", b"") for message in rest)
        if not 200 <= start["status"] < 300 or len(text) > MAX_ANSWER_BYTES:
            return None
        try:
            limit_bytes = body.size_bytes + MAX_UNREAD_BYTES
            if not await body.end(limit_bytes=limit_bytes, timeout_s=self._border.body_timeout_s):
                return None
        except (ApiError, ClientDisconnect):
            return None
        headers = tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in start["headers"]
            if name.lower() in _KEPT_HEADERS
        )
        return KeptAnswer(body.digest, body.size_bytes, start["status"], headers, text.decode())

    async def _release(self, key: str, token: str) -> None:
        try:
            await self._answers.release(key, token=token)
        except StoreUnavailable as error:  # the claim ends by itself
            _log.warning(ANSWER_NOT_KEPT, reason=str(error))


class _Body:
    """What names a request, hashed as it is read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.size_bytes = 0
        """So much has been read."""
        self._receive = receive
        self._ended = False
        path = scope.get("raw_path") or scope["path"].encode()
        self._hash = hashlib.sha256(b"%b %b?%b\n" % (scope["method"].encode(), path, scope["query_string"]))

    @property
    def digest(self) -> str:
        """What tells this request, as far as it has been read, from others."""
        return self._hash.hexdigest()

    async def receive(self) -> Message:
        """Pass a message on."""
        message = await self._receive()
        if message["type"] == "http.request":
            piece = message.get("body", b"")
            self._hash.update(piece)
            self.size_bytes += len(piece)
            self._ended = not message.get("more_body", False)
        return message

    async def end(self, *, limit_bytes: int, timeout_s: float) -> bool:
        """Read what is left; False: the body has more than `limit_bytes`.

        Raises:
            ApiError: `request-timeout`.
            ClientDisconnect: The caller has gone.
        """
        while not self._ended and self.size_bytes <= limit_bytes:
            lost = f"The body did not arrive within {timeout_s:g} s."
            await next_piece(self.receive, timeout_s=timeout_s, lost=lost)
        return self.size_bytes <= limit_bytes


def _invalid(detail: str) -> ApiError:
    found = FieldProblem(pointer="Idempotency-Key", code="idempotency_key", detail=detail)
    return ApiError(problems.VALIDATION_ERROR, f"{found.pointer}: {found.detail}", errors=[found])
