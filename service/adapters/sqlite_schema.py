"""The event database on SQLite: its tables, its statements, and how it is opened."""

import os
import sqlite3
from pathlib import Path

_APPLICATION_ID = 0x50524953  # "PRIS": tells our files from others

# Events lie in the order in which they are read (one subject, newest last), so a history is one run of neighbours.
_EVENTS = """
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
"""
_BLOCKS = """
CREATE TABLE blocks (
    subject_id INTEGER NOT NULL,
    item_id TEXT NOT NULL,
    blocked_us INTEGER NOT NULL,
    PRIMARY KEY (subject_id, item_id)
) STRICT, WITHOUT ROWID;
"""
# The latest state of every item that has changed, by its latest change; the log's own row outlives what is trimmed.
_ITEMS = """
CREATE TABLE items (
    seq INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    fields TEXT NOT NULL
) STRICT;
CREATE TABLE item_log (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    last_seq INTEGER NOT NULL,
    trimmed_to INTEGER NOT NULL
) STRICT;
INSERT INTO item_log (id, last_seq, trimmed_to) VALUES (0, 0, 0)
"""
_MIGRATIONS = (_EVENTS, _BLOCKS, _ITEMS)
"""What leads from each version to the next; an empty file has version 0. A step that was released never changes."""
SCHEMA_VERSION = len(_MIGRATIONS)

ITEM_TABLES = ("items", "item_log")
"""Tables that say nothing of any subject."""

SUBJECT_TABLES = ("events", "blocks")
"""Every table that keeps something of a subject, under its `subject_id`: who is forgotten is gone from all of them."""

# One row with JSON texts: every row that SQLite hands to Python costs a release of the interpreter lock, which a busy
# event loop is slow to give back.
READ = """
SELECT json_group_array(item_id), json_group_array(occurred_us), (
    SELECT json_group_array(item_id) FROM blocks WHERE subject_id = (SELECT id FROM subjects WHERE subject = ?1)
), (SELECT last_seq FROM item_log) FROM (
    SELECT item_id, occurred_us FROM events
    WHERE subject_id = (SELECT id FROM subjects WHERE subject = ?1)
    ORDER BY occurred_us DESC, seq DESC LIMIT ?2
)
"""
FIND_SUBJECT = "SELECT id, num_events, next_seq FROM subjects WHERE subject = ?"
ADD_SUBJECT = "INSERT INTO subjects (subject, num_events, next_seq, touched_day) VALUES (?, 0, 0, ?) RETURNING id"
UPDATE_SUBJECT = "UPDATE subjects SET num_events = ?, next_seq = ? WHERE id = ?"
TOUCH_SUBJECT = "UPDATE subjects SET touched_day = ?1 WHERE id = ?2 AND touched_day <> ?1"
ADD_EVENT = """
INSERT INTO events (subject_id, occurred_us, seq, event_id, item_id, type, value, recommendation_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING
"""
TRIM = """
DELETE FROM events WHERE (subject_id, occurred_us, seq) IN (
    SELECT subject_id, occurred_us, seq FROM events WHERE subject_id = ? ORDER BY occurred_us, seq LIMIT ?
)
"""
FIND_IDLE = "SELECT id FROM subjects WHERE touched_day < ? LIMIT 200"
FORGET_SUBJECT = (
    *(f"DELETE FROM {table} WHERE subject_id = ?" for table in SUBJECT_TABLES),  # noqa: S608 - names of our own
    "DELETE FROM subjects WHERE id = ?",
)
LIST_EVENTS = """
SELECT occurred_us, seq, event_id, item_id, type, value, recommendation_id FROM events
WHERE subject_id = (SELECT id FROM subjects WHERE subject = ?) AND (occurred_us, seq) < (?, ?)
ORDER BY occurred_us DESC, seq DESC LIMIT ?
"""
LIST_BLOCKS = """
SELECT item_id, blocked_us FROM blocks WHERE subject_id = (SELECT id FROM subjects WHERE subject = ?)
ORDER BY blocked_us DESC, item_id
"""
HAS_BLOCK = "SELECT EXISTS (SELECT 1 FROM blocks WHERE subject_id = ? AND item_id = ?)"
COUNT_BLOCKS = "SELECT count(*) FROM blocks WHERE subject_id = ?"
ADD_BLOCK = "INSERT INTO blocks (subject_id, item_id, blocked_us) VALUES (?, ?, ?)"
REMOVE_BLOCK = "DELETE FROM blocks WHERE subject_id = ? AND item_id = ?"
COUNT_NEW_BLOCKS = """
SELECT count(*) FROM blocks WHERE subject_id = ?1 AND item_id NOT IN (SELECT item_id FROM blocks WHERE subject_id = ?2)
"""
MOVE_BLOCKS = """
INSERT INTO blocks (subject_id, item_id, blocked_us) SELECT ?2, item_id, blocked_us FROM blocks WHERE subject_id = ?1
ON CONFLICT (subject_id, item_id) DO NOTHING
"""
MOVE_EVENTS = "UPDATE events SET subject_id = ?2, seq = seq + ?3 WHERE subject_id = ?1"
ITEM_LOG = "SELECT last_seq, trimmed_to FROM item_log"
COUNT_ITEMS = "SELECT count(*) FROM items"
FIND_ITEM = "SELECT seq, kind, fields FROM items WHERE item_id = ?"
CHANGED_SINCE = "SELECT seq, item_id, kind, fields FROM items WHERE seq > ? ORDER BY seq LIMIT ?"
FORGET_ITEM = "DELETE FROM items WHERE seq = ?"
ADD_ITEM = "INSERT INTO items (seq, item_id, kind, fields) VALUES (?, ?, ?, ?)"
NOTE_CHANGES = "UPDATE item_log SET last_seq = ?"
NOTE_TRIMMED = "UPDATE item_log SET trimmed_to = max(trimmed_to, ?)"
FIND_FOLDED = "SELECT seq, fields FROM items WHERE seq <= ?"
STRIP_ITEM = "UPDATE items SET kind = 'patch', fields = ? WHERE seq = ?"


class StoreFileError(ValueError):
    """The file is not one of our databases, or of a later version, or can not be opened: says which and why."""


def connect(path: Path, *, busy_timeout_s: float) -> sqlite3.Connection:
    """Open a connection for use from any one thread at a time, in which every commit is on disk when it returns.

    Raises:
        sqlite3.Error: It can not be opened now.
    """
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw", uri=True, timeout=busy_timeout_s, isolation_level=None,
        check_same_thread=False, cached_statements=64,
    )  # fmt: skip
    for pragma in (
        "synchronous = FULL",  # the log is fsynced at every commit: what is acknowledged survives a loss of power too
        "secure_delete = ON",  # what is deleted is overwritten
        "temp_store = MEMORY",
        "cache_size = -16384",
        "journal_size_limit = 67108864",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def scrub(connection: sqlite3.Connection) -> bool:
    """Empty the log, which still shows what was deleted; what is committed moves into the file.

    Returns:
        False: somebody reads an older state for longer than a moment, and the log is as it was.
    """
    (busy_timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 50")
    try:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError:  # what was to be kept is kept: nobody's work has failed
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
    return bool(busy == 0)


def prepare(path: Path, *, busy_timeout_s: float) -> None:
    """Make the database where there is none, and bring an older one up to date. Several processes may do so at once.

    Raises:
        StoreFileError: The folder is missing, the file is no database of ours, or its version is a later one.
    """
    if not path.parent.is_dir():
        raise StoreFileError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise StoreFileError(f"{path}: is a folder, the store is a file")
    try:
        # O_CREAT alone: SQLite's own creation would race with a second process that sees the file still empty
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = connect(path, busy_timeout_s=busy_timeout_s)
        try:
            _prepare(connection, path)
        finally:
            connection.close()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (sqlite3.Error, OSError) as error:
        raise StoreFileError(f"{path}: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != _APPLICATION_ID and (application, version, num_tables) != (0, 0, 0):
        raise StoreFileError(f"{path}: is an SQLite database, and not an event store of Prismrec")
    if version > SCHEMA_VERSION:
        raise StoreFileError(f"{path}: has schema version {version}, this software reads {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:  # in one transaction: whoever comes second finds the work done
        for migration in _MIGRATIONS[version:]:
            for statement in migration.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
