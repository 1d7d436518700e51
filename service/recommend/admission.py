"""The bound on requests in flight: admission comes before any work."""

from types import TracebackType

from service.recommend.errors import Overloaded


class Admission:
    """Counts requests in flight and refuses at once when there are too many. Used on the event loop alone."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: {limit} is below 1")
        self.limit = limit
        self.in_flight = 0

    def check(self) -> None:
        """Return when there is a place: for who would do work before taking one.

        Raises:
            Overloaded: All places are taken.
        """
        if self.in_flight >= self.limit:
            raise Overloaded(f"{self.limit} requests are in flight")

    def __enter__(self) -> None:
        """Take a place; raises as `check` does."""
        self.check()
        self.in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place back."""
        self.in_flight -= 1
