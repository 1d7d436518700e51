"""Every event store keeps the same promises: the suite runs against SQLite and against a real redis-server."""

import asyncio
import random

import pytest

from service.recommend.errors import StoreUnavailable
from service.recommend.types import Event, ItemId, session_subject, user_subject
from tests.stores import ANN, BOB, CAP, event, items


async def test_an_unknown_subject_has_an_empty_history(store):
    assert await items(store) == ()


async def test_a_history_is_in_order_of_time_whatever_the_order_of_arrival(store):
    await store.append([event(3), event(1)])
    await store.append([event(2)])
    history = await store.history(ANN, limit=10)
    assert history.item_ids == ("i1", "i2", "i3")
    assert history.occurred_at == (1_700_000_001.0, 1_700_000_002.0, 1_700_000_003.0)


async def test_events_of_one_moment_keep_their_order_of_arrival(store):
    await store.append([event(number, at=1.7e9) for number in (5, 3, 9)])
    await store.append([event(number, at=1.7e9) for number in (4, 11, 10)])
    assert await items(store) == ("i5", "i3", "i9", "i4", "i11", "i10")


async def test_a_limit_keeps_the_last(store):
    await store.append([event(number) for number in range(10)])
    assert await items(store, limit=3) == ("i7", "i8", "i9")
    assert await items(store, limit=0) == ()


async def test_microseconds_survive(store):
    moments = (0.0, 1_699_999_999.999999, 1_700_000_000.000001, 4_102_444_800.5)
    await store.append([event(number, at=moment) for number, moment in enumerate(moments)])
    assert (await store.history(ANN, limit=10)).occurred_at == moments


async def test_a_second_event_with_an_id_is_a_duplicate_and_changes_nothing(store):
    assert await store.append([event(1)]) == (True,)
    assert await store.append([event(9, event_id="e1"), event(2)]) == (False, True)
    assert await items(store) == ("i1", "i2")


async def test_of_two_events_with_one_id_in_a_call_the_first_is_kept(store):
    assert await store.append([event(1), event(7, event_id="e1"), event(8, event_id="e1", subject=BOB)]) == (
        True,
        False,
        False,
    )
    assert await items(store) == ("i1",)
    assert await items(store, BOB) == ()


async def test_an_id_is_known_across_subjects(store):
    await store.append([event(1)])
    assert await store.append([event(1, subject=BOB)]) == (False,)


async def test_users_and_sessions_of_one_name_are_apart(store):
    await store.append([event(1, subject=user_subject("x")), event(2, subject=session_subject("x"))])
    assert await items(store, user_subject("x")) == ("i1",)
    assert await items(store, session_subject("x")) == ("i2",)


async def test_only_the_latest_events_are_kept(store):
    for start in range(0, 3 * CAP, 7):
        await store.append([event(number) for number in range(start, start + 7)])
    last = start + 7
    assert await items(store) == tuple(f"i{number}" for number in range(last - CAP, last))


async def test_more_events_than_are_kept_may_come_in_one_call(store):
    assert all(await store.append([event(number) for number in range(500)]))
    assert await items(store, limit=1_000) == tuple(f"i{number}" for number in range(500 - CAP, 500))


async def test_an_event_older_than_all_that_is_kept_is_taken_and_dropped(store):
    await store.append([event(number) for number in range(100, 100 + CAP)])
    assert await store.append([event(1)]) == (True,)
    assert "i1" not in await items(store)


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE events; --",
        '"quoted"',
        "back\\slash",
        "ünï¢ödé 漢字 🎬",
        "x" * 256,
        "a:b/c?d#e",
        "[1,2]",
        " ",
        "%s{}",
    ],
)
async def test_any_printable_id_survives(store, text):
    subject = user_subject(text)
    await store.append([event(1, subject=subject, event_id=text, item=text), event(2, subject=subject)])
    assert await items(store, subject) == (text, "i2")
    assert await store.append([event(3, event_id=text)]) == (False,)


async def test_everything_that_an_event_may_have_is_taken(store):
    full = Event("e1", ANN, ItemId("i1"), "play", 1.7e9, value=-12.5, recommendation_id="r1")
    assert await store.append([full]) == (True,)
    assert await items(store) == ("i1",)


async def test_no_events_are_no_work(store):
    assert await store.append([]) == ()


async def test_what_was_acknowledged_is_read_by_everybody_at_once(make_store):
    one, other = await make_store(), await make_store()
    for number in range(10):
        await one.append([event(number)])
        assert (await items(other))[-1] == f"i{number}"


async def test_of_many_who_send_one_event_at_once_exactly_one_is_told_that_it_is_new(make_store):
    stores = [await make_store(), await make_store()]

    async def send(store, order):
        return await store.append([event(number) for number in order])

    orders = [random.Random(seed).sample(range(CAP), CAP) for seed in range(12)]
    answers = await asyncio.gather(*[send(stores[place % 2], order) for place, order in enumerate(orders)])
    new = [
        number
        for order, fresh in zip(orders, answers, strict=True)
        for number, is_new in zip(order, fresh, strict=True)
        if is_new
    ]
    assert sorted(new) == list(range(CAP))
    assert await items(stores[0]) == tuple(f"i{number}" for number in range(CAP))


async def test_a_storm_of_cancelled_calls_never_gives_one_user_the_history_of_another(store):
    subjects = [user_subject(f"user-{number}") for number in range(20)]
    await store.append([event(n, subject=s, item=f"of-{s}") for n, s in enumerate(subjects)])
    tasks = []
    chance = random.Random(0)

    async def read(subject):
        return subject, await items(store, subject)

    for _ in range(30):
        batch = [asyncio.create_task(read(chance.choice(subjects))) for _ in range(20)]
        for task in chance.sample(batch, 12):
            if chance.random() < 0.5:
                await asyncio.sleep(0)  # some are cancelled before they have begun, some under way
            task.cancel()
        tasks += batch
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [answer for answer in answers if not isinstance(answer, asyncio.CancelledError)]
    assert len(kept) > 100
    assert all(found == (f"of-{subject}",) for subject, found in kept)
    assert await asyncio.gather(*[read(subject) for subject in subjects]) == [
        (subject, (f"of-{subject}",)) for subject in subjects
    ]


async def test_a_cancelled_append_is_kept_whole_or_not_at_all_and_may_be_repeated(store):
    task = asyncio.create_task(store.append([event(number) for number in range(5)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert set(await store.append([event(number) for number in range(5)])) in ({True}, {False})
    assert await items(store) == ("i0", "i1", "i2", "i3", "i4")


async def test_ping_returns_and_maintenance_tells_the_size(store):
    await store.ping()
    await store.append([event(1)])
    assert await store.maintain() > 1_000
    assert store.durable is True


async def test_after_the_end_nothing_is_promised(store):
    await store.append([event(1)])
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.append([event(2)])
    with pytest.raises(StoreUnavailable):
        await store.history(ANN, limit=1)


async def test_a_store_that_was_closed_has_kept_what_it_acknowledged(make_store):
    first = await make_store()
    await first.append([event(1)])
    await first.close()
    assert await items(await make_store()) == ("i1",)
