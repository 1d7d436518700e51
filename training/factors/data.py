"""What an id-based model is trained on, as tensors, and the batches of a step.

All chance of a step is a function of the run's seed, the stage and the step's number.

Legend: `U` users, `I` items, `R` width of all modalities together, `E` training interactions, `B` users or pairs of a
step, `X` positives of a step, `N` negatives shared by a step, `n` negatives of a pair.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.blocks.propagation import InteractionGraph
from training.data.catalogue import Catalogue
from training.data.interactions import Interactions, gather_rows

_REDRAWS = 20
"""Of negatives that a user has; who has nearly all items keeps some."""


@dataclass(frozen=True, slots=True)
class FactorBatch:
    """Some users, some of their items, and what these are compared with."""

    users_B: Tensor
    """Rows of users."""
    place_X: Tensor
    """Place in `users_B` of each positive."""
    items_X: Tensor
    pairs_X: Tensor
    """Number of each positive among the training interactions."""
    negatives: Tensor | None
    """Rows of items: `[N]` shared by the step, `[X, n]` of each positive, or None for the whole catalogue."""


class FactorData:
    """Training interactions, content and degrees."""

    def __init__(self, train: Interactions, users: NDArray[np.int64], catalogue: Catalogue, *, seed: int) -> None:
        self.users = users[train.lengths[users] > 0]
        """Users with anything to learn from."""
        place_E, item_E = gather_rows(train, self.users)
        self.user_E = torch.from_numpy(self.users[place_E])
        self.item_E = torch.from_numpy(item_E)
        self.num_users, self.num_items = train.num_users, train.num_items
        features, self.presence_IM = catalogue.inputs()
        self.content_IR = torch.cat(
            [one * self.presence_IM[:, m, None] for m, one in enumerate(features)], dim=-1
        ).contiguous()
        self.widths = [one.shape[1] for one in features]
        self.degree_U = torch.bincount(self.user_E, minlength=self.num_users).float()
        self.degree_I = torch.bincount(self.item_E, minlength=self.num_items).float()
        self._train = train
        self._held_E = np.unique((self.user_E * self.num_items + self.item_E).numpy())
        """The pairs as numbers, ascending."""
        self._start_U1 = np.concatenate([[0], np.cumsum(train.lengths[self.users])])
        self._seed = seed
        self._order: tuple[tuple[int, ...], NDArray[np.int64]] = ((), np.zeros(0, np.int64))

    def histories(self, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return what each of some users has in the training interactions, oldest first."""
        return [self._train.of(int(user)) for user in users]

    @property
    def content(self) -> list[Tensor]:
        """Return the content of each modality `[I, R_m]`, zero where absent."""
        return list(torch.split(self.content_IR, self.widths, dim=-1))

    @property
    def num_pairs(self) -> int:
        """Return E."""
        return len(self.item_E)

    def user_batch(self, stage: int, step: int, *, size: int, num_negatives: int | None) -> FactorBatch:
        """Return `size` users with all of their pairs, each user once an epoch; negatives shared, or all items."""
        steps = self.steps(len(self.users), size)
        epoch, place = divmod(step, steps)
        chosen = self._shuffled(stage, epoch, len(self.users))[place * size : (place + 1) * size]
        lengths = self._start_U1[chosen + 1] - self._start_U1[chosen]
        place_X = np.repeat(np.arange(len(chosen)), lengths)
        within_X = np.arange(len(place_X)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        pairs_X = torch.from_numpy(self._start_U1[chosen][place_X] + within_X)
        negatives = None
        if num_negatives is not None:
            rng = np.random.default_rng([self._seed, stage, epoch, place, 1])
            negatives = torch.from_numpy(rng.integers(0, self.num_items, num_negatives))
        return FactorBatch(
            torch.from_numpy(self.users[chosen]), torch.from_numpy(place_X), self.item_E[pairs_X], pairs_X, negatives
        )

    def pair_batch(self, stage: int, step: int, *, size: int, num_negatives: int) -> FactorBatch:
        """Return `size` pairs with negatives of their own, each pair once an epoch. Negatives may be positives."""
        steps = self.steps(self.num_pairs, size)
        epoch, place = divmod(step, steps)
        pairs_X = self._shuffled(stage, epoch, self.num_pairs)[place * size : (place + 1) * size]
        rng = np.random.default_rng([self._seed, stage, epoch, place, 1])
        negatives = torch.from_numpy(rng.integers(0, self.num_items, (len(pairs_X), num_negatives)))
        chosen = torch.from_numpy(pairs_X)
        return FactorBatch(self.user_E[chosen], torch.arange(len(chosen)), self.item_E[chosen], chosen, negatives)

    def lacking_batch(self, stage: int, step: int, *, size: int, num_negatives: int) -> FactorBatch:
        """Return the same, with negatives that the pair's user has not in the training interactions."""
        batch = self.pair_batch(stage, step, size=size, num_negatives=num_negatives)
        assert batch.negatives is not None
        users_X1, negatives_Xn = batch.users_B.numpy()[:, None], batch.negatives.numpy().copy()
        rng = np.random.default_rng([self._seed, stage, step, 3])
        for _ in range(_REDRAWS):
            pairs_Xn = users_X1 * self.num_items + negatives_Xn
            held_Xn = self._held_E[np.searchsorted(self._held_E, pairs_Xn) % len(self._held_E)] == pairs_Xn
            if not held_Xn.any():
                break
            negatives_Xn[held_Xn] = rng.integers(0, self.num_items, int(held_Xn.sum()))
        return replace(batch, negatives=torch.from_numpy(negatives_Xn))

    def chance(self, stage: int, step: int) -> torch.Generator:
        """Return what a step draws from, beyond its batch."""
        seed = np.random.SeedSequence([self._seed, stage, step, 2]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def holds(self, users_B: Tensor, items_Y: Tensor) -> Tensor:
        """Return which of some distinct items each user has in the training interactions `[B, Y]` bool."""
        return torch.from_numpy(self._train.holds(users_B.numpy(), items_Y.numpy()))

    @property
    def graph(self) -> InteractionGraph:
        """Return the training interactions as a graph."""
        return InteractionGraph(self.user_E, self.item_E, num_users=self.num_users, num_items=self.num_items)

    @staticmethod
    def steps(total: int, size: int) -> int:
        """Return the number of batches of an epoch."""
        return -(-total // size)

    def _shuffled(self, stage: int, epoch: int, count: int) -> NDArray[np.int64]:
        key = (stage, epoch, count)
        if self._order[0] != key:
            self._order = (key, np.random.default_rng([self._seed, stage, epoch]).permutation(count))
        return self._order[1]
