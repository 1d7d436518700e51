"""What lies in the files and on the server: nothing of who was erased, and everything after a migration."""

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from service.adapters.redis_store import RedisStore
from service.adapters.sqlite_schema import ITEM_TABLES, SCHEMA_VERSION, SUBJECT_TABLES
from service.adapters.sqlite_store import SqliteStore
from service.recommend.errors import StoreUnavailable
from service.recommend.ports import EventLimits
from service.recommend.types import ItemId, session_subject, user_subject
from tests.processes import RedisServer
from tests.stores import ANN, BOB, START_S, event, items, make_version_1

WHO = user_subject("the-one-who-leaves")
TAB = session_subject("the-tab-of-whom")
TRACES = ("one-who-leaves", "tab-of-whom", "their-event", "their-item", "their-block")


async def live(store, others=20):
    """Let one user and others do all there is to do, until events are trimmed."""
    for start in range(0, 60, 3):
        for other in range(others):
            subject = user_subject(f"u{other}")
            await store.append([event(n, subject=subject, event_id=f"{subject}-{n}") for n in range(start, start + 3)])
        for subject in (WHO, TAB):
            names = [f"{subject}-their-event-{n}" for n in range(start, start + 3)]
            await store.append([event(1, subject=subject, event_id=name, item=f"their-item-{name}") for name in names])
    for subject in (WHO, TAB, BOB):
        await store.users.block(subject, ItemId(f"their-block-{subject}" if subject != BOB else "x"), at=START_S)
    await store.users.merge(TAB, into=WHO)
    assert await items(store, WHO)


# --- SQLite ---


async def test_of_who_was_erased_neither_a_row_nor_a_byte_is_left_in_the_file(tmp_path):
    path = tmp_path / "events.db"
    store = SqliteStore(path, limits=EventLimits(max_events_per_subject=30))
    await live(store)
    assert all(any(trace.encode() in file.read_bytes() for file in tmp_path.iterdir()) for trace in TRACES[2:])
    await store.users.erase(WHO)
    with sqlite3.connect(path) as reader:
        text = "\n".join(reader.iterdump())
        tables = [name for (name,) in reader.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in SUBJECT_TABLES:
            orphans = f"SELECT count(*) FROM {table} WHERE subject_id NOT IN (SELECT id FROM subjects)"
            assert reader.execute(orphans).fetchone() == (0,)
    reader.close()
    assert set(tables) == {"subjects", *SUBJECT_TABLES, *ITEM_TABLES}, (
        "a table of users' data that the erasure does not know?"
    )
    assert "u:u7" in text
    for file in tmp_path.iterdir():
        assert [trace for trace in TRACES if trace.encode() in file.read_bytes()] == [], file
    assert not [trace for trace in TRACES if trace in text]
    await store.close()


async def test_a_reader_that_does_not_let_go_delays_the_scrubbing_and_not_the_erasure(tmp_path):
    path = tmp_path / "events.db"
    store = SqliteStore(path)
    await live(store, others=1)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    await store.users.erase(WHO)
    assert await items(store, WHO) == ()
    reader.execute("COMMIT")
    reader.close()
    await store.maintain()
    for file in tmp_path.iterdir():
        assert [trace for trace in TRACES if trace.encode() in file.read_bytes()] == [], file
    await store.close()


async def test_what_users_ask_of_a_database_that_another_process_holds_is_refused_in_time(tmp_path):
    path = tmp_path / "events.db"
    store = SqliteStore(path, limits=EventLimits(write_timeout_s=0.05))
    await store.append([event(1)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (
        store.users.erase(ANN),
        store.users.merge(ANN, into=BOB),
        store.users.block(ANN, ItemId("x"), at=START_S),
        store.users.unblock(ANN, ItemId("x")),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    assert len(await store.users.events(ANN, limit=5)) == 1, "readers do not wait for writers"
    other.execute("ROLLBACK")
    other.close()
    await store.close()
    patient = SqliteStore(path)
    await patient.users.erase(ANN)
    assert await items(patient) == ()
    await patient.close()


async def test_who_is_idle_is_forgotten_with_their_blocks_and_a_block_is_a_sign_of_life(tmp_path):
    now = [1_800_000_000.0]
    store = SqliteStore(tmp_path / "events.db", limits=EventLimits(keep_idle_days=30), clock=lambda: now[0])
    for subject in (ANN, BOB):
        await store.append([event(1, subject=subject, event_id=subject)])
        await store.users.block(subject, ItemId("x"), at=START_S)
    now[0] += 29 * 86_400
    await store.users.block(BOB, ItemId("y"), at=START_S)
    now[0] += 3 * 86_400
    await store.maintain()
    assert await store.users.blocks(ANN) == ()
    assert len(await store.users.blocks(BOB)) == 2
    assert await items(store, BOB) == ("i1",)
    await store.close()


async def test_a_file_of_the_first_version_is_brought_up_to_date_with_all_that_it_holds(tmp_path):
    path = tmp_path / "events.db"
    make_version_1(path)
    store = SqliteStore(path)
    assert await items(store) == ("i1", "i2")
    latest = (await store.users.events(ANN, limit=1))[0].event
    assert (latest.event_id, latest.value, latest.recommendation_id) == ("e2", 0.5, "r1")
    assert await store.append([event(1), event(4)]) == (False, True)
    await store.users.block(ANN, ItemId("x"), at=START_S)
    assert (await store.users.merge(session_subject("tab"), into=ANN)).num_events == 1
    assert await items(store) == ("i1", "i2", "i3", "i4")
    await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


async def test_an_old_file_and_a_new_one_are_the_same_after_the_start(tmp_path):
    schemas = []
    for name in ("old.db", "new.db"):
        if name == "old.db":
            make_version_1(tmp_path / name)
        await SqliteStore(tmp_path / name).close()
        connection = sqlite3.connect(tmp_path / name)
        schemas.append(set(connection.execute("SELECT type, name, sql FROM sqlite_schema")))
        connection.close()
    assert schemas[0] == schemas[1]


def test_several_processes_that_open_an_old_file_at_once_bring_it_up_to_date_once(tmp_path):
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from service.adapters.sqlite_store import SqliteStore
        from service.recommend.types import ItemId, user_subject

        async def main():
            print("ready", flush=True)
            sys.stdin.readline()
            store = SqliteStore(Path(sys.argv[1]))
            await store.users.block(user_subject("ann"), ItemId(sys.argv[2]), at=1.7e9)
            await store.close()

        asyncio.run(main())
        """
    )
    path = tmp_path / "events.db"
    make_version_1(path)
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), f"x{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd(),
        )
        for number in range(4)
    ]  # fmt: skip
    for process in starting:
        assert process.stdout.readline() == "ready\n"
    for process in starting:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in starting:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM blocks").fetchone() == (4,)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (3,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


# --- Redis ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
async def redis_store(server):
    server.command("FLUSHALL")
    limits = EventLimits(max_events_per_subject=30, read_timeout_s=0.5, write_timeout_s=1)
    store = RedisStore(server.url, limits=limits)
    yield store
    await store.close()


async def everything_in(store):
    """Return every key with what is under it."""
    client, said = store._writes, []
    async for key in client.scan_iter(count=1_000):
        kind = await client.type(key)
        content = await (client.zrange(key, 0, -1, withscores=True) if kind == "zset" else client.get(key))
        said.append(f"{key} = {content}")
    return "\n".join(said)


async def test_of_who_was_erased_no_key_and_no_value_is_left_on_the_server(redis_store):
    await live(redis_store, others=5)
    before = await everything_in(redis_store)
    assert all(trace in before for trace in TRACES if trace != "tab-of-whom")
    await redis_store.users.erase(WHO)
    after = await everything_in(redis_store)
    assert "prismrec:h:u:u3" in after
    assert not [trace for trace in TRACES if trace in after]


async def test_an_erasure_outlives_a_server_that_is_killed(server, redis_store):
    await live(redis_store, others=1)
    await redis_store.users.erase(WHO)
    server.kill()
    server.start()
    other = RedisStore(server.url, limits=EventLimits(read_timeout_s=2))
    assert not [trace for trace in TRACES if trace in await everything_in(other)]
    await other.close()


async def test_blocks_end_with_the_history_and_live_as_long(server, redis_store):
    await redis_store.users.block(ANN, ItemId("x"), at=START_S)
    assert int(server.command("PTTL", "prismrec:b:u:ann")[1:]) > 364 * 86_400_000
    server.command("PEXPIRE", "prismrec:b:u:ann", "100000")
    await redis_store.append([event(1)])
    assert int(server.command("PTTL", "prismrec:b:u:ann")[1:]) > 364 * 86_400_000
    server.command("PEXPIRE", "prismrec:h:u:ann", "100000")
    await redis_store.users.block(ANN, ItemId("y"), at=START_S)
    assert int(server.command("PTTL", "prismrec:h:u:ann")[1:]) > 364 * 86_400_000
    await redis_store.users.merge(ANN, into=BOB)
    for key in ("prismrec:h:u:bob", "prismrec:b:u:bob"):
        assert int(server.command("PTTL", key)[1:]) > 364 * 86_400_000


async def test_without_memory_nothing_is_added_and_everything_may_be_taken_away(server, redis_store):
    await redis_store.append([event(1)])
    await redis_store.users.block(ANN, ItemId("x"), at=START_S)
    server.command("CONFIG", "SET", "maxmemory", "1000")
    try:
        for call in (redis_store.users.block(ANN, ItemId("y"), at=START_S), redis_store.users.merge(ANN, into=BOB)):
            with pytest.raises(StoreUnavailable, match=r"OutOfMemory|OOM"):
                await call
        assert [one.item_id for one in await redis_store.users.blocks(ANN)] == ["x"]
        await redis_store.users.unblock(ANN, ItemId("x"))
        await redis_store.users.erase(ANN)
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    assert await everything_in(redis_store) == "prismrec:seq = 1"


async def test_what_users_ask_of_a_redis_that_hangs_is_refused_in_time(server, redis_store):
    await redis_store.append([event(1)])
    server.pause()
    try:
        asked = await asyncio.wait_for(
            asyncio.gather(
                redis_store.users.events(ANN, limit=5),
                redis_store.users.erase(ANN),
                return_exceptions=True,
            ),
            timeout=5,
        )
    finally:
        server.resume()
    assert [type(answer) for answer in asked] == [StoreUnavailable, StoreUnavailable]
