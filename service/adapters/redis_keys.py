"""Which keys there are in Redis, and how much is kept under them."""

from dataclasses import dataclass

from service.recommend.types import Subject

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisLimits:
    """How much is kept, and how long a call may take."""

    max_events_per_subject: int = 500
    max_blocks_per_subject: int = 1_000
    keep_idle_days: int = 365
    """A subject without a new event for so many days is forgotten."""
    dedupe_days: int = 7
    """An event id is known for so long, or until its event is trimmed."""
    read_timeout_s: float = 0.05
    write_timeout_s: float = 2.0
    max_waiting: int = 10_000
    prefix: str = "prismrec:"

    @property
    def subject_ms(self) -> int:
        """How long a subject's keys live without a new event."""
        return self.keep_idle_days * DAY_MS

    @property
    def event_id_ms(self) -> int:
        """How long an event id is known; not longer than the event."""
        return min(self.dedupe_days, self.keep_idle_days) * DAY_MS

    @property
    def seq_key(self) -> str:
        """Counts the events that arrive."""
        return f"{self.prefix}seq"

    @property
    def event_id_prefix(self) -> str:
        """What a key of an event id begins with."""
        return f"{self.prefix}e:"

    def history_key(self, subject: Subject) -> str:
        """Return under which key a subject's events are."""
        return f"{self.prefix}h:{subject}"

    def blocks_key(self, subject: Subject) -> str:
        """Return under which key the items are that a subject has blocked."""
        return f"{self.prefix}b:{subject}"

    def subject_keys(self, subject: Subject) -> tuple[str, ...]:
        """Return every key that is named after a subject, the history first: who is forgotten is gone from all.

        The ids of the events are keys, too; the history says which.
        """
        return self.history_key(subject), self.blocks_key(subject)
