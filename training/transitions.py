"""What follows what, put beside a trained content model, and how much it counts.

Legend: `I` items.
"""

from collections.abc import Callable

import numpy as np
import torch

from training.baselines import MAX_ITEMS
from training.data.split import HeldOut, Split
from training.evaluate import Judged, means
from training.factors.closed_form import slit_factors
from training.factors.encoders import DecayedSumEncoder
from training.factors.transitions import transitions
from training.models import ContentModel
from training.models.beside import Beside
from training.sections import BesideConfig

GAINS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Of the linear model's scores, which are shares of a user's next items; the network's are logits."""


def with_transitions(
    network: ContentModel,
    config: BesideConfig,
    split: Split,
    *,
    judge: Callable[[ContentModel | Beside, HeldOut], Judged],
    monitor: str,
    start: dict[str, float],
) -> tuple[Beside, dict[str, float]]:
    """Return both models as one, with the gain that finds most of the validation users, and their metrics.

    Where no gain finds more than the network alone, the linear model counts for nothing.

    Args:
        network: Trained, in evaluation mode.
        config: Of the linear model.
        split: It learns from the training users alone.
        judge: Judges a model on held-out users.
        monitor: Metric that chooses.
        start: The network's own metrics on validation.

    Raises:
        ValueError: The catalogue is too large for matrices over all pairs of items.
    """
    num_items = split.train.num_items
    if num_items > MAX_ITEMS:
        raise ValueError(f"beside needs all pairs of items in memory: {num_items:,} items, at most {MAX_ITEMS:,}")
    histories = (split.train.of(int(user)) for user in split.train_users)
    counts = transitions(histories, num_items=num_items, past=config.past, future=config.future)
    factors = slit_factors(*counts, ridge=config.ridge, dim=min(config.dim, num_items))
    rows_IR, items_IR = (torch.from_numpy(one.astype(np.float32)) for one in (factors.rows_ID, factors.items_ID))
    trained_I = torch.from_numpy(split.train.popularity(split.train_users) > 0)
    linear = DecayedSumEncoder(rows_IR.shape[1], half_life=config.past)

    def beside(gain: float) -> Beside:
        made = Beside(network, linear, rows_IR, items_IR, trained_I=trained_I, gain=gain)
        return made.to(next(network.parameters()).device).eval()

    best, metrics = beside(0.0), start
    for gain in GAINS:
        tried = beside(gain)
        found = means(judge(tried, split.valid))
        if found[monitor] > metrics[monitor]:
            best, metrics = tried, found
    return best, metrics
