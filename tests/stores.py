"""What tests of event stores share: two users, their events, and how a store is asked."""

import sqlite3

from service.recommend.types import Event, ItemId, user_subject

ANN, BOB = user_subject("ann"), user_subject("bob")
CAP = 20
"""Events that the stores of the contract suites keep of a subject."""
MAX_BLOCKS = 5
START_S = 1_700_000_000.0


def event(number: int, *, subject=ANN, at: float | None = None, event_id: str | None = None, item: str | None = None):
    """Return event `e<number>` on item `i<number>`, a second after the one before."""
    return Event(
        event_id=event_id or f"e{number}",
        subject=subject,
        item_id=ItemId(item or f"i{number}"),
        type="click",
        occurred_at=START_S + number if at is None else at,
    )


async def items(store, subject=ANN, *, limit=100):
    return (await store.history(subject, limit=limit)).item_ids


VERSION_1 = """
CREATE TABLE subjects (
    id INTEGER PRIMARY KEY,
    subject TEXT NOT NULL UNIQUE,
    num_events INTEGER NOT NULL,
    next_seq INTEGER NOT NULL,
    touched_day INTEGER NOT NULL
) STRICT;
CREATE INDEX subjects_by_day ON subjects (touched_day);
CREATE TABLE events (
    subject_id INTEGER NOT NULL,
    occurred_us INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    event_id TEXT NOT NULL UNIQUE,
    item_id TEXT NOT NULL,
    type TEXT NOT NULL,
    value REAL,
    recommendation_id TEXT,
    PRIMARY KEY (subject_id, occurred_us, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO subjects VALUES (7, 'u:ann', 2, 2, 99999), (9, 's:tab', 1, 1, 99999);
INSERT INTO events VALUES
    (7, 1700000001000000, 0, 'e1', 'i1', 'click', NULL, NULL),
    (7, 1700000002000000, 1, 'e2', 'i2', 'play', 0.5, 'r1'),
    (9, 1700000003000000, 0, 'e3', 'i3', 'click', NULL, NULL);
PRAGMA application_id = 1347570003;
PRAGMA user_version = 1;
"""
"""A file as the first release made it."""


def make_version_1(path):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(VERSION_1)
    connection.close()
