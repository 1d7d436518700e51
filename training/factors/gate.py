"""Users of whom nothing was fitted: who they are, and how well they are read from their histories.

Legend: `B` users, `I` items, `T` longest target list, `Q` queries, `D` width.
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from training.config import FactorRun
from training.data.interactions import Interactions
from training.data.split import HISTORY_SHARE, HeldOut, Seen, Split, held_out
from training.evaluate import Judged, judge_scores, means

GATE_SHARE = 0.1
"""Of the training users: no map is fitted on them."""

GATE_CUTOFF = 20

ScoreItems = Callable[[Tensor, Tensor], Tensor]
"""Scores `[B, I]` of queries `[B, Q, D]`, each user's with every one of the items `[I, D]`: `IdModel.score`."""


class ServingError(ValueError):
    """The model is trained, but users or items that it was not trained on would be badly served."""


def gate_users(split: Split, *, seed: int, seen: Seen) -> tuple[Interactions, HeldOut]:
    """Return what is trained on, and training users with targets of which nothing is learned.

    Under a split of interactions these are a tenth of the validation users. Under a split of users no training user has
    a target, so a tenth of them give their last interactions: their learned vectors know as much as their histories.
    """
    rng = np.random.default_rng([seed, 17])
    train, valid = split.train, split.valid
    known = np.flatnonzero(np.isin(valid.users_B, split.train_users) & (train.lengths[valid.users_B] > 0))
    if len(known) > 0:
        chosen = np.sort(rng.permutation(known)[: max(1, round(len(known) * GATE_SHARE))])
        histories = tuple(valid.histories[place] for place in chosen)
        return train, HeldOut(valid.users_B[chosen], histories, valid.targets_BT[chosen])
    long = split.train_users[train.lengths[split.train_users] >= 2]
    users = np.sort(rng.permutation(long)[: max(1, round(len(long) * GATE_SHARE))])
    gate = held_out(train, users, seen=seen)
    keep_E = np.ones(len(train.item_E), np.bool_)
    for user in users:
        start, stop = train.start_U1[user], train.start_U1[user + 1]
        keep_E[start + int((stop - start) * HISTORY_SHARE + 1e-9) : stop] = False
    return train.select(keep_E), gate


def rank(
    score: ScoreItems,
    queries_BQD: Tensor,
    items_ID: Tensor,
    users: HeldOut,
    *,
    cutoffs: Sequence[int],
    seen: Seen,
) -> Judged:
    """Return the metrics of each user with these queries."""
    return judge_scores(
        lambda piece: score(queries_BQD[piece], items_ID), users, num_items=len(items_ID), cutoffs=cutoffs, seen=seen
    )


def gate_recall(score: ScoreItems, queries_BQD: Tensor, items_ID: Tensor, gate: HeldOut, config: FactorRun) -> float:
    """Return the recall of the gate's users with these queries."""
    judged = rank(score, queries_BQD, items_ID, gate, cutoffs=(GATE_CUTOFF,), seen=config.eval.seen)
    return means(judged)[f"recall@{GATE_CUTOFF}"]
