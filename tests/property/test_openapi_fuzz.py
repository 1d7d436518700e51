"""Whatever the documentation allows, and much that it does not, is answered as documented and never with a 500."""

import json

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from tests.http_app import Everybody, Rig


@schemathesis.serializer("application/x-ndjson")
def ndjson(_context, value):
    """Send a text as it is, and anything else as a line."""
    return (value if isinstance(value, str) else json.dumps(value, default=str)).encode(errors="replace")


RIG = Rig(access=Everybody())
schema = schemathesis.openapi.from_asgi("/openapi.json", RIG.app)
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@schema.include(path_regex="^/v1/").parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_request_breaks_the_service(case):
    response = case.call()
    if response.status_code == 504:  # it asked for a millisecond and did not get its answer in it
        return
    case.validate_response(response, checks=[not_a_server_error])
    assert response.status_code in (200, 202, 204, 400, 404, 405, 409, 413, 415, 422), response.text
    if response.status_code not in (200, 202, 204):
        assert response.headers["content-type"] == ["application/problem+json"]
