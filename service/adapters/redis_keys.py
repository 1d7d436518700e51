"""Which keys of users and events there are in Redis, and how long they live."""

from dataclasses import dataclass

from service.recommend.ports import EventLimits
from service.recommend.types import Subject

DAY_MS = 86_400_000


def subject_ms(limits: EventLimits) -> int:
    """Return how long a subject's keys live without a new event."""
    return limits.keep_idle_days * DAY_MS


def event_id_ms(limits: EventLimits) -> int:
    """Return how long an event id is known; not longer than the event."""
    return min(limits.dedupe_days, limits.keep_idle_days) * DAY_MS


@dataclass(frozen=True, slots=True)
class EventKeys:
    """Names of keys."""

    prefix: str = "prismrec:"

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
