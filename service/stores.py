"""Opens the stores that a URL names: SQLite files, or one Redis server for all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from service.adapters.sqlite_answers import SqliteAnswers
from service.adapters.sqlite_items import SqliteItems
from service.adapters.sqlite_side_file import side_path
from service.adapters.sqlite_slates import SqliteSlates
from service.adapters.sqlite_store import SqliteStore
from service.recommend.once import AnswerLimits, AnswerStore
from service.recommend.ports import EventLimits, SlateLimits, SlateStore
from service.settings import EventSettings, ItemSettings

if TYPE_CHECKING:
    from service.adapters.redis_items import RedisItems
    from service.adapters.redis_store import RedisStore

EventStore: TypeAlias = "SqliteStore | RedisStore"
ItemStore: TypeAlias = "SqliteItems | RedisItems"

Y = TypeVar("Y")


def open_store(url: str, events: EventSettings) -> EventStore:
    """Open the event store that a URL names: `sqlite:PATH` or one that redis-py reads.

    Raises:
        StoreFileError: The SQLite file can not be opened or is none of ours.
        ValueError: The Redis URL can not be read.
    """
    limits = EventLimits(
        max_events_per_subject=events.max_per_subject,
        max_blocks_per_subject=events.max_blocks,
        keep_idle_days=events.keep_idle_days,
        dedupe_days=events.dedupe_days,
        read_timeout_s=events.read_timeout_s,
        write_timeout_s=events.write_timeout_s,
    )
    if url.startswith("sqlite:"):
        return SqliteStore(Path(url.removeprefix("sqlite:").removeprefix("//")), limits=limits)
    from service.adapters.redis_store import RedisStore  # a fifth of the start-up time

    return RedisStore(url, limits=limits)


def open_items(url: str, events: EventSettings, items: ItemSettings) -> ItemStore:
    """Open the store of the catalogue's changes: it lies beside the events.

    Raises:
        StoreFileError: As `open_store`; so is ValueError.
    """
    most = items.max_changed
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite:").removeprefix("//"))
        return SqliteItems(
            path, max_items=most, read_timeout_s=events.read_timeout_s, write_timeout_s=events.write_timeout_s
        )
    from service.adapters.redis_items import RedisItems  # as above

    return RedisItems(url, max_items=most, read_timeout_s=events.read_timeout_s, write_timeout_s=events.write_timeout_s)


def with_items(url: str, work: Callable[[ItemStore], Awaitable[Y]], *, timeout_s: float) -> Y:
    """Do something long with the store of changes, in a thread that has no event loop, by connections of its own.

    Args:
        url: As for `open_items`.
        work: What to do.
        timeout_s: What one call of the store may take.

    Raises:
        StoreFileError: As `open_items`; so is ValueError. Besides, whatever `work` raises.
    """

    async def run() -> Y:
        events = EventSettings(read_timeout_s=timeout_s, write_timeout_s=timeout_s)
        changes = open_items(url, events, ItemSettings())
        try:
            return await work(changes)
        finally:
            await changes.close()

    return asyncio.run(run())


def open_slates(url: str, events: EventSettings) -> SlateStore:
    """Open where answers are kept: on the same Redis as the events, or in a file beside theirs.

    Raises:
        StoreFileError: The SQLite file can not be opened.
        ValueError: The Redis URL can not be read.
    """
    limits = SlateLimits(
        ttl_s=events.keep_slates_s, max_slates=events.max_slates, write_timeout_s=events.write_timeout_s
    )
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite:").removeprefix("//"))
        return SqliteSlates(side_path(path, name="slates"), limits=limits)
    from service.adapters.redis_slates import RedisSlates  # a fifth of the start-up time

    return RedisSlates(url, limits=limits)


def open_answers(url: str, events: EventSettings) -> AnswerStore:
    """Open where answers are kept by `Idempotency-Key`: on the same Redis as the events, or in a file beside theirs.

    Raises:
        StoreFileError: As `open_slates`; so is ValueError.
    """
    limits = AnswerLimits(ttl_s=events.keep_answers_s, max_answers=events.max_answers, timeout_s=events.write_timeout_s)
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite:").removeprefix("//"))
        return SqliteAnswers(side_path(path, name="answers"), limits=limits)
    from service.adapters.redis_answers import RedisAnswers  # as above

    return RedisAnswers(url, limits=limits)
