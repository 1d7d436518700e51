"""Both event stores, for the suites that each of them passes: SQLite, and a real redis-server."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from service.adapters.redis_store import RedisStore
from service.adapters.sqlite_store import SqliteStore
from service.recommend.ports import EventLimits
from tests.stores import CAP, MAX_BLOCKS

MakeStore = Callable[[], Awaitable[SqliteStore | RedisStore]]


@pytest.fixture(params=["sqlite", "redis"])
async def make_store(request, tmp_path) -> AsyncIterator[MakeStore]:
    """Open any number of stores on the same data."""
    opened = []
    bounds = {"max_events_per_subject": CAP, "max_blocks_per_subject": MAX_BLOCKS, "read_timeout_s": 2}
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")

    async def make():
        if request.param == "redis":
            store = RedisStore(server.url, limits=EventLimits(**bounds, write_timeout_s=5))
        else:
            store = SqliteStore(tmp_path / "events.db", limits=EventLimits(**bounds))
        opened.append(store)
        return store

    yield make
    for store in opened:
        await store.close()


@pytest.fixture
async def store(make_store):
    return await make_store()
