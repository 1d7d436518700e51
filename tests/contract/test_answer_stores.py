"""Every store of answers keeps the same promises: the suite runs against SQLite and against a real redis-server."""

import asyncio

import pytest

from service.adapters.answer_json import read_answer, write_answer
from service.adapters.redis_answers import RedisAnswers
from service.adapters.sqlite_answers import SqliteAnswers
from service.recommend.errors import StoreUnavailable
from service.recommend.once import AnswerLimits, Claim, KeptAnswer
from tests.processes import RedisServer

CAP = 8
ANSWER = KeptAnswer("d1", 17, 202, (("location", "/v1/jobs/1"), ("etag", '"2f"')), '{"text": "ünï 漢\\n"}')


@pytest.fixture(params=["sqlite", "redis"])
async def make_answers(request, tmp_path):
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")

    async def make(**limits):
        limits = AnswerLimits(**{"max_answers": CAP, "timeout_s": 5.0, **limits})
        if request.param == "redis":
            answers = RedisAnswers(server.url, limits=limits)
        else:
            answers = SqliteAnswers(tmp_path / "events-answers.db", limits=limits)
        opened.append(answers)
        return answers

    yield make
    for answers in opened:
        await answers.close()


async def test_a_key_is_claimed_once_and_then_gives_its_answer_to_everybody(make_answers):
    one, other = await make_answers(), await make_answers()
    assert await one.claim("k", token="t1") is Claim.OURS
    assert await one.claim("k", token="t1") is Claim.OURS, "a call that was late may be made again"
    assert await other.claim("k", token="t2") is Claim.TAKEN
    assert await other.claim("k2", token="t2") is Claim.OURS
    assert await one.keep("k", ANSWER, token="t1")
    for answers in (one, other):
        assert await answers.claim("k", token="t3") == ANSWER
    assert await one.count() == 2


async def test_of_many_claims_at_once_one_succeeds(make_answers):
    stores = [await make_answers() for _ in range(4)]
    claims = [stores[number % 4].claim("k", token=f"t{number}") for number in range(40)]
    found = await asyncio.gather(*claims)
    assert sorted(claim.name for claim in found) == ["OURS"] + ["TAKEN"] * 39


async def test_a_claim_that_is_given_up_is_free_again_and_an_answer_stays(make_answers):
    answers = await make_answers()
    await answers.claim("k", token="t1")
    await answers.release("k", token="t2")
    assert await answers.claim("k", token="t2") is Claim.TAKEN, "another's claim can not be given up"
    await answers.release("k", token="t1")
    assert await answers.claim("k", token="t2") is Claim.OURS
    await answers.keep("k", ANSWER, token="t2")
    await answers.release("k", token="t2")
    assert await answers.claim("k", token="t3") == ANSWER


async def until_ours(answers, key, token):
    for _ in range(100_000):
        if await answers.claim(key, token=token) is Claim.OURS:
            return
    raise AssertionError("the claim never ended")


async def test_a_claim_ends_by_itself_and_whoever_comes_then_has_it(make_answers):
    answers = await make_answers(claim_s=0.05)
    await answers.claim("k", token="dead")
    await until_ours(answers, "k", "heir")
    assert not await answers.keep("k", ANSWER, token="dead")
    assert await answers.keep("k", ANSWER, token="heir")


async def test_an_answer_is_kept_after_its_claim_has_ended_when_nobody_came_between(make_answers):
    answers = await make_answers(claim_s=0.05)
    await answers.claim("k", token="slow")
    await until_ours(answers, "k2", "x")
    await until_ours(answers, "k2", "y")
    assert await answers.keep("k", ANSWER, token="slow")
    assert await answers.claim("k", token="t") == ANSWER


async def test_an_answer_is_forgotten_when_its_time_is_up(make_answers):
    answers = await make_answers(ttl_s=0.05)
    await answers.claim("k", token="t1")
    await answers.keep("k", ANSWER, token="t1")
    await until_ours(answers, "k", "t2")


async def test_the_oldest_go_when_there_are_too_many(make_answers):
    answers = await make_answers()
    for number in range(2 * CAP):
        await answers.claim(f"k{number:02}", token="t")
        if number % 2:
            await answers.keep(f"k{number:02}", ANSWER, token="t")
    assert await answers.count() == CAP
    assert await answers.claim(f"k{2 * CAP - 1:02}", token="t") == ANSWER
    assert await answers.claim(f"k{2 * CAP - 2:02}", token="u") is Claim.TAKEN
    assert await answers.claim("k01", token="u") is Claim.OURS


async def test_what_was_kept_outlives_the_process(make_answers):
    first = await make_answers()
    await first.claim("k", token="t1")
    await first.keep("k", ANSWER, token="t1")
    await first.claim("k2", token="t1")
    await first.close()
    second = await make_answers()
    assert await second.claim("k", token="t2") == ANSWER
    assert await second.claim("k2", token="t2") is Claim.TAKEN


async def test_a_closed_store_is_away(make_answers):
    answers = await make_answers()
    await answers.claim("k", token="t")
    await answers.close()
    await answers.close()
    calls = (
        answers.claim("k", token="t"),
        answers.keep("k", ANSWER, token="t"),
        answers.release("k", token="t"),
        answers.count(),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call


async def test_a_server_that_goes_away_is_said_in_time_and_is_used_again_when_it_is_back(tmp_path):
    server = RedisServer(tmp_path).start()
    answers = RedisAnswers(server.url, limits=AnswerLimits(timeout_s=0.5))
    try:
        await answers.claim("k", token="t1")
        await answers.keep("k", ANSWER, token="t1")
        server.kill()
        with pytest.raises(StoreUnavailable):
            await answers.claim("k", token="t2")
        server.start()
        assert await answers.claim("k", token="t2") == ANSWER, "what was acknowledged is on disk"
    finally:
        await answers.close()
        server.stop()


def test_text_is_read_as_it_was_written():
    assert read_answer(write_answer(ANSWER)) == ANSWER
