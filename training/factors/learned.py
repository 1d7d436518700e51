"""User encoders that are trained: to find the next item among fixed item vectors, from cuts of the training histories.

They start as the closed-form map, which aims at learned users. The next item is the better aim, see ADR 0018.

Legend: `B` cuts of a step, `L` history length, `I` items, `N` items compared with, `D` width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.factors.encoders import MeanEncoder
from training.factors.fold_in import ItemTables, padded
from training.sections import LearnedConfig

_MAP_SHARE = 1e-2
"""Step of the map, in deviations of its numbers: what was fitted in closed form moves slowly."""


def learn(
    encoder: MeanEncoder,
    tables: ItemTables,
    histories: Sequence[NDArray[np.int64]],
    *,
    history_length: int,
    config: LearnedConfig,
    seed: int,
) -> None:
    """Train an encoder by a softmax over items; what an empty history gives stays.

    Args:
        encoder: Starts as what it is.
        tables: Of the items, frozen.
        histories: Of the users to learn from; those of one item teach nothing.
        history_length: L.
        config: How long, and how fast.
        seed: Of the cuts, and of what is drawn to compare with.
    """
    long = [history for history in histories if len(history) >= 2]
    if not long:
        return
    # Copies made here, not in inference mode.
    items_ID, read_ID = tables.items_ID.clone(), tables.read_by(encoder).clone()
    rng = np.random.default_rng([seed, 23])
    # Scores of a usual size at first. Users keep about the scale of learned ones: sharpness is a number of its own.
    rows_BL, mask_BL = padded(long[: config.batch_size], length=history_length)
    with torch.no_grad():
        spread = (encoder(read_ID[rows_BL], mask_BL) @ items_ID.T).std().clamp_min(1e-12)
    sharpness = torch.zeros((), requires_grad=True)
    maps = [encoder.map_DD, encoder.offset_D]
    others = [one for name, one in encoder.named_parameters() if name not in ("map_DD", "offset_D", "default_D")]
    for parameter in (*maps, *others):
        parameter.requires_grad_()
    optimiser = torch.optim.Adam(
        [
            {"params": [*others, sharpness], "lr": config.lr},
            {"params": maps, "lr": _MAP_SHARE * float(encoder.map_DD.detach().std())},
        ]
    )
    for _ in range(config.steps):
        chosen = [long[one] for one in rng.integers(0, len(long), config.batch_size)]
        cuts = [int(rng.integers(1, len(history))) for history in chosen]
        before = [history[:cut] for history, cut in zip(chosen, cuts, strict=True)]
        rows_BL, mask_BL = padded(before, length=history_length)
        target_B = torch.tensor([int(history[cut]) for history, cut in zip(chosen, cuts, strict=True)])
        users_BD = encoder(read_ID[rows_BL], mask_BL)
        among_N, place_B = _compared(target_B, num_items=len(items_ID), config=config, rng=rng)
        loss = F.cross_entropy(users_BD @ items_ID[among_N].T * (sharpness.exp() / spread), place_B)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    encoder.requires_grad_(False)  # torch's own


def _compared(
    target_B: Tensor, *, num_items: int, config: LearnedConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the items to compare with and where the targets are among them: all items, or a sample with them."""
    if num_items <= config.compared:
        return torch.arange(num_items), target_B
    drawn = torch.from_numpy(rng.integers(0, num_items, config.compared))
    among_N, places = torch.unique(torch.cat([target_B, drawn]), return_inverse=True)
    return among_N, places[: len(target_B)]
