"""Who may call what: keys, scopes, rotation; and without keys this machine alone."""

import pytest
from structlog.testing import capture_logs

from service.api.access import KeyAccess, is_loopback
from service.api.keys import SCOPES, KeyRing, KeysFileError, new_key, parse_keys
from tests.http_app import Rig, assert_problem

NEEDS = [
    ("POST", "/v1/recommendations", "serve"),
    ("POST", "/v1/recommendations/batch", "serve"),
    ("POST", "/v1/explanations", "explain"),
    ("POST", "/v1/what-if", "explain"),
    ("POST", "/v1/events", "events"),
    ("GET", "/v1/items/i1/similar", "serve"),
    ("GET", "/v1/popular", "serve"),
    ("GET", "/v1/models/fake/modalities", "explain"),
    ("GET", "/v1/users/i1/events", "events"),
    ("POST", "/v1/users/i1/merge", "events"),
    ("GET", "/v1/users/i1/blocks", "events"),
    ("PUT", "/v1/users/i1/blocks/x", "events"),
    ("DELETE", "/v1/users/i1/blocks/x", "events"),
    ("DELETE", "/v1/users/i1", "events"),
    ("GET", "/v1/users/i1/interests", "explain"),
    ("GET", "/metrics", None),
    ("GET", "/version", None),
]
OPEN = ["/livez", "/readyz", "/openapi.json", "/docs"]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def keys():
    return {scope: new_key(name=f"for-{scope}", scopes=[scope]) for scope in SCOPES}


@pytest.fixture
def file(tmp_path, keys):
    file = tmp_path / "keys"
    file.write_text("# name scopes hash\n\n" + "\n".join(line for _, line in keys.values()) + "  # last\n")
    return file


@pytest.fixture
def rig(file):
    return Rig(access=KeyAccess(KeyRing(file)))


async def ask(client, method, path, **headers):
    return await client.request(method, path, json={} if method == "POST" else None, headers=headers)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_opens_what_its_scope_allows_and_nothing_else(rig, keys, scope):
    async with rig.client(address="10.1.2.3", host="example.org") as client:
        for method, path, needs in NEEDS:
            response = await ask(client, method, path, authorization=f"Bearer {keys[scope][0]}")
            if needs in (None, scope):
                assert response.status_code in (200, 204, 422), (path, response.text)
            else:
                problem = assert_problem(response, "forbidden")
                assert f"'{needs}'" in problem.detail


async def test_a_key_may_come_in_either_header_and_bearer_counts_first(rig, keys):
    key, other = keys["serve"][0], keys["events"][0]
    async with rig.client() as client:
        for headers in (
            {"authorization": f"Bearer {key}"},
            {"authorization": f"bearer  {key}"},
            {"x-api-key": key},
            {"x-api-key": key, "authorization": "Basic dXNlcjpwYXNz"},
            {"x-api-key": other, "authorization": f"Bearer {key}"},
        ):
            assert (await ask(client, "GET", "/v1/popular", **headers)).status_code == 200, headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": ""},
        {"x-api-key": "prk_wrong"},
    ],
)
async def test_without_a_valid_key_nothing_is_told_not_even_whether_the_request_is_valid(rig, headers):
    async with rig.client() as client:
        for method, path, _ in NEEDS:
            response = await ask(client, method, path.replace("i1", "%00"), **headers)
            assert_problem(response, "unauthenticated")
            assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_hash_is_no_key(rig, keys):
    stored = keys["serve"][1].split("sha256:")[1]
    async with rig.client() as client:
        assert_problem(await ask(client, "GET", "/v1/popular", **{"x-api-key": stored}), "unauthenticated")


@pytest.mark.parametrize("path", OPEN)
async def test_probes_and_documentation_are_open(rig, path):
    async with rig.client(address="10.1.2.3", host="example.org") as client:
        assert (await client.get(path)).status_code == 200


async def test_without_keys_only_this_machine_is_served():
    rig = Rig()
    for address in ("127.0.0.1", "127.5.5.5", "::1", "::ffff:127.0.0.1"):
        async with rig.client(address=address) as client:
            assert (await client.get("/v1/popular")).status_code == 200
    for address in ("10.0.0.1", "192.168.1.7", "::2", "testclient", "1270.0.0.1"):
        async with rig.client(address=address) as client:
            problem = assert_problem(await client.get("/v1/popular"), "forbidden")
            assert "new-key" in problem.detail
            assert (await client.get("/livez")).status_code == 200
    assert not is_loopback(None)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.1.1.1", "[::1]:8000", "[::1]"])
async def test_without_keys_the_machine_is_called_by_its_own_names(host):
    async with Rig().client() as client:
        assert (await client.get("/v1/popular", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.evil.example"},
        {"host": "localhost.evil.example"},
        {"x-forwarded-for": "1.2.3.4"},
        {"forwarded": "for=1.2.3.4"},
    ],
)
async def test_without_keys_names_of_others_and_what_is_forwarded_are_refused(headers):
    """A web page can reach loopback through a name of its own; a proxy can make the whole world look local."""
    async with Rig().client() as client:
        assert_problem(await client.get("/v1/popular", headers=headers), "forbidden")


def test_keys_are_rotated_without_a_restart(tmp_path):
    clock = Clock()
    (old, old_line), (new, new_line) = (new_key(name=name, scopes=["serve"]) for name in ("old", "new"))
    file = tmp_path / "keys"
    file.write_text(old_line)
    ring = KeyRing(file, check_every_s=1.0, clock=clock)
    assert ring.find(old.encode()).name == "old"
    assert ring.find(new.encode()) is None
    file.write_text(f"{old_line}\n{new_line}\n")
    assert ring.find(new.encode()) is None, "looked at once a second"
    clock.now += 1.1
    assert ring.find(new.encode()).name == "new"
    file.write_text(new_line)
    clock.now += 1.1
    assert ring.find(old.encode()) is None
    assert ring.find(new.encode()).scopes == {"serve"}


@pytest.mark.parametrize("damage", ["gone", "wrong", "binary"])
def test_a_keys_file_that_goes_bad_leaves_the_keys_as_they_were_and_logs_no_secret(tmp_path, damage):
    clock = Clock()
    key, line = new_key(name="k", scopes=["serve"])
    file = tmp_path / "keys"
    file.write_text(line)
    ring = KeyRing(file, clock=clock)
    clock.now += 2
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"\xff\xfe" if damage == "binary" else f"{key} was pasted here".encode())
    with capture_logs() as logs:
        assert ring.find(key.encode()) is not None
    assert len(logs) == 1
    assert key not in str(logs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name serve", "line 1"),
        ("# fine\nname serve,fly sha256:" + "0" * 64, "line 2: there is no scope 'fly'"),
        ("na/me serve sha256:" + "0" * 64, "line 1: the name"),
        ("name serve md5:" + "0" * 64, "line 1: the hash"),
        ("name serve sha256:" + "0" * 63, "line 1: the hash"),
        ("name serve sha256:" + "G" * 64, "line 1: the hash"),
    ],
)
def test_a_line_that_is_wrong_is_named(text, says):
    with pytest.raises(KeysFileError, match=says):
        parse_keys(text, source="keys")


def test_a_keys_file_that_is_not_there_is_an_error_at_start(tmp_path):
    with pytest.raises(KeysFileError, match="No such file"):
        KeyRing(tmp_path / "keys")


async def test_an_empty_keys_file_opens_nothing(tmp_path):
    (tmp_path / "keys").write_text("")
    async with Rig(access=KeyAccess(KeyRing(tmp_path / "keys"))).client() as client:
        assert_problem(await client.get("/v1/popular", headers={"x-api-key": ""}), "unauthenticated")


def test_keys_are_long_random_and_different():
    made = {new_key(name="k", scopes=["serve"])[0] for _ in range(50)}
    assert len(made) == 50
    assert all(len(key) >= 47 for key in made)


@pytest.mark.parametrize(("name", "scopes"), [("a b", ["serve"]), ("", ["serve"]), ("a", []), ("a", ["serve", "root"])])
def test_a_key_without_a_proper_name_and_scopes_is_not_made(name, scopes):
    with pytest.raises(ValueError, match=r"name|scope"):
        new_key(name=name, scopes=scopes)


def test_the_line_of_a_key_does_not_hold_the_key(tmp_path):
    key, line = new_key(name="k", scopes=["admin", "serve"])
    assert key not in line
    assert line.startswith("k serve,admin sha256:")
