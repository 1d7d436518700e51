"""Rate limits: a bucket a key, its share in each worker, and nothing for keys without one."""

import pytest

from service.api.access import KeyAccess
from service.api.keys import KeyRing, KeysFileError, new_key, parse_keys
from service.api.limits import RateLimit, RateLimiter
from service.api.problems import ApiError
from tests.http_app import Rig, assert_problem


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(limiter: RateLimiter, limit: RateLimit, tries: int = 100) -> int:
    count = 0
    for _ in range(tries):
        try:
            limiter.take(b"key", limit)
        except ApiError:
            return count
        count += 1
    return count


def test_a_bucket_empties_and_fills_again():
    clock = Clock()
    limiter, limit = RateLimiter(clock=clock), RateLimit(2.0, 5)
    assert taken(limiter, limit) == 5
    clock.now = 1.0
    assert taken(limiter, limit) == 2
    clock.now = 1_000.0
    assert taken(limiter, limit) == 5
    assert limiter.take(b"other", limit).remaining == 4


def test_workers_share_a_limit():
    clock = Clock()
    limiter, limit = RateLimiter(workers=4, clock=clock), RateLimit(4.0, 8)
    assert taken(limiter, limit) == 2
    clock.now = 1.0
    assert taken(limiter, limit) == 1


@pytest.mark.parametrize(
    ("text", "limit"),
    [("", None), ("rate=50", RateLimit(50.0, 50)), ("rate=0.5/3", RateLimit(0.5, 3)), ("rate=0.5", RateLimit(0.5, 1))],
)
def test_a_line_may_end_with_a_limit(text, limit):
    _, line = new_key(name="k", scopes=["serve"])
    (key,) = parse_keys(f"{line} {text}", source="keys")
    assert key.limit == limit


@pytest.mark.parametrize("text", ["rate=0", "rate=-1", "rate=1/0", "rate=nan", "50", "rate=1 more"])
def test_a_limit_that_is_none_is_named(text):
    _, line = new_key(name="k", scopes=["serve"])
    with pytest.raises(KeysFileError, match="line 1"):
        parse_keys(f"{line} {text}", source="keys")


async def test_answers_say_what_is_left_and_the_next_one_is_refused(tmp_path):
    (limited, limited_line), (free, free_line) = (new_key(name=name, scopes=["serve"]) for name in ("a", "b"))
    (tmp_path / "keys").write_text(f"{limited_line} rate=0.1/2\n{free_line}\n")
    clock = Clock()
    rig = Rig(access=KeyAccess(KeyRing(tmp_path / "keys"), RateLimiter(clock=clock)))
    async with rig.client() as client:
        for left, reset in (("1", "10"), ("0", "20")):
            answer = await client.post("/v1/recommendations", json={}, headers={"x-api-key": limited})
            assert answer.status_code == 200
            assert answer.headers["ratelimit-limit"] == "2"
            assert (answer.headers["ratelimit-remaining"], answer.headers["ratelimit-reset"]) == (left, reset)
        refused = await client.get("/v1/popular", headers={"x-api-key": limited})
        assert_problem(refused, "rate-limited")
        assert refused.headers["retry-after"] == "10"
        assert refused.headers.get_list("ratelimit-remaining") == ["0"]
        answer = await client.post("/v1/recommendations", json={}, headers={"x-api-key": free})
        assert answer.status_code == 200
        assert "ratelimit-limit" not in answer.headers
        clock.now = 10.0
        assert (await client.get("/v1/popular", headers={"x-api-key": limited})).status_code == 200
