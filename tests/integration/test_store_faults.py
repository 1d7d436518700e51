"""Stores that are away, full, slow, broken or foreign: said in time, nothing lost, well again without a restart."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from service.adapters.redis_store import RedisStore
from service.adapters.sqlite_schema import SCHEMA_VERSION, StoreFileError
from service.adapters.sqlite_store import SqliteStore
from service.recommend.errors import StoreUnavailable
from service.recommend.ports import EventLimits
from service.recommend.types import Event, ItemId, user_subject
from tests.processes import RedisServer

ANN = user_subject("ann")
DAY_S = 86_400


def event(number, *, subject=ANN):
    return Event(f"e{number}", subject, ItemId(f"i{number}"), "click", 1_700_000_000.0 + number)


async def items(store, subject=ANN):
    return (await store.history(subject, limit=1_000)).item_ids


# --- SQLite ---


async def test_a_database_that_another_process_holds_is_away_and_comes_back(tmp_path):
    path = tmp_path / "events.db"
    store = SqliteStore(path, limits=EventLimits(write_timeout_s=0.05))
    await store.append([event(1)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        await store.append([event(2)])
    assert await items(store) == ("i1",), "readers do not wait for writers"
    other.execute("ROLLBACK")
    other.close()
    assert await store.append([event(2)]) in ((True,), (False,))  # the timed-out call may have been finished since
    assert await items(store) == ("i1", "i2")
    await store.close()


async def test_a_database_that_is_gone_is_away_and_nothing_is_acknowledged_into_the_void(tmp_path):
    path = tmp_path / "events.db"
    store = SqliteStore(path)
    await store.append([event(1)])
    hidden = [(file, file.with_suffix(f"{file.suffix}.hidden")) for file in tmp_path.glob("events.db*")]
    for file, elsewhere in hidden:
        file.rename(elsewhere)
    with pytest.raises(StoreUnavailable):
        await store.append([event(2)])
    with pytest.raises(StoreUnavailable):
        await store.history(ANN, limit=1)
    assert not path.exists(), "an empty database in its place would look like a loss of all events"
    for file, elsewhere in hidden:
        elsewhere.rename(file)
    assert await store.append([event(2)]) == (True,)
    assert await items(store) == ("i1", "i2")
    await store.close()


async def test_a_database_that_is_broken_under_our_hands_is_away(tmp_path):
    path = tmp_path / "events.db"
    store = SqliteStore(path)
    await store.append([event(number) for number in range(400)])
    await store.close()
    path.write_bytes(path.read_bytes()[:8192] + os.urandom(path.stat().st_size - 8192))
    store = SqliteStore(path)
    with pytest.raises(StoreUnavailable):
        await store.history(ANN, limit=1_000)
    with pytest.raises(StoreUnavailable):
        await store.append([event(1_000)])
    await store.close()


def test_a_full_disk_refuses_events_keeps_the_old_ones_and_takes_new_ones_when_there_is_room(tmp_path):
    script = textwrap.dedent(
        """
        import asyncio, resource, sys
        from pathlib import Path
        from service.adapters.sqlite_store import SqliteStore
        from service.recommend.errors import StoreUnavailable
        from service.recommend.types import Event, ItemId, user_subject

        def events(start):
            numbers = range(start, start + 100)
            return [Event(f"e{n}", user_subject(f"u{n}"), ItemId("x" * 200), "click", 1.7e9) for n in numbers]

        async def main():
            store = SqliteStore(Path(sys.argv[1]))
            await store.append(events(0))
            size = max(file.stat().st_size for file in Path(sys.argv[1]).parent.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
            refused = 0
            for start in range(100, 1000, 100):
                try:
                    await store.append(events(start))
                except StoreUnavailable:
                    refused += 1
            assert refused > 0, "the disk never was full"
            assert (await store.history(user_subject("u1"), limit=1)).item_ids, "reads go on"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await store.append(events(2000))
            for n in (0, 99, 2000, 2099):
                assert (await store.history(user_subject(f"u{n}"), limit=1)).item_ids
            await store.close()

        asyncio.run(main())
        """
    )
    path = tmp_path / "events.db"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=False, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"not a database at all, but long enough to look at" * 100), "not a database"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: _run(path, "CREATE TABLE cats (name TEXT)"), "not an event store of Prismrec"),
        (lambda path: _newer(path=path), f"schema version {SCHEMA_VERSION + 1}"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_with_its_name_and_left_alone(tmp_path, make, says):
    path = tmp_path / "events.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreFileError, match=says) as error:
        SqliteStore(path)
    assert str(path) in str(error.value)
    if before is not None:
        assert path.read_bytes()[100:] == before[100:]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreFileError, match="no/such does not exist"):
        SqliteStore(tmp_path / "no/such/events.db")


def _run(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def _newer(path):
    store = SqliteStore(path)
    asyncio.run(store.close())
    _run(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


async def test_the_first_start_of_several_workers_makes_one_database(tmp_path):
    path = tmp_path / "events.db"
    stores = await asyncio.gather(*[asyncio.to_thread(SqliteStore, path) for _ in range(8)])
    await asyncio.gather(*[store.append([event(number)]) for number, store in enumerate(stores)])
    assert await items(stores[0]) == tuple(f"i{number}" for number in range(8))
    for store in stores:
        await store.close()


async def test_who_is_idle_for_too_long_is_forgotten_and_their_event_ids_too(tmp_path):
    now = [1_800_000_000.0]
    store = SqliteStore(tmp_path / "events.db", limits=EventLimits(keep_idle_days=30), clock=lambda: now[0])
    bob = user_subject("bob")
    await store.append([event(1), event(2, subject=bob)])
    now[0] += 29 * DAY_S
    await store.append([event(3, subject=bob)])
    now[0] += 3 * DAY_S
    await store.maintain()
    assert await items(store) == ()
    assert await items(store, bob) == ("i2", "i3")
    assert await store.append([event(1)]) == (True,)
    await store.close()


async def test_one_bad_call_takes_only_itself_away(tmp_path):
    store = SqliteStore(tmp_path / "events.db")
    bad = Event("bad", ANN, ItemId("x\ud800"), "click", 1.7e9)  # no text that can be written
    calls = [store.append([event(1)]), store.append([bad]), store.append([event(2)])]
    good, failed, other = await asyncio.gather(*calls, return_exceptions=True)
    assert (good, other) == ((True,), (True,))
    assert isinstance(failed, UnicodeEncodeError)
    await store.close()


# --- Redis ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
async def redis_store(server):
    server.command("FLUSHALL")
    store = RedisStore(server.url, limits=EventLimits(read_timeout_s=0.2, write_timeout_s=0.5))
    yield store
    await store.close()


async def _well_again(store):
    end = time.monotonic() + 10
    while True:
        try:
            return await store.ping()
        except StoreUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)


async def test_redis_killed_under_load_loses_no_acknowledged_event_and_is_used_again(server, redis_store):
    acknowledged, refused, killed = [], 0, False

    async def send(number):
        nonlocal refused
        subject = user_subject(f"u{number % 7}")
        try:
            await redis_store.append([event(number, subject=subject)])
        except StoreUnavailable:
            refused += 1
        else:
            acknowledged.append((subject, f"i{number}"))

    for start in range(0, 600, 20):
        if start == 300:
            kill = asyncio.get_running_loop().run_in_executor(None, server.kill)
            await asyncio.gather(*[send(number) for number in range(start, start + 20)], kill)
            killed = True
        else:
            await asyncio.gather(*[send(number) for number in range(start, start + 20)])
    assert killed
    assert refused > 0
    assert len(acknowledged) >= 300
    server.start()
    await _well_again(redis_store)
    kept = {user_subject(f"u{n}"): set(await items(redis_store, user_subject(f"u{n}"))) for n in range(7)}
    assert all(item in kept[subject] for subject, item in acknowledged)
    assert await redis_store.append([event(10_000)]) == (True,)


async def test_a_redis_that_hangs_is_given_up_in_time_and_used_again(server, redis_store):
    await redis_store.append([event(1)])
    server.pause()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await redis_store.history(ANN, limit=1)
    with pytest.raises(StoreUnavailable):
        await redis_store.append([event(2)])
    assert time.monotonic() - started < 2
    server.resume()
    await _well_again(redis_store)
    assert (await items(redis_store))[0] == "i1", "the late answer of an earlier call went to nobody"
    assert set(await redis_store.append([event(2)])) <= {True, False}
    assert await items(redis_store) == ("i1", "i2")


async def test_a_redis_without_memory_refuses_events_whole_and_still_reads(server, redis_store):
    await redis_store.append([event(1)])
    server.command("CONFIG", "SET", "maxmemory", "1000")
    try:
        with pytest.raises(StoreUnavailable, match=r"OutOfMemory|OOM"):
            await redis_store.append([event(2), event(3)])
        assert await items(redis_store) == ("i1",)
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    assert await redis_store.append([event(2), event(3)]) == (True, True)


async def test_a_redis_that_has_forgotten_the_scripts_is_told_again(server, redis_store):
    await redis_store.append([event(1)])
    server.command("SCRIPT", "FLUSH")
    assert await items(redis_store) == ("i1",)
    server.command("SCRIPT", "FLUSH")
    assert await redis_store.append([event(2)]) == (True,)


async def test_everything_in_redis_has_an_end(server, redis_store):
    await redis_store.append([event(1)])
    assert server.command("PTTL", "prismrec:h:u:ann") != ":-1"
    assert server.command("PTTL", "prismrec:e:e1") != ":-1"
    assert server.command("DBSIZE") == ":3"  # and the counter


async def test_the_id_of_a_trimmed_event_goes_with_it(server):
    server.command("FLUSHALL")
    store = RedisStore(server.url, limits=EventLimits(max_events_per_subject=2))
    await store.append([event(number) for number in range(5)])
    assert server.command("DBSIZE") == ":4"  # the history, two ids, the counter
    await store.close()


async def test_a_redis_that_does_not_write_before_it_answers_is_found_out(server, redis_store):
    server.command("CONFIG", "SET", "appendfsync", "everysec")
    try:
        await redis_store.maintain()
        assert redis_store.durable is False
    finally:
        server.command("CONFIG", "SET", "appendfsync", "always")
    await redis_store.maintain()
    assert redis_store.durable is True


async def test_a_wrong_password_is_an_absent_store_and_is_not_told(server):
    server.command("ACL", "SETUSER", "someone", "on", ">right-word", "~*", "+@all")
    url = server.url.replace("redis://", "redis://someone:secret-word@")
    store = RedisStore(url, limits=EventLimits(read_timeout_s=1))
    with pytest.raises(StoreUnavailable) as error:
        await store.ping()
    assert "secret-word" not in str(error.value)
    await store.close()


def test_an_address_that_is_none_is_refused_at_start():
    with pytest.raises(ValueError, match="port"):
        RedisStore("redis://localhost:not-a-port")
