"""What is logged: one JSON object a line, with the request's id, and nothing that must not leave the house."""

import io
import json
import logging
import re

import pytest
import structlog

from service.api.routing import Trace
from service.observability import logging as module
from service.observability.logging import configure, request
from tests.http_app import Rig


@pytest.fixture
def log(monkeypatch):
    """Log as in production; give the lines."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers, root.level
    monkeypatch.setattr(module.sys, "stderr", stream)
    configure(level="info", style="json")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = before
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_its_level_and_time(log):
    structlog.get_logger().info("something_happened", count=3)
    logging.getLogger("redis").warning("said by a library: %s", "x")
    logging.getLogger("uvicorn.error").info("not worth a line")
    first, second = log()
    assert (first["event"], first["level"], first["count"]) == ("something_happened", "info", 3)
    assert first["timestamp"].endswith("Z")
    assert second["event"] == "said by a library: x"


def test_lines_of_a_request_carry_its_id(log):
    token = request.set(Trace({b"x-request-id": b"r-1"}))
    structlog.get_logger().info("something_happened")
    logging.getLogger("redis").warning("said by a library")
    request.reset(token)
    structlog.get_logger().info("something_else_happened")
    assert [line.get("request_id") for line in log()] == ["r-1", "r-1", None]


def test_lines_of_a_request_carry_the_trace_that_it_belongs_to(log):
    given = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    token = request.set(Trace({b"traceparent": given}))
    structlog.get_logger().info("something_happened")
    request.reset(token)
    token = request.set(Trace({}))
    structlog.get_logger().info("something_else_happened")
    request.reset(token)
    assert [line.get("trace_id") for line in log()] == ["4bf92f3577b34da6a3ce929d0e0e4736", None]


async def test_a_failure_of_ours_is_logged_with_its_trace_and_without_the_body_or_the_key(log):
    class Broken:
        async def recommend(self, query, *, deadline):
            raise ZeroDivisionError("what went wrong")

    async with Rig(recommender=Broken()).client() as client:
        await client.post(
            "/v1/recommendations",
            json={"user_id": "secret-user"},
            headers={"x-request-id": "r-2", "x-api-key": "secret-key"},
        )
    (line,) = [line for line in log() if not line["event"].startswith("HTTP Request")]  # said by the test's client
    assert (line["event"], line["request_id"], line["route"]) == ("request_failed", "r-2", "/v1/recommendations")
    assert "what went wrong" in json.dumps(line["exception"])
    assert "secret" not in json.dumps(line)


def test_event_names_are_in_the_past_tense():
    names = [value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 10
    assert [name for name in names if not re.fullmatch(r"[a-z_]+(ed|begun|lost|not_durable)", name)] == []
