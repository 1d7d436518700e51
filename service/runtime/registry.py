"""ServableRegistry: which version answers, and when an old one may close.

Memory: at most two versions stay open between swaps, the current one and the one before it, which is kept so that a
rollback needs no load. Their tables are memory-mapped and shared, so an idle one costs what the kernel leaves of it in
the page cache. A load adds a third for as long as it takes; where memory does not suffice for that, the reloader lets
the previous one go and tries again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from service.recommend.errors import NoServable
from service.recommend.servable import Servable


class ServableRegistry:
    """Holds the current version and the one before it. Used on the event loop alone.

    A version is closed by its last holder: the registry lets go of it in `swap`, each request when it is answered,
    and a worker thread when it is done with it.
    """

    def __init__(self) -> None:
        self._current: Servable | None = None
        self._previous: Servable | None = None

    @property
    def current(self) -> Servable | None:
        """The version that answers, if any."""
        return self._current

    @property
    def previous(self) -> Servable | None:
        """The version before it, kept for a rollback."""
        return self._previous

    @contextmanager
    def acquire(self) -> Iterator[Servable]:
        """Give the current version and keep it open until the block ends.

        Raises:
            NoServable: Nothing is loaded.
        """
        servable = self._current
        if servable is None or not servable.retain():
            raise NoServable("no version is loaded")
        try:
            yield servable
        finally:
            servable.release()

    def swap(self, servable: Servable) -> None:
        """Make a version current; the registry takes over the caller's hold on it. The one before last is let go."""
        forgotten, self._previous, self._current = self._previous, self._current, servable
        if forgotten is not None:
            forgotten.release()

    def roll_back(self) -> None:
        """Make the previous version current again and the current one the previous.

        Raises:
            NoServable: There is no previous one.
        """
        if self._previous is None:
            raise NoServable("no earlier version is loaded")
        self._current, self._previous = self._previous, self._current

    def forget_previous(self) -> None:
        """Let go of the previous version."""
        forgotten, self._previous = self._previous, None
        if forgotten is not None:
            forgotten.release()

    def close(self) -> None:
        """Let go of all versions; requests that still hold one keep it until they are done."""
        self.forget_previous()
        closing, self._current = self._current, None
        if closing is not None:
            closing.release()
