"""Writes that are done once: what a request was answered is kept under the key that its caller gave it.

A key is claimed before the request is carried out and holds its answer afterwards. A claim that was never fulfilled, as
its process died, ends by itself.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

MAX_ANSWER_BYTES = 262_144
"""An answer that takes more is not kept."""


class Claim(Enum):
    """What became of a claim to a key that holds no answer."""

    OURS = auto()
    TAKEN = auto()
    """Another request with this key is being carried out."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a request was answered."""

    digest: str
    """Of the request: another one with the same key is a mistake."""
    size_bytes: int
    """Of the request's body."""
    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """How much is kept, and how long a call may take."""

    ttl_s: float = 86_400.0
    claim_s: float = 120.0
    """A claim ends after so long; whoever comes then may carry out the request again."""
    max_answers: int = 100_000
    """The oldest go first."""
    timeout_s: float = 2.0
    max_waiting: int = 1_000


class AnswerStore(Protocol):
    """Keeps answers by key. What a call has changed is durable when it returns.

    Every method raises `StoreUnavailable` when the store does not answer in its time limit, or answers with an error.
    """

    async def claim(self, key: str, *, token: str) -> Claim | KeptAnswer:
        """Claim a key that nobody has, or return what it holds; of several callers at once one gets it.

        Args:
            key: Names the request among those of all callers.
            token: Names this claim: who asks again with the same one still has it.
        """
        ...

    async def keep(self, key: str, answer: KeptAnswer, *, token: str) -> bool:
        """Let a key hold an answer until its time is up; False: another claim has come between, and nothing changes."""
        ...

    async def release(self, key: str, *, token: str) -> None:
        """Give a claim up; nothing changes when it is not ours any more, or fulfilled."""
        ...

    async def count(self) -> int:
        """Return how many keys are held."""
        ...

    async def close(self) -> None:
        """Let go of connections and files; idempotent."""
        ...
