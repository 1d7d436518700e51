"""Every slate store keeps the same promises: the suite runs against SQLite and against a real redis-server."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from service.adapters.redis_slates import RedisSlates
from service.adapters.slate_json import MAX_CHARS, read_slate, write_slate
from service.adapters.sqlite_slates import SqliteSlates
from service.recommend.errors import StoreUnavailable
from service.recommend.ports import ShownItem, ShownSlate, SlateLimits
from service.recommend.types import Filter, ItemId, ServedVersion
from tests.stores import ANN, BOB

CAP = 8
VERSION = ServedVersion("demure", "bundle-1", "snapshot-1", datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC))


@pytest.fixture(params=["sqlite", "redis"])
async def make_slates(request, tmp_path):
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")

    async def make(**limits):
        limits = SlateLimits(**{"max_slates": CAP, "read_timeout_s": 5.0, "write_timeout_s": 5.0, **limits})
        if request.param == "redis":
            slates = RedisSlates(server.url, limits=limits)
        else:
            slates = SqliteSlates(tmp_path / "events-slates.db", limits=limits)
        opened.append(slates)
        return slates

    yield make
    for slates in opened:
        await slates.close()


def slate(number: int, *, subject=ANN) -> ShownSlate:
    return ShownSlate(
        recommendation_id=f"r{number:02}",  # ordered as numbers are: what comes in one moment goes by id
        subject=subject,
        served_at=1.7e9 + number,
        history=(ItemId("i1"), ItemId("new ünï 漢")),
        ages=(86_400.5, 0.0),
        items=(ShownItem(ItemId("i2"), 0.1 + 0.2, "model"), ShownItem(ItemId("i3"), -1e-30, "popular")),
        version=VERSION,
        ranker=replace(VERSION, model_version="bundle-2"),
        k=2,
        filter=Filter(("a",), (), ("b", "c"), {"colour": ("red", 3, 1.5, True)}),
        shown_before=(ItemId("i9"), ItemId("i8")),
    )


async def test_what_is_kept_is_found_whole_by_everybody(make_slates):
    one, other = await make_slates(), await make_slates()
    assert await one.keep([slate(1), slate(2, subject=None)]) == 2
    assert await other.find("r01") == slate(1)
    assert await other.find("r02") == slate(2, subject=None)
    assert await one.find("unheard-of") is None
    assert await other.count() == 2


async def test_vectors_come_back_bit_by_bit(make_slates):
    slates = await make_slates()
    vectors = {"visual": np.float32([0.1, -3e38, 1e-45, 0.0]), "text": np.random.default_rng(0).random(7, np.float32)}
    await slates.keep([replace(slate(1), brought={ItemId("new ünï 漢"): vectors})])
    ((item_id, found),) = (await slates.find("r01")).brought.items()
    assert item_id == "new ünï 漢"
    assert set(found) == set(vectors)
    assert all(np.array_equal(found[name], vectors[name]) for name in vectors)


async def test_nothing_is_found_when_its_time_is_up(make_slates):
    slates = await make_slates(ttl_s=0.05)
    await slates.keep([slate(1)])
    for _ in range(100_000):
        if await slates.find("r01") is None:
            break
    assert await slates.find("r01") is None
    await slates.keep([slate(2)])
    assert await slates.count() <= 1


async def test_the_oldest_go_when_there_are_too_many(make_slates):
    slates = await make_slates()
    for start in range(0, 20, 4):
        await slates.keep([slate(number) for number in range(start, start + 4)])
    assert [number for number in range(20) if await slates.find(f"r{number:02}")] == list(range(12, 20))
    assert await slates.count() == CAP


async def test_a_subject_is_forgotten_and_no_other(make_slates):
    slates = await make_slates()
    await slates.keep([slate(1), slate(2, subject=BOB), slate(3), slate(4, subject=None)])
    await slates.forget(ANN)
    await slates.forget(ANN)
    assert [bool(await slates.find(f"r{number:02}")) for number in (1, 2, 3, 4)] == [False, True, False, True]
    assert await slates.count() == 2


async def test_one_that_is_too_large_is_left_out_alone(make_slates):
    slates = await make_slates()
    large = replace(slate(1), shown_before=(ItemId("x" * MAX_CHARS),))
    assert await slates.keep([large, slate(2)]) == 1
    assert await slates.find("r01") is None
    assert await slates.find("r02") == slate(2)


async def test_a_closed_store_is_away(make_slates):
    slates = await make_slates()
    await slates.keep([slate(1)])
    await slates.close()
    await slates.close()
    for call in (slates.keep([slate(2)]), slates.find("r01"), slates.forget(ANN)):
        with pytest.raises(StoreUnavailable):
            await call


async def test_what_was_kept_outlives_the_process(make_slates):
    first = await make_slates()
    await first.keep([slate(1)])
    await first.close()
    assert await (await make_slates()).find("r01") == slate(1)


async def test_a_server_that_syncs_each_write_is_not_asked_to(redis_server):
    redis_server.command("FLUSHALL")
    slates = RedisSlates(redis_server.url)
    await slates.keep([slate(55)])
    redis_server.command("SET", "written", "r77")
    on_disk = b"".join(file.read_bytes() for file in redis_server.folder.rglob("*") if file.is_file())
    assert b"r77" in on_disk
    assert b"r55" not in on_disk
    assert await slates.find("r55") == slate(55)
    await slates.close()


def test_text_is_read_as_it_was_written():
    assert read_slate(write_slate(slate(1))) == slate(1)
