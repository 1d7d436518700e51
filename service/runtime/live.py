"""LiveCatalogue: reads the changes of the catalogue and keeps, of each loaded version, how they leave it.

A view of a version is a value: it is built in a thread and put in the place of the one before, and a request has one
view from start to end. Where nothing has changed, the view is the version itself.
"""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import structlog

from service.recommend.errors import StoreUnavailable
from service.recommend.items import ItemChanges, ItemRecords, ItemState, state_of
from service.recommend.servable import Servable
from service.runtime.delta import Delta, make_delta
from service.runtime.overlay import OverlaidServable
from service.runtime.servable import LoadedServable

CHANGES_MISSED = "item_changes_missed"
CHANGES_BROKE = "item_changes_broke"

PAGE = 500
"""Records that are read at once."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A version with all changes up to a number."""

    seq: int
    servable: Servable
    delta: Delta | None


class LiveCatalogue:
    """`Catalogue` on what a store of changes holds. Versions are made known by `prepare` before they are swapped in."""

    def __init__(self, changes: ItemChanges, *, interval_s: float = 1.0) -> None:
        """Begin with no changes; `interval_s` is how often `run` looks for new ones."""
        self._changes = changes
        self._interval_s = interval_s
        self._states: Mapping[str, ItemState] = {}
        """Of all changed items; replaced, never changed."""
        self._seq = 0
        """All changes up to here are in the states."""
        self._views: dict[LoadedServable, _View] = {}
        self._building = threading.Lock()
        """Views are built one after the other; the event loop only reads them, and never waits for it."""
        self._reading: asyncio.Task[None] | None = None

    @property
    def num_changed(self) -> int:
        """How many items have changed."""
        return len(self._states)

    def at(self, servable: Servable, seq: int) -> Servable | None:
        """Return the version with all changes up to `seq`; None when not all of them have been read here yet."""
        view = self._views.get(cast("LoadedServable", servable))
        if view is None:
            return servable if seq == 0 else None
        return view.servable if view.seq >= seq else None

    def latest(self, servable: Servable) -> Servable:
        """Return the version with all changes that have been read here."""
        view = self._views.get(cast("LoadedServable", servable))
        return servable if view is None else view.servable

    async def fresh(self, servable: Servable, seq: int | None = None) -> Servable:
        """Read what is missing up to `seq`, or up to the latest change, and return the version with it.

        Raises:
            StoreUnavailable: The changes can not be read now.
        """
        if seq is None:
            seq = await self._changes.changes_seq()
        for _ in range(2):  # a reading that is under way may have begun before this change
            view = self.at(servable, seq)
            if view is not None:
                return view
            await self._catch_up()
        return self.latest(servable)

    async def begin(self) -> None:
        """Read what there is; a store that is away is read when it is back."""
        try:
            await self._catch_up()
        except StoreUnavailable as error:
            _log.error(CHANGES_MISSED, reason=str(error))

    async def run(self) -> None:
        """Look for changes again and again until cancelled, so that no request has many to read."""
        while True:
            await asyncio.sleep(self._interval_s)
            self._forget_closed()
            try:
                if await self._changes.changes_seq() != self._seq:
                    await self._catch_up()
            except StoreUnavailable as error:
                _log.debug(CHANGES_MISSED, reason=str(error))
            except Exception as error:  # noqa: BLE001 - answers go on with what was read before, whatever it was
                _log.error(CHANGES_BROKE, exc_info=error)

    async def close(self) -> None:
        """Wait for a reading that is under way."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    def prepare(self, servable: LoadedServable) -> None:
        """Build the view of a version that will be swapped in; in the thread that has loaded it."""
        self._forget_closed()
        with self._building:
            self._build(servable)

    async def _catch_up(self) -> None:
        """Read until nothing new is left; whoever comes meanwhile waits for the same reading."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_look_at)  # also where everybody who waited has gone
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        while True:
            found = await self._changes.changed_since(self._seq, limit=PAGE)
            await asyncio.to_thread(self._take, found)
            if len(found.records) < PAGE and found.last_seq == self._seq:
                return

    def _take(self, found: ItemRecords) -> None:
        with self._building:
            if found.last_seq < self._seq:  # the store has begun anew
                self._states, self._seq = {}, 0
                return
            # A version older than what was trimmed, as when the next is still being loaded, needs its changes yet.
            forgotten = min([found.trimmed_to, *(servable.folded_seq for servable in list(self._views))])
            states = {
                item_id: state
                for item_id, state in self._states.items()
                if state.seq > forgotten or state.available is False
            }
            states |= {record.item_id: state_of(record) for record in found.records}
            self._states = states
            self._seq = found.records[-1].seq if len(found.records) == PAGE else found.last_seq
            for servable in list(self._views):
                self._build(servable)

    def _forget_closed(self) -> None:
        """Let go of versions that nobody answers from any more: a view holds all of a version's tables."""
        for servable in [one for one in list(self._views) if one.closed]:
            self._views.pop(servable, None)  # by itself, without the lock: the event loop does not wait for it

    def _build(self, servable: LoadedServable) -> None:
        """Bring the view of a version up to date, or forget it when the version has been closed."""
        earlier = self._views.get(servable)
        if not servable.retain():
            self._views.pop(servable, None)
            return
        try:
            delta = make_delta(
                servable, tuple(self._states.values()), seq=self._seq, previous=earlier.delta if earlier else None
            )
            view = servable if delta is None else OverlaidServable(servable, delta)
            self._views[servable] = _View(self._seq, view, delta)
        finally:
            servable.release()


def _look_at(reading: "asyncio.Task[None]") -> None:
    if not reading.cancelled():
        reading.exception()
