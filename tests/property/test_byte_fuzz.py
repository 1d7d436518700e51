"""Whatever bytes come, on whatever route: an answer or a problem of the closed list, never a failure of ours.

Every route of the OpenAPI document is enrolled, with a body made from its schema, which is then spoilt: random bytes,
cut or doubled JSON, other encodings, numbers that no machine has, nesting without end, keys that come twice.
"""

import asyncio
import json
import random
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from api_schemas.problem import TYPE_PREFIX, Problem
from service.observability.logging import REQUEST_FAILED
from tests.http_app import TITLES, Everybody, Rig

RIG = Rig(access=Everybody())
DOCUMENT = RIG.app.openapi()
ROUTES = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
OURS = {"internal", "overloaded", "not-ready", "store-unavailable"}
"""Problems of the service, none of which there is here."""


LINE = {"op": "patch", "item_id": "i1", "title": "Other", "available": True}
"""Of a body that the document calls a text: it has an object a line."""


def example(schema: dict) -> object:
    """Return something that a schema allows, more or less."""
    if "$ref" in schema:
        return example(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema and "properties" not in schema:
            return example(schema[key][0])
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type")
    if kind == "object":
        parts = {name: example(part) for name, part in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        return parts or ({"visual": example(more)} if isinstance(more, dict) else {})
    if kind == "array":
        return [example(schema.get("items", {}))]
    if kind in ("integer", "number"):
        return schema.get("default") or schema.get("minimum", 1)
    if kind == "boolean":
        return False
    return "2026-01-01T00:00:00Z" if schema.get("format") == "date-time" else "i1"


def body_of(method: str, path: str) -> tuple[str, bytes]:
    """Return the media type and an example of what a route reads; JSON where it reads nothing."""
    content = DOCUMENT["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    for media_type, described in content.items():
        made = example(described.get("schema", {}))
        return media_type, json.dumps(made if isinstance(made, dict) else LINE).encode()
    return "application/json", b"{}"


NUMBERS = [b"1e999", b"-1e999", b"9" * 400, b"-0", b"0.1e-999", b"1E+2", b"NaN", b"-Infinity", b"0x10", b"01", b"1."]
VALUES = [
    *NUMBERS,
    b"null",
    b"true",
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff"',
    b"[]",
    b"{}",
    b'"' + b"x" * 5_000 + b'"',
]


def nested(chance: random.Random, body: bytes) -> bytes:
    depth = chance.choice([10, 300, 20_000])
    opening, closing = chance.choice([(b"[", b"]"), (b'{"history":', b"}"), (b'{"k":[', b"]}")])
    return opening * depth + chance.choice([b"", b"1", body]) + chance.choice([b"", closing * depth])


def cut(chance: random.Random, body: bytes) -> bytes:
    return body[: chance.randrange(len(body) + 1)]


def noisy(chance: random.Random, body: bytes) -> bytes:
    noise = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        noise[chance.randrange(len(noise))] = chance.randrange(256)
    return bytes(noise)


def spliced(chance: random.Random, body: bytes) -> bytes:
    place = chance.randrange(len(body) + 1)
    return body[:place] + chance.choice([*VALUES, b",", b"\x00", b"\n", chance.randbytes(4), body]) + body[place:]


def with_other_values(chance: random.Random, body: bytes) -> bytes:
    """Keep some of the fields, and put something else in the place of a value or two, whatever its type is."""
    share = chance.random()
    value = {key: part for key, part in json.loads(body).items() if chance.random() < share}
    for key in chance.sample(sorted(value), min(len(value), chance.choice([0, 0, 1, 2]))):
        value[key] = chance.choice(["@", [value[key], "@"], {"visual": "@", "k": value[key]}])
    return json.dumps(value).encode().replace(b'"@"', chance.choice(VALUES))


def with_keys_twice(chance: random.Random, body: bytes) -> bytes:
    inner = body.strip()[1:-1]
    return (
        b"{" + inner + b", " * bool(inner) + chance.choice([inner or b'"k": 1', b'"k": 1, "k": "x"', b'"": 0']) + b"}"
    )


def encoded(chance: random.Random, body: bytes) -> bytes:
    text = body.decode().replace("i1", "é\u2028\U0001f600")
    name = chance.choice(["utf-16", "utf-32-le", "utf-8-sig", "utf-7", "latin-1", "cp037"])
    return text.encode(name, errors="replace")


SPOILERS = [
    lambda chance, _: chance.randbytes(chance.choice([0, 1, 20, 2_000])),
    lambda chance, body: body * chance.choice([1, 2, 50]),
    lambda chance, body: body + b" " * RIG.max_body_bytes,
    nested,
    cut,
    noisy,
    spliced,
    with_other_values,
    with_other_values,
    with_other_values,
    with_keys_twice,
    encoded,
]
MEDIA_TYPES = [b"", b"text/plain", b"application/json; charset=utf-16", b"application/x-ndjson", b"*/*", b"\xff\x00"]
NAMES = [
    b"i1",
    b"ann",
    b"default",
    b"",
    b"%00",
    b"%ff",
    b"%2f..%2f",
    b"..",
    b"%F0%9F%98%80",
    b"%zz",
    b"a" * 5_000,
    b"%ED%A0%80",
]
QUERIES = [
    b"",
    b"k=1&k=2",
    b"k=%ff",
    b"k=1e3",
    b"k=" + b"9" * 400,
    b"k=-1",
    b"cursor=%00&limit=2",
    b"limit=0",
    b"=&&;=%",
    b"scenario=%2e%2e",
    b"x=" + b"y" * 5_000,
    b"window=0d",
    b"modality=%F0%9F",
    b"\xff=\xff",
]
HEADERS = [
    (b"x-request-id", b"\xff" * 200),
    (b"if-match", b'"\xff", *, W/""'),
    (b"idempotency-key", b"\x00" * 300),
    (b"idempotency-key", b"the-same"),
    (b"traceparent", b"00-ffffffff-\xff-01"),
    (b"content-length", b"-1"),
    (b"content-length", b"9" * 30),
    (b"content-length", b"\xb2"),
    (b"content-encoding", b"gzip"),
    (b"authorization", b"Bearer \xff"),
    (b"accept-encoding", b"\xff"),
]  # fmt: skip


def request_of(method: str, path: str, chance: random.Random) -> tuple[dict, list[bytes]]:
    """Return a scope as uvicorn makes it, and a body in pieces."""
    media_type, body = body_of(method, path)
    sent = chance.choice(SPOILERS)(chance, body)
    raw_path = b""
    for part in path.encode().split(b"{"):
        name, closing, rest = part.rpartition(b"}")
        raw_path += (chance.choice(NAMES) if chance.random() < 0.5 else b"i1") + rest if closing else name + part
    headers = {b"content-type": media_type.encode() if chance.random() < 0.8 else chance.choice(MEDIA_TYPES)}
    headers |= dict(chance.sample(HEADERS, chance.choice([0, 0, 1, 3])))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
        "method": method, "path": unquote(raw_path.decode()), "raw_path": raw_path,
        "query_string": chance.choice(QUERIES) if chance.random() < 0.5 else b"",
        "headers": list(headers.items()), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    size = max(1, len(sent) // chance.randint(1, 4))
    return scope, [sent[start : start + size] for start in range(0, len(sent), size)] or [b""]


async def ask(scope: dict, pieces: list[bytes]) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body of the answer."""
    said = []
    left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    left[-1]["more_body"] = False

    async def receive():
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    await RIG.app(scope, receive, send)
    start, *rest = said
    return start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in rest)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@given(chance=st.randoms(use_true_random=True))  # seeded: the same in every run
@settings(max_examples=20, deadline=None, derandomize=True)
def test_no_bytes_break_a_route(method, path, chance):
    scope, pieces = request_of(method, path, chance)
    with capture_logs() as logs:
        status, headers, body = asyncio.run(ask(scope, pieces))
    assert REQUEST_FAILED not in {line["event"] for line in logs}
    assert headers[b"x-request-id"]
    if status < 400:
        return
    assert headers[b"content-type"] == b"application/problem+json"
    problem = Problem.model_validate_json(body, strict=True)
    slug = problem.type.removeprefix(TYPE_PREFIX)
    assert slug not in OURS
    assert (problem.status, problem.title) == (status, TITLES[slug].title)
    assert b"Traceback" not in body
