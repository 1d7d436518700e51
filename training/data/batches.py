"""Training pairs: the items up to a cut, and the item that follows it. Vectorised over the batch.

Legend: `B` batch, `L` history length, `E` interactions, `X` positions that can be a target.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from training.data.interactions import Interactions
from training.settings import Settings


class PairsConfig(Settings):
    """How training pairs are drawn."""

    by: Literal["position", "user"] = Field(
        "position",
        description="position: every interaction that can be a target equally often. user: every user equally often, "
        "then a random cut (ComiRec).",
    )
    min_history: int = Field(1, ge=1, le=500, description="Fewest items before the target.")
    item_dropout: float = Field(
        0.0, ge=0, lt=1, description="Chance that an item of a history is hidden for a step; one item always stays."
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's pairs."""

    users_B: NDArray[np.int64]
    history_BL: NDArray[np.int64]
    """Item rows, padded at the end with row 0."""
    mask_BL: NDArray[np.bool_]
    """What counts; with item dropout it has holes before the padding, too."""
    target_B: NDArray[np.int64]
    age_BL: NDArray[np.float32] | None = None
    """Seconds from each item to the latest one of the history, 0 in the padding; None: times were not read."""


class PairSampler:
    """An endless, reproducible stream of batches; its state is two numbers and the generator's.

    An epoch has as many pairs as there are positions. `position` shuffles them by (seed, epoch), so each comes once
    an epoch; the last batch of an epoch takes the rest.
    """

    def __init__(
        self,
        interactions: Interactions,
        users: NDArray[np.int64],
        config: PairsConfig,
        *,
        history_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._interactions = interactions
        self._config = config
        self._history_length = history_length
        self._batch_size = batch_size
        self._seed = seed
        self._users = users[interactions.lengths[users] > config.min_history]
        if len(self._users) == 0:
            raise ValueError(f"no user to train on has more than {config.min_history} interactions")
        self._user_X, self._cut_X = _positions(interactions.lengths[self._users], config.min_history)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    @property
    def pairs_per_epoch(self) -> int:
        """Return the number of positions that can be a target."""
        return len(self._user_X)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-self.pairs_per_epoch // self._batch_size)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step: the same for the same seed and step, whatever was asked before."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rng = self._generator(epoch, place)
        chosen_B = slice(place * self._batch_size, (place + 1) * self._batch_size)
        if self._config.by == "position":
            if self._order[0] != epoch:
                self._order = (epoch, self._generator(epoch).permutation(self.pairs_per_epoch))
            pair_B = self._order[1][chosen_B]
            users_B, cut_B = self._users[self._user_X[pair_B]], self._cut_X[pair_B]
        else:
            users_B = rng.choice(self._users, len(range(self.pairs_per_epoch)[chosen_B]))
            cut_B = rng.integers(self._config.min_history, self._interactions.lengths[users_B])
        batch = self._cut(users_B, cut_B)
        return self._drop_items(batch, rng) if self._config.item_dropout > 0 else batch

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key])

    def _drop_items(self, batch: Batch, rng: np.random.Generator) -> Batch:
        chance_BL = np.where(batch.mask_BL, rng.random(batch.mask_BL.shape), -1.0)
        # The item with the largest draw stays, so that no history becomes empty.
        kept_BL = (chance_BL >= self._config.item_dropout) | (chance_BL == chance_BL.max(axis=1, keepdims=True))
        return replace(batch, mask_BL=batch.mask_BL & kept_BL)

    def _cut(self, users_B: NDArray[np.int64], cut_B: NDArray[np.int64]) -> Batch:
        start_B = self._interactions.start_U1[users_B]
        first_B = np.maximum(cut_B - self._history_length, 0)
        place_L = np.arange(self._history_length)
        mask_BL = place_L < (cut_B - first_B)[:, None]
        place_BL = np.where(mask_BL, (start_B + first_B)[:, None] + place_L, 0)
        history_BL = np.where(mask_BL, self._interactions.item_E[place_BL], 0)
        age_BL: NDArray[np.float32] | None = None
        if (time_E := self._interactions.time_E) is not None:
            latest_B1 = time_E[start_B + cut_B - 1, np.newaxis]
            age_BL = np.where(mask_BL, latest_B1 - time_E[place_BL], 0).astype(np.float32)
        return Batch(users_B, history_BL, mask_BL, self._interactions.item_E[start_B + cut_B], age_BL)


def _positions(length_U: NDArray[np.int64], min_history: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    count_U = length_U - min_history
    user_X = np.repeat(np.arange(len(length_U)), count_U)
    within_X = np.arange(len(user_X)) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    return user_X, within_X + min_history
