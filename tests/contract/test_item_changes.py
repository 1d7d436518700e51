"""Every store of the catalogue's changes keeps the same promises: SQLite, and a real redis-server."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from service.adapters.redis_items import RedisItems
from service.adapters.redis_store import RedisStore
from service.adapters.sqlite_items import SqliteItems
from service.adapters.sqlite_store import SqliteStore
from service.recommend.errors import ChangesFull, StoreUnavailable
from service.recommend.items import ItemChange
from service.recommend.ports import EventLimits
from service.recommend.types import Event, ItemId, user_subject

MOST = 20
ANN = user_subject("ann")


@pytest.fixture(params=["sqlite", "redis"])
async def make(request, tmp_path) -> AsyncIterator:
    """Open any number of stores on the same data, and the event store beside them."""
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")

    def items():
        times = {"max_items": MOST, "read_timeout_s": 2, "write_timeout_s": 5}
        opened.append(
            RedisItems(server.url, **times)
            if request.param == "redis"
            else SqliteItems(tmp_path / "events.db", **times)
        )
        return opened[-1]

    def events():
        opened.append(
            RedisStore(server.url, limits=EventLimits(read_timeout_s=2))
            if request.param == "redis"
            else SqliteStore(tmp_path / "events.db", limits=EventLimits(read_timeout_s=2))
        )
        return opened[-1]

    yield items, events
    for store in opened:
        await store.close()


@pytest.fixture
async def store(make):
    return make[0]()


def change(item, kind="put", **fields) -> ItemChange:
    return ItemChange(ItemId(item), kind, {name: json.dumps(value) for name, value in fields.items()})


async def kept(store, seq=0, limit=100):
    """Return what is kept, as plain values."""
    found = await store.changed_since(seq, limit=limit)
    return [
        (one.item_id, one.seq, one.kind, {name: json.loads(text) for name, text in one.fields.items()})
        for one in found.records
    ]


async def test_an_empty_store_has_no_changes(store):
    assert await store.changes_seq() == 0
    found = await store.changed_since(0, limit=10)
    assert (found.records, found.last_seq, found.trimmed_to, found.num_records) == ((), 0, 0, 0)
    assert await store.change([]) == ()


async def test_changes_are_numbered_in_their_order(store):
    assert await store.change([change("a", title="A"), change("b", "patch", available=False)]) == (1, 2)
    assert await store.change([change("c", "delete")]) == (3,)
    assert await store.changes_seq() == 3
    assert await kept(store) == [
        ("a", 1, "put", {"title": "A"}),
        ("b", 2, "patch", {"available": False}),
        ("c", 3, "delete", {}),
    ]
    assert [one[0] for one in await kept(store, seq=1, limit=1)] == ["b"]


async def test_a_put_replaces_all_that_was_said_of_an_item(store):
    await store.change([change("a", title="old", available=False), change("b")])
    assert await store.change([change("a", description="new")]) == (3,)
    assert await kept(store) == [("b", 2, "put", {}), ("a", 3, "put", {"description": "new"})]


async def test_a_patch_amends_and_leaves_the_rest(store):
    await store.change([change("a", title="old", categories=["x"])])
    await store.change([change("a", "patch", title="new"), change("a", "patch", available=False)])
    assert await kept(store) == [("a", 3, "put", {"title": "new", "categories": ["x"], "available": False})]


async def test_a_patch_of_an_item_that_was_not_changed_waits_for_the_index(store):
    await store.change([change("a", "patch", title="t"), change("a", "patch", available=True)])
    assert await kept(store) == [("a", 2, "patch", {"title": "t", "available": True})]


async def test_a_deleted_item_can_not_be_patched_and_comes_back_with_a_put(store):
    await store.change([change("a", title="t"), change("a", "delete")])
    assert await store.change([change("a", "patch", title="x"), change("b", "patch", title="y")]) == (None, 3)
    assert ("a", 2, "delete", {}) in await kept(store)
    await store.change([change("a", title="again")])
    assert (await kept(store))[-1] == ("a", 4, "put", {"title": "again"})


async def test_no_more_items_are_kept_than_the_bound_and_nothing_of_what_is_refused(store):
    await store.change([change(f"i{number}") for number in range(MOST)])
    with pytest.raises(ChangesFull):
        await store.change([change("i0", title="t"), change("one too many")])
    assert await store.changes_seq() == MOST
    assert (await kept(store))[0] == ("i0", 1, "put", {})
    assert await store.change([change("i0", title="t")]) == (MOST + 1,)


async def test_trimming_forgets_what_is_folded_in_but_not_that_an_item_is_hidden(store):
    await store.change(
        [change("a", title="A"), change("b", title="B", available=False), change("c", "delete"), change("d")]
    )
    assert await store.trim_changes(up_to=3) == 2
    assert await kept(store) == [("b", 2, "patch", {"available": False}), ("d", 4, "put", {})]
    found = await store.changed_since(0, limit=10)
    assert (found.last_seq, found.trimmed_to, found.num_records) == (4, 3, 2)
    assert await store.trim_changes(up_to=1) == 2
    assert (await store.changed_since(0, limit=10)).trimmed_to == 3
    assert await store.change([change("a")]) == (5,)
    with pytest.raises(ValueError, match="up_to"):
        await store.trim_changes(up_to=6)


async def test_numbers_go_on_after_everything_is_trimmed(store):
    await store.change([change("a"), change("b")])
    assert await store.trim_changes(up_to=2) == 0
    assert await store.change([change("a")]) == (3,)


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE items; --", 'a"b', "漢字 🎬", "x" * 256, "a:b/c?d#e", " ", "%s{}", "f:x"]
)
async def test_any_printable_id_and_text_survives(store, text):
    await store.change([change(text, title=text)])
    assert await kept(store) == [(text, 1, "put", {"title": text})]


async def test_what_was_acknowledged_is_read_by_everybody_at_once_also_with_a_history(make):
    items, events = make
    one, other, history = items(), items(), events()
    await history.append([Event("e1", ANN, ItemId("i1"), "click", 1.7e9)])
    for number in range(1, 6):
        await one.change([change(f"i{number}")])
        assert await other.changes_seq() == number
        read = await history.history(ANN, limit=5)
        assert (read.item_ids, read.changes_seq) == (("i1",), number)
        assert (await history.history(user_subject("nobody"), limit=5)).changes_seq == number


async def test_many_who_patch_one_item_at_once_all_count(make):
    stores = [make[0](), make[0]()]
    await asyncio.gather(
        *[stores[number % 2].change([change("a", "patch", **{f"field{number}": number})]) for number in range(12)]
    )
    ((_, seq, _, fields),) = await kept(stores[0])
    assert (seq, fields) == (12, {f"field{number}": number for number in range(12)})


async def test_a_refused_change_does_not_take_its_neighbours_with_it(store):
    await store.change([change(f"i{number}") for number in range(MOST)])
    done = await asyncio.gather(
        store.change([change("new")]), store.change([change("i1", "patch", title="t")]), return_exceptions=True
    )
    assert isinstance(done[0], ChangesFull)
    assert done[1] == (MOST + 1,)


async def test_a_storm_of_cancelled_calls_mixes_nothing_up(store):
    await store.change([change(f"i{number}", title=f"of-{number}") for number in range(MOST)])
    tasks = [asyncio.create_task(kept(store, seq=number % MOST, limit=1)) for number in range(200)]
    for task in tasks[::2]:
        await asyncio.sleep(0)
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        answers[number] == [(f"i{number % MOST}", number % MOST + 1, "put", {"title": f"of-{number % MOST}"})]
        for number in range(1, 200, 2)
    )


async def test_a_store_that_was_closed_has_kept_what_it_acknowledged_and_promises_nothing(make):
    items, _ = make
    first = items()
    await first.change([change("a")])
    await first.close()
    await first.close()
    with pytest.raises(StoreUnavailable):
        await first.change([change("b")])
    assert await kept(items()) == [("a", 1, "put", {})]
