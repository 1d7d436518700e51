"""Every route with a key of every scope. A route that is new fails here until its scope is written down."""

import re

import pytest

from service.api.access import KeyAccess
from service.api.keys import SCOPES, KeyRing, new_key
from tests.http_app import Rig, assert_problem

NEEDS = {
    "POST /v1/recommendations": "serve",
    "POST /v1/recommendations/batch": "serve",
    "POST /v1/explanations": "explain",
    "POST /v1/what-if": "explain",
    "POST /v1/events": "events",
    "GET /v1/items/{item_id}/similar": "serve",
    "GET /v1/popular": "serve",
    "GET /v1/items/{item_id}": "admin",
    "PUT /v1/items/{item_id}": "admin",
    "PATCH /v1/items/{item_id}": "admin",
    "DELETE /v1/items/{item_id}": "admin",
    "POST /v1/items/bulk": "admin",
    "GET /v1/users/{user_id}/events": "events",
    "DELETE /v1/users/{user_id}": "events",
    "POST /v1/users/{user_id}/merge": "events",
    "GET /v1/users/{user_id}/blocks": "events",
    "PUT /v1/users/{user_id}/blocks/{item_id}": "events",
    "DELETE /v1/users/{user_id}/blocks/{item_id}": "events",
    "GET /v1/users/{user_id}/interests": "explain",
    "GET /v1/models/{name}/modalities": "explain",
    "GET /v1/models": "admin",
    "GET /v1/indexes": "admin",
    "POST /v1/indexes": "admin",
    "GET /v1/jobs": "admin",
    "GET /v1/jobs/{job_id}": "admin",
    "POST /v1/jobs/{job_id}/cancel": "admin",
    "GET /v1/aliases": "admin",
    "GET /v1/aliases/{scenario}": "admin",
    "PUT /v1/aliases/{scenario}": "admin",
    "DELETE /v1/aliases/{scenario}": "admin",
    "POST /v1/aliases/{scenario}/rollback": "admin",
    "GET /livez": None,
    "GET /readyz": None,
    "GET /metrics": "any",
    "GET /version": "any",
}
"""The scope that each route asks for; `any`: a key, whatever its scopes; None: no key."""


@pytest.fixture(scope="module")
def keys():
    return {scope: new_key(name=scope, scopes=[scope]) for scope in SCOPES}


@pytest.fixture(scope="module")
def rig(keys, tmp_path_factory) -> Rig:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("\n".join(line for _, line in keys.values()))
    return Rig(access=KeyAccess(KeyRing(file)))


async def ask(client, route: str, key: str | None):
    method, _, path = route.partition(" ")
    path = re.sub(r"\{\w+\}", "x", path)
    headers = {} if key is None else {"x-api-key": key}
    return await client.request(method, path, json={} if method in ("POST", "PUT") else None, headers=headers)


def test_every_route_is_enrolled_and_documented_with_its_scope(rig):
    documented = {
        f"{method.upper()} {path}": operation.get("x-key-scope")
        for path, operations in rig.app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert documented == NEEDS


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("route", NEEDS)
async def test_a_key_opens_what_its_scope_allows_and_nothing_else(rig, keys, route, scope):
    async with rig.client(address="10.1.2.3", host="example.org") as client:
        response = await ask(client, route, keys[scope][0])
    if NEEDS[route] in (None, "any", scope):
        assert response.status_code not in (401, 403)
    else:
        problem = assert_problem(response, "forbidden")
        assert NEEDS[route] in problem.detail


@pytest.mark.parametrize("route", NEEDS)
async def test_without_a_key_only_probes_answer(rig, route):
    async with rig.client(address="10.1.2.3", host="example.org") as client:
        response = await ask(client, route, None)
    if NEEDS[route] is None:
        assert response.status_code == 200
    else:
        assert_problem(response, "unauthenticated")
