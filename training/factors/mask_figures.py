"""What InvRL's mask lets through, in figures: its values, and what it takes from the scores.

The second is measured in the pretrained model, which reads all content. In the last model it would say nothing: where
the mask is 0 its projection has learned nothing, and elsewhere it has grown by what the mask has shrunk.

Legend: `U` users, `I` items, `R` width of all modalities together, `C` content's piece of a vector.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.factors.data import FactorData
from training.factors.fit import loaded
from training.factors.masking import summary
from training.factors.plan import Plan
from training.factors.stages import Carry
from training.models import FactorModel

_SAMPLE = 1000
"""Users, and items, at most: every pair of them is looked at."""


def mask_figures(plan: Plan, carry: Carry, data: FactorData, *, seed: int) -> list[dict[str, float]]:
    """Return the figures of `api_schemas.manifest.MaskFigures` by modality, for what the stages handed on."""
    pretrained, mask_R = loaded(plan.factor_model(), carry, prefix="pretrained"), carry["mask_R"]
    values = summary(mask_R, data.widths)
    effects = contributions(pretrained, mask_R, data, seed=seed)
    return [{**value, **effect} for value, effect in zip(values, effects, strict=True)]


@torch.no_grad()
def contributions(model: FactorModel, mask_R: Tensor, data: FactorData, *, seed: int) -> list[dict[str, float]]:
    """Return by modality the mean size of its contribution to a score with the mask, without it, and of the difference.

    A contribution is <p_u, W_m (mask * c_i)>, whose sign says for or against; sizes are means over pairs of users and
    of items that have the modality, drawn at random. Not over what is recommended: lists are made with the mask, and
    would favour what it keeps.

    Args:
        model: Its users and W are used for both.
        mask_R: Of content, in the order of `data`.
        data: Where users and items are drawn from.
        seed: Of the draw.
    """
    assert model.weight_CR is not None
    rng = np.random.default_rng([seed, 19])
    users = torch.from_numpy(_some(rng, data.users))
    users_UC = model.users(users)[:, model.ids_dim : model.ids_dim + model.content_dim]
    read_UR = users_UC @ (model.weight_CR * model.mask_R)
    found = []
    stop = 0
    for m, width in enumerate(data.widths):
        start, stop = stop, stop + width
        having = torch.nonzero(data.presence_IM[:, m]).squeeze(-1).numpy()
        content_IR = data.content_IR[torch.from_numpy(_some(rng, having)), start:stop]
        whole_UI = read_UR[:, start:stop] @ content_IR.T
        kept_UI = (read_UR[:, start:stop] * mask_R[start:stop]) @ content_IR.T
        sizes = {"with_mask": kept_UI, "without_mask": whole_UI, "removed": whole_UI - kept_UI}
        found.append(
            {f"contribution_{name}": float(one.abs().sum() / max(one.numel(), 1)) for name, one in sizes.items()}
        )
    return found


def _some(rng: np.random.Generator, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rng.permutation(rows)[:_SAMPLE]
