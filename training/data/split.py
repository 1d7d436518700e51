"""Who trains and who is held out, and what of a held-out user is history and what is target.

Legend: `U` users, `B` held-out users, `L` history length, `T` longest target list.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from index.metrics import pad_targets
from training.data.interactions import TEST, TRAIN, VALID, Interactions
from training.settings import Settings

HELD_OUT_SHARE = 0.1
"""Of users for validation, and again for test: 8:1:1 (Demure, section 4.1)."""

HISTORY_SHARE = 0.8
"""Of a held-out user's interactions, the first; the rest are targets."""

Seen = Literal["mask", "keep"]


class SplitConfig(Settings):
    """Which split, and by which seed."""

    kind: Literal["auto", "users", "interactions", "column"] = Field(
        "auto",
        description="users: 8:1:1 at random, so test users are new to the model. interactions: those of each user "
        "8:1:1 at random. column: the data set's own split of interactions. auto: column where the data set has one, "
        "else users.",
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Of a random split; unset: the run's seed.")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Users to evaluate on, each with at least one target."""

    users_B: NDArray[np.int64]
    histories: tuple[NDArray[np.int64], ...]
    """Per user all items before the targets, oldest first; may be empty."""
    targets_BT: NDArray[np.int64]
    """As `index.metrics` takes them."""

    def __len__(self) -> int:
        """Return B."""
        return len(self.users_B)


@dataclass(frozen=True, slots=True)
class Split:
    """What a run learns from and is judged on."""

    train: Interactions
    """All users of the data set, with the interactions to learn from."""
    train_users: NDArray[np.int64]
    valid: HeldOut
    test: HeldOut


def make_split(interactions: Interactions, config: SplitConfig, *, seed: int, seen: Seen = "mask") -> Split:
    """Split by users, by each user's interactions, or by the data set's own column.

    Args:
        interactions: Everything.
        config: Which.
        seed: The run's, for a random split whose own seed is unset.
        seen: `mask` removes targets that are in the history too: no list that masks seen items could hold them.

    Raises:
        ValueError: The column is asked for and missing, or nothing is left to learn from or to validate on.
    """
    kind = config.kind
    if kind == "auto":
        kind = "users" if interactions.split_E is None else "column"
    seed = seed if config.seed is None else config.seed
    if kind == "column":
        if interactions.split_E is None:
            raise ValueError("split.kind = column, but interactions.parquet has no column 'split'")
        split = _interaction_split(interactions, interactions.split_E, seen=seen)
    elif kind == "interactions":
        split = _interaction_split(interactions, interaction_groups(interactions.lengths, seed=seed), seen=seen)
    else:
        split = _user_split(interactions, seed=seed, seen=seen)
    if not np.any(split.train.lengths[split.train_users] >= 2):
        raise ValueError("no user to train on has two interactions: nothing can be learned from such data")
    if len(split.valid) == 0:
        raise ValueError(f"none of {interactions.num_users} users is left for validation: the data set is too small")
    return split


def user_groups(num_users: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return train, validation and test users, 8:1:1 at random, each sorted."""
    shuffled = np.random.default_rng(seed).permutation(num_users)
    held_out = round(num_users * HELD_OUT_SHARE)
    valid, test, train = np.split(shuffled, [held_out, 2 * held_out])
    return np.sort(train), np.sort(valid), np.sort(test)


def interaction_groups(length_U: NDArray[np.int64], *, seed: int) -> NDArray[np.int8]:
    """Return TRAIN, VALID or TEST for each interaction `[E]`: of each user 8:1:1 at random, at least one to train on.

    A user of n has round(n / 10) in validation and in test each, rounded up or down at random so that the shares of
    the whole are right for short histories too.
    """
    rng = np.random.default_rng(seed)
    num_users, num_interactions = len(length_U), int(length_U.sum())
    user_E = np.repeat(np.arange(num_users), length_U)
    rank_E = np.empty(num_interactions, np.int64)
    # Sorted by (user, chance), the place within the user is a random rank.
    rank_E[np.lexsort((rng.random(num_interactions), user_E))] = np.arange(num_interactions)
    rank_E -= np.repeat(np.cumsum(length_U) - length_U, length_U)

    def share(left_U: NDArray[np.int64]) -> NDArray[np.int64]:
        wanted_U = np.floor(length_U * HELD_OUT_SHARE + rng.random(num_users) + 1e-9).astype(np.int64)
        return np.minimum(wanted_U, left_U)

    valid_U = share(np.maximum(length_U - 1, 0))
    test_U = share(np.maximum(length_U - 1 - valid_U, 0))
    groups_E = np.full(num_interactions, TRAIN, np.int8)
    groups_E[rank_E < (valid_U + test_U)[user_E]] = TEST
    groups_E[rank_E < valid_U[user_E]] = VALID
    return groups_E


def held_out(interactions: Interactions, users: NDArray[np.int64], *, seen: Seen = "mask") -> HeldOut:
    """Return the users' first floor(0.8 n) interactions as history and the rest as targets."""
    histories, targets = [], []
    for user in users:
        items = interactions.of(int(user))
        cut = int(len(items) * HISTORY_SHARE + 1e-9)
        histories.append(items[:cut])
        targets.append(items[cut:])
    return _with_targets(users, histories, targets, seen=seen)


def all_users(interactions: Interactions, *, seen: Seen = "mask") -> HeldOut:
    """Return every user as held out, for a bundle that is judged on data it may never have seen."""
    return held_out(interactions, np.arange(interactions.num_users), seen=seen)


def _user_split(interactions: Interactions, *, seed: int, seen: Seen) -> Split:
    train_users, valid_users, test_users = user_groups(interactions.num_users, seed=seed)
    return Split(
        train=interactions,
        train_users=train_users,
        valid=held_out(interactions, valid_users, seen=seen),
        test=held_out(interactions, test_users, seen=seen),
    )


def _interaction_split(interactions: Interactions, split_E: NDArray[np.int8], *, seen: Seen) -> Split:
    """Learn from what is marked TRAIN; it is every user's history, and the marked rest are targets."""
    train, valid, test = (interactions.select(split_E == code) for code in (TRAIN, VALID, TEST))
    users = np.arange(interactions.num_users)

    def against(targets: Interactions) -> HeldOut:
        return _with_targets(users, [train.of(int(u)) for u in users], [targets.of(int(u)) for u in users], seen=seen)

    return Split(train=train, train_users=users, valid=against(valid), test=against(test))


def _with_targets(
    users: NDArray[np.int64], histories: list[NDArray[np.int64]], targets: list[NDArray[np.int64]], *, seen: Seen
) -> HeldOut:
    if seen == "mask":
        targets = [t[~np.isin(t, h)] for h, t in zip(histories, targets, strict=True)]
    kept = [place for place, rows in enumerate(targets) if len(rows) > 0]
    return HeldOut(
        users_B=users[kept],
        histories=tuple(histories[place] for place in kept),
        targets_BT=pad_targets([targets[place] for place in kept]),
    )
