"""What users may do with what is kept of them: the same promises on SQLite and on a real redis-server."""

import asyncio
import random

import pytest

from service.recommend.errors import BlocksFull, Conflict, StoreUnavailable
from service.recommend.ports import NEWEST, Block, Merged
from service.recommend.types import Event, ItemId, session_subject, user_subject
from tests.stores import ANN, BOB, CAP, MAX_BLOCKS, START_S, event, items

SESSION = session_subject("tab-1")


async def block(store, *names, subject=ANN):
    for number, name in enumerate(names):
        await store.users.block(subject, ItemId(name), at=START_S + number)


async def blocked(store, subject=ANN):
    return set((await store.history(subject, limit=100)).blocked_item_ids)


async def listed(store, *, limit, before=NEWEST, subject=ANN):
    return await store.users.events(subject, before=before, limit=limit)


async def pages(store, *, limit, subject=ANN):
    """Walk from the newest to the oldest event; return the items by page."""
    found, before = [], NEWEST
    while page := await listed(store, limit=limit, before=before, subject=subject):
        found.append([kept.event.item_id for kept in page])
        before = page[-1].place
    return found


# --- listing ---


async def test_events_are_listed_newest_first_with_all_that_they_hold(store):
    full = Event("e/1 ü", ANN, ItemId('i"1'), "play", START_S + 0.000001, value=-12.5, recommendation_id="r1")
    bare = event(2)
    await store.append([full, bare])
    assert [kept.event for kept in await listed(store, limit=10)] == [bare, full]
    assert await listed(store, limit=10, subject=BOB) == ()


@pytest.mark.parametrize("limit", [1, 3, 7, 20, 50])
async def test_pages_hold_every_event_once(store, limit):
    moments = [random.Random(0).randrange(6) + START_S for _ in range(CAP)]
    await store.append([event(number, at=moment) for number, moment in enumerate(moments)])
    found = await pages(store, limit=limit)
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert [item for page in found for item in page] == list(reversed(await items(store)))


async def test_pages_stay_what_they_are_while_events_arrive(store):
    await store.append([event(number, at=START_S + number // 4) for number in range(8)])
    expected = list(reversed(await items(store)))
    seen, before, new = [], NEWEST, 100
    while page := await listed(store, limit=2, before=before):
        seen += [kept.event.item_id for kept in page]
        before = page[-1].place
        await store.append([event(new), event(new + 1, at=before.occurred_us / 1e6)])  # one of the very moment, too
        new += 2
        await store.append([event(1_000 + new, subject=BOB)])
    assert seen == expected


async def test_a_place_outlives_its_event(store):
    await store.append([event(number) for number in range(CAP)])
    place = (await listed(store, limit=1))[0].place
    await store.append([event(number) for number in range(CAP, CAP + 10)])
    assert [kept.event.item_id for kept in await listed(store, limit=2, before=place)] == ["i18", "i17"]
    await store.append([event(number) for number in range(CAP + 10, 3 * CAP)])
    assert await listed(store, limit=2, before=place) == ()


# --- erasure ---


async def test_who_is_erased_is_unknown_to_everybody_and_others_are_not(make_store):
    one, other = await make_store(), await make_store()
    await one.append([event(1), event(2), event(3, subject=BOB)])
    await block(one, "x")
    await block(one, "y", subject=BOB)
    await other.users.erase(ANN)
    for store in (one, other):
        assert await items(store) == ()
        assert await blocked(store) == set()
        assert await listed(store, limit=10) == ()
        assert await store.users.blocks(ANN) == ()
    assert await items(one, BOB) == ("i3",)
    assert await blocked(one, BOB) == {"y"}


async def test_erasing_again_or_an_unknown_user_is_no_error(store):
    await store.users.erase(ANN)
    await store.append([event(1)])
    await store.users.erase(ANN)
    await store.users.erase(ANN)
    assert await items(store) == ()


async def test_an_event_after_the_erasure_counts_anew(store):
    await store.append([event(1), event(2)])
    await store.users.erase(ANN)
    assert await store.append([event(1)]) == (True,)
    assert await store.append([event(1)]) == (False,)
    assert await items(store) == ("i1",)


async def test_an_erasure_outlives_the_process(make_store):
    first = await make_store()
    await first.append([event(1)])
    await first.users.erase(ANN)
    await first.close()
    assert await items(await make_store()) == ()


async def test_of_events_and_erasures_at_once_each_event_is_before_or_after(store):
    calls = []
    for number in range(10):
        calls.append(store.append([event(number)]))
        calls.append(store.users.erase(ANN))
    await asyncio.gather(*calls)
    await store.users.erase(ANN)
    assert await store.append([event(number) for number in range(10)]) == (True,) * 10
    assert len(await items(store)) == 10


# --- merging ---


async def test_a_session_becomes_the_users(make_store):
    one, other = await make_store(), await make_store()
    await one.append([event(1), event(4)])
    await one.append([event(2, subject=SESSION), event(5, subject=SESSION)])
    assert await one.users.merge(SESSION, into=ANN) == Merged(num_events=2)
    assert await items(other) == ("i1", "i2", "i4", "i5")
    assert await items(other, SESSION) == ()
    assert {kept.event.subject for kept in await listed(other, limit=9)} == {ANN}


async def test_merging_again_or_an_unknown_session_changes_nothing(store):
    await store.append([event(1, subject=SESSION)])
    await store.users.merge(SESSION, into=ANN)
    assert await store.users.merge(SESSION, into=ANN) == Merged()
    assert await store.users.merge(session_subject("nobody"), into=BOB) == Merged()
    assert await store.users.merge(ANN, into=ANN) == Merged()
    assert await items(store) == ("i1",)


async def test_merged_events_keep_their_ids(store):
    await store.append([event(1, subject=SESSION)])
    await store.users.merge(SESSION, into=ANN)
    assert await store.append([event(1), event(1, subject=SESSION)]) == (False, False)
    await store.append([event(2, subject=SESSION)])
    assert await store.users.merge(SESSION, into=ANN) == Merged(num_events=1)
    assert await items(store) == ("i1", "i2")


async def test_of_what_is_merged_only_the_latest_events_are_kept(store):
    await store.append([event(number) for number in range(0, 2 * CAP, 2)])
    await store.append([event(number, subject=SESSION) for number in range(1, 2 * CAP, 2)])
    await store.users.merge(SESSION, into=ANN)
    assert await items(store) == tuple(f"i{number}" for number in range(CAP, 2 * CAP))
    assert await store.append([event(0)]) == (True,), "the id of an event that was dropped is free"
    await store.append([event(100)])
    assert (await items(store))[-1] == "i100"


async def test_events_of_one_moment_keep_their_order_when_they_are_merged(store):
    await store.append([event(3, at=START_S), event(1, at=START_S)])
    await store.append([event(7, at=START_S, subject=SESSION), event(5, at=START_S, subject=SESSION)])
    await store.users.merge(SESSION, into=ANN)
    await store.append([event(4, at=START_S)])
    assert await items(store) == ("i3", "i1", "i7", "i5", "i4")
    assert [item for page in await pages(store, limit=2) for item in page] == ["i4", "i5", "i7", "i1", "i3"]


async def test_blocks_are_merged_or_nothing_is(store):
    await block(store, "a", "b", "c")
    await block(store, "b", "d", subject=SESSION)
    assert await store.users.merge(SESSION, into=ANN) == Merged(num_blocks=1)
    assert await blocked(store) == {"a", "b", "c", "d"}
    await block(store, "d", "e", "f", subject=SESSION)
    await store.append([event(1, subject=SESSION)])
    with pytest.raises(BlocksFull):
        await store.users.merge(SESSION, into=ANN)
    assert await blocked(store) == {"a", "b", "c", "d"}
    assert await blocked(store, SESSION) == {"d", "e", "f"}
    assert await items(store, SESSION) == ("i1",)
    await store.users.unblock(ANN, ItemId("a"))
    assert await store.users.merge(SESSION, into=ANN) == Merged(num_events=1, num_blocks=2)
    assert await store.users.blocks(SESSION) == ()


async def test_of_two_who_merge_one_session_at_once_one_gets_it(make_store):
    stores = [await make_store(), await make_store()]
    for round_ in range(10):
        session = session_subject(f"s{round_}")
        await stores[0].append([event(round_, subject=session)])
        users = [user_subject(f"a{round_}"), user_subject(f"b{round_}")]
        merged = await asyncio.gather(
            *[store.users.merge(session, into=user) for store, user in zip(stores, users, strict=True)]
        )
        assert sorted(one.num_events for one in merged) == [0, 1]
        assert sorted([len(await items(stores[0], user)) for user in users]) == [0, 1]


# --- blocks ---


async def test_a_block_is_read_with_the_history_by_everybody_at_once(make_store):
    one, other = await make_store(), await make_store()
    await block(one, "x", 'y "ü" / 漢')
    assert await blocked(other) == {"x", 'y "ü" / 漢'}
    assert await items(other) == ()
    await one.append([event(1)])
    history = await other.history(ANN, limit=1)
    assert (history.item_ids, set(history.blocked_item_ids)) == (("i1",), {"x", 'y "ü" / 漢'})
    await other.users.unblock(ANN, ItemId("x"))
    assert await blocked(one) == {'y "ü" / 漢'}
    assert await blocked(one, BOB) == set()
    assert await blocked(one, session_subject("ann")) == set()


async def test_blocks_are_listed_the_latest_first(store):
    await block(store, "c", "a", "b")
    await block(store, "c")
    expected = (Block(ItemId("b"), START_S + 2), Block(ItemId("a"), START_S + 1), Block(ItemId("c"), START_S))
    assert await store.users.blocks(ANN) == expected
    await store.users.unblock(ANN, ItemId("a"))
    await store.users.unblock(ANN, ItemId("a"))
    await store.users.unblock(BOB, ItemId("a"))
    assert [one.item_id for one in await store.users.blocks(ANN)] == ["b", "c"]


async def test_a_full_list_refuses_one_more_and_its_neighbours_are_kept(store):
    await block(store, *(f"x{number}" for number in range(MAX_BLOCKS)))
    full, again, kept, others = await asyncio.gather(
        store.users.block(ANN, ItemId("one more"), at=START_S),
        store.users.block(ANN, ItemId("x0"), at=START_S),
        store.append([event(1)]),
        store.users.block(BOB, ItemId("one more"), at=START_S),
        return_exceptions=True,
    )
    assert isinstance(full, Conflict)
    assert str(MAX_BLOCKS) in str(full)
    assert (again, kept, others) == (None, (True,), None)
    assert len(await blocked(store)) == MAX_BLOCKS
    await store.users.unblock(ANN, ItemId("x3"))
    await store.users.block(ANN, ItemId("one more"), at=START_S)
    assert "one more" in await blocked(store)


async def test_blocks_outlive_the_process(make_store):
    first = await make_store()
    await block(first, "x")
    await first.close()
    assert await blocked(await make_store()) == {"x"}


async def test_a_cancelled_call_leaves_the_store_well(store):
    await store.append([event(1)])
    for call in (store.users.blocks, store.users.erase):
        task = asyncio.create_task(call(BOB))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [kept.event.item_id for kept in await listed(store, limit=5)] == ["i1"]
        assert await store.users.blocks(ANN) == ()


async def test_after_the_end_nothing_is_promised(store):
    await store.close()
    for call in (
        store.users.events(ANN, limit=1),
        store.users.erase(ANN),
        store.users.merge(SESSION, into=ANN),
        store.users.block(ANN, ItemId("x"), at=START_S),
        store.users.unblock(ANN, ItemId("x")),
        store.users.blocks(ANN),
    ):
        with pytest.raises(StoreUnavailable):
            await call
