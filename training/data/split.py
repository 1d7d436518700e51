"""Who trains and who is held out, and what of a held-out user is history and what is target.

Legend: `U` users, `E` interactions, `F` folds, `B` held-out users, `L` history length, `T` longest target list.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from index.features import Ages, ages_of
from index.metrics import pad_targets
from training.data.candidates import Candidates, SampledConfig, draw_candidates
from training.data.interactions import TEST, TRAIN, VALID, Interactions
from training.settings import Settings

HELD_OUT_SHARE = 0.1
"""Of users for validation, and again for test: 8:1:1 (Demure, section 4.1)."""

HISTORY_SHARE = 0.8
"""Of a held-out user's interactions, the first; the rest are targets."""

Seen = Literal["mask", "keep"]

SplitKind = Literal["auto", "users", "interactions", "folds", "column"]


class SplitConfig(Settings):
    """Which split, and by which seed."""

    kind: SplitKind = Field(
        "auto",
        description="users: 8:1:1 at random, so test users are new to the model. interactions: those of each user "
        "8:1:1 at random. folds: those of each user in folds of one size, of which one is the test, the next one "
        "validation and the others train: 3:1:1 of five. column: the data set's own split of interactions. auto: "
        "column where the data set has one, else users.",
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Of a random split; unset: the run's seed.")
    folds: int = Field(5, ge=3, le=100, description="How many folds there are with `kind = folds`.")
    fold: int = Field(0, ge=0, description="Which of them is the test, from 0; the one after it is validation.")

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is none of {self.folds} folds, which are counted from 0")
        return self

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, whole: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave folds out where there are none: a run is named by what it does."""
        values: dict[str, object] = whole(self)
        return values if self.kind == "folds" else {k: v for k, v in values.items() if k not in ("folds", "fold")}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Users to evaluate on, each with at least one target."""

    users_B: NDArray[np.int64]
    histories: tuple[NDArray[np.int64], ...]
    """Per user all items before the targets, oldest first; may be empty."""
    targets_BT: NDArray[np.int64]
    """As `index.metrics` takes them."""
    candidates: Candidates | None = None
    """What the targets are ranked among once more, after the whole catalogue."""
    ages: tuple[Ages, ...] | None = None
    """Of each history; None: times were not read."""

    def __len__(self) -> int:
        """Return B."""
        return len(self.users_B)

    def with_candidates(self, sampled: SampledConfig | None, interactions: Interactions) -> "HeldOut":
        """Return the same with candidates drawn for each user, if any are asked for.

        Args:
            sampled: How.
            interactions: All that users have, in whatever part: none of it is drawn.
        """
        if sampled is None:
            return self
        drawn = draw_candidates(sampled, interactions, self.users_B, self.targets_BT)
        return replace(self, candidates=drawn)


@dataclass(frozen=True, slots=True)
class Split:
    """What a run learns from and is judged on."""

    train: Interactions
    """All users of the data set, with the interactions to learn from."""
    train_users: NDArray[np.int64]
    valid: HeldOut
    test: HeldOut


def make_split(
    interactions: Interactions,
    config: SplitConfig,
    *,
    seed: int,
    seen: Seen = "mask",
    sampled: SampledConfig | None = None,
) -> Split:
    """Split by users, by each user's interactions in one of two ways, or by the data set's own column.

    Args:
        interactions: Everything.
        config: Which.
        seed: The run's, for a random split whose own seed is unset.
        seen: `mask` removes targets that are in the history too: no list that masks seen items could hold them.
        sampled: Candidates that targets are ranked among beside the whole catalogue; None: no such.

    Raises:
        ValueError: The column is asked for and missing, nothing is left to learn from or to validate on, or there are
            no more items than candidates.
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
    elif kind == "folds":
        fold_E = interaction_folds(interactions.lengths, num=config.folds, seed=seed)
        split = _interaction_split(interactions, fold_groups(fold_E, test=config.fold, num=config.folds), seen=seen)
    else:
        split = _user_split(interactions, seed=seed, seen=seen)
    if not np.any(split.train.lengths[split.train_users] >= 2):
        raise ValueError("no user to train on has two interactions: nothing can be learned from such data")
    if len(split.valid) == 0:
        raise ValueError(f"none of {interactions.num_users} users is left for validation: the data set is too small")
    return replace(
        split,
        valid=split.valid.with_candidates(sampled, interactions),
        test=split.test.with_candidates(sampled, interactions),
    )


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
    num_users = len(length_U)
    user_E, rank_E = _random_ranks(length_U, rng)

    def share(left_U: NDArray[np.int64]) -> NDArray[np.int64]:
        wanted_U = np.floor(length_U * HELD_OUT_SHARE + rng.random(num_users) + 1e-9).astype(np.int64)
        return np.minimum(wanted_U, left_U)

    valid_U = share(np.maximum(length_U - 1, 0))
    test_U = share(np.maximum(length_U - 1 - valid_U, 0))
    groups_E = np.full(len(user_E), TRAIN, np.int8)
    groups_E[rank_E < (valid_U + test_U)[user_E]] = TEST
    groups_E[rank_E < valid_U[user_E]] = VALID
    return groups_E


def interaction_folds(length_U: NDArray[np.int64], *, num: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for each interaction `[E]`: those of a user are dealt to folds whose sizes differ by at most one.

    Which folds get one more is random for each user, so that folds are of one size on the whole. Two interactions of a
    user never lie in neighbouring folds where there are four or more, so who has two trains on one of them whatever the
    test; nobody with three or more is without one. A single interaction is tested in its turn, with no history.
    """
    rng = np.random.default_rng(seed)
    user_E, rank_E = _random_ranks(length_U, rng)
    deal_UF = np.argsort(rng.random((len(length_U), num)), axis=1)
    if num > 3:
        pairs = np.flatnonzero(length_U == 2)
        deal_UF[pairs, 1] = (deal_UF[pairs, 0] + rng.integers(2, num - 1, len(pairs))) % num
    fold_E: NDArray[np.int64] = deal_UF[user_E, rank_E % num]
    return fold_E


def fold_groups(fold_E: NDArray[np.int64], *, test: int, num: int) -> NDArray[np.int8]:
    """Return TEST for one fold, VALID for the one after it, the first after the last, and TRAIN for the others."""
    groups_E = np.full(len(fold_E), TRAIN, np.int8)
    groups_E[fold_E == test] = TEST
    groups_E[fold_E == (test + 1) % num] = VALID
    return groups_E


def _random_ranks(length_U: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each interaction's user, and its place `[E]` in a random order of the user's interactions."""
    user_E = np.repeat(np.arange(len(length_U)), length_U)
    rank_E = np.empty(len(user_E), np.int64)
    # Sorted by (user, chance), the place within the user is a random rank.
    rank_E[np.lexsort((rng.random(len(user_E)), user_E))] = np.arange(len(user_E))
    return user_E, rank_E - np.repeat(np.cumsum(length_U) - length_U, length_U)


def held_out(interactions: Interactions, users: NDArray[np.int64], *, seen: Seen = "mask") -> HeldOut:
    """Return the users' first floor(0.8 n) interactions as history and the rest as targets."""
    histories, targets, times = [], [], []
    for user in users:
        items, moments = interactions.of(int(user)), interactions.times_of(int(user))
        cut = int(len(items) * HISTORY_SHARE + 1e-9)
        histories.append(items[:cut])
        targets.append(items[cut:])
        times.append(None if moments is None else moments[:cut])
    return _with_targets(users, histories, targets, times, seen=seen)


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
        return _with_targets(
            users,
            [train.of(int(u)) for u in users],
            [targets.of(int(u)) for u in users],
            [train.times_of(int(u)) for u in users],
            seen=seen,
        )

    return Split(train=train, train_users=users, valid=against(valid), test=against(test))


def _with_targets(
    users: NDArray[np.int64],
    histories: list[NDArray[np.int64]],
    targets: list[NDArray[np.int64]],
    times: list[NDArray[np.int64] | None],
    *,
    seen: Seen,
) -> HeldOut:
    if seen == "mask":
        targets = [t[~np.isin(t, h)] for h, t in zip(histories, targets, strict=True)]
    kept = [place for place, rows in enumerate(targets) if len(rows) > 0]
    ages = tuple(ages_of(moments) for place in kept if (moments := times[place]) is not None)
    return HeldOut(
        users_B=users[kept],
        histories=tuple(histories[place] for place in kept),
        targets_BT=pad_targets([targets[place] for place in kept]),
        ages=ages if len(ages) == len(kept) else None,
    )
