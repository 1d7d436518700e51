"""Whatever the order of a source, its interactions come out user by user, in time order, with none lost."""

from collections import defaultdict
from itertools import pairwise

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from index.dataset_problems import MAX_ROWS_TOLD
from index.dataset_validate import InteractionChecker
from training.data.importers.spill import UserBuckets

USERS = st.text(min_size=1, max_size=5)
EVENTS = st.lists(st.tuples(USERS, st.sampled_from("abc"), st.integers(0, 2**40)), min_size=1, max_size=40)


def batches(events, size):
    for start in range(0, len(events), size):
        user, item, time = zip(*events[start : start + size], strict=True)
        yield pa.table({"user_id": user, "item_id": item, "timestamp": pa.array(time, pa.int64())})


@given(events=EVENTS, size=st.integers(5, 40), source_bytes=st.integers(0, 200 << 20))
@settings(max_examples=20, deadline=None)
def test_bucketed_sorting_is_a_stable_sort_within_users(tmp_path_factory, events, size, source_bytes):
    folder = tmp_path_factory.mktemp("buckets") / "sorting"
    with UserBuckets(folder, source_bytes=source_bytes) as buckets:
        for table in batches(events, size):
            buckets.add(table)
        found = [tuple(row.values()) for table in buckets.tables(["timestamp"]) for row in table.to_pylist()]
    assert not folder.exists()
    expected, actual = defaultdict(list), defaultdict(list)
    for event in sorted(events, key=lambda event: event[2]):
        expected[event[0]].append(event)
    for event in found:
        actual[event[0]].append(event)
    assert actual == expected
    users = [event[0] for event in found]
    assert len(list(dict.fromkeys(users))) == 1 + sum(a != b for a, b in pairwise(users))


@given(events=EVENTS, batch_rows=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_validation_finds_exactly_the_rows_that_are_earlier_than_the_one_before(events, batch_rows):
    checker = InteractionChecker(pa.array(["a", "b", "c"]))
    for table in batches(events, batch_rows):
        for batch in table.to_batches():
            checker.check(batch)
    last, early = {}, []
    for row, (user, _, time) in enumerate(events):
        if time < last.get(user, 0):
            early.append(row)
        last[user] = time
    assert [problem.row for problem in checker.found.problems()] == early[:MAX_ROWS_TOLD]
    assert checker.num_users == len(last)
