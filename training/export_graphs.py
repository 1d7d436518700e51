"""What the exported graphs compute: a model cut where the service needs it; `training.explainers` has its gradients.

Every graph guards itself: whatever lies in an absent part or in padding (NaN included) changes nothing, and an item
without any part is no item. Eval mode, float32, free batch, fixed history length and parts.

Legend: `B` batch, `L` history length, `M` modalities, `P` parts of an item (the modalities first), `D_m` raw width, `S`
state width, `D` vector width, `H` history row, `Q` queries.
"""

import torch
from torch import Tensor, nn

from training.models import ServableModel


class ItemEncoder(nn.Module):
    """Raw vectors by modality -> candidate vector, history row, states."""

    def __init__(self, model: ServableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidate `[B, D]`, history `[B, H]`, states `[B, P, S]`.

        Inputs are M raw tensors `[B, D_m]`, then presence `[B, M]`.
        """
        *raw, presence_BM = inputs
        features = [kept(raw_BD, presence_BM[:, m, None]) for m, raw_BD in enumerate(raw)]
        states_BPS = self.model.project(features, presence_BM)
        return *_encoded(self.model, states_BPS, self.model.part_presence(presence_BM)), states_BPS


class StateEncoder(nn.Module):
    """States -> candidate vector, history row.

    With `UserEncoder` it answers every "and without this part?" without raw vectors and without gradients.
    """

    def __init__(self, model: ServableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, states_BPS: Tensor, presence_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Return candidate `[B, D]` and history `[B, H]`."""
        return _encoded(self.model, kept(states_BPS, presence_BP[..., None]), presence_BP)


class UserEncoder(nn.Module):
    """History rows -> queries; the learned default when there is no history."""

    def __init__(self, model: ServableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, history_BLH: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:
        """Return queries `[B, Q, D]`. A history row of zeros is an item without any part, hence no item."""
        history_BLH = kept(history_BLH, mask_BL[..., None])
        real_BL = mask_BL & (history_BLH != 0).any(dim=-1)
        queries_BQD: Tensor = self.model.encode_users(history_BLH, real_BL, kept_ages(ages_BL, real_BL))
        return queries_BQD


def _encoded(model: ServableModel, states_PS: Tensor, presence_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidate and history row; where they are one, it is computed once."""
    items_D = items_of(model, states_PS, presence_P)
    return items_D, items_D.clone() if model.history_is_candidate else rows_of(model, states_PS, presence_P)


def kept(values: Tensor, keep: Tensor) -> Tensor:
    """Return the values where `keep` holds and zero elsewhere, even where the value is NaN."""
    return torch.where(keep, values, torch.zeros((), dtype=values.dtype))


def kept_ages(ages_BL: Tensor | None, keep_BL: Tensor) -> Tensor | None:
    """Return the same of ages, which most models do not read."""
    return None if ages_BL is None else kept(ages_BL, keep_BL)


def items_of(model: ServableModel, states_PS: Tensor, presence_P: Tensor) -> Tensor:
    """Return the vectors `[..., D]` of items with these parts: zero of one without any."""
    return kept(model.fuse(states_PS, presence_P), presence_P.any(dim=-1, keepdim=True))


def rows_of(model: ServableModel, states_PS: Tensor, presence_P: Tensor) -> Tensor:
    """Return their history rows `[..., H]`: zero of an item without any part."""
    return kept(model.history_rows(states_PS, presence_P), presence_P.any(dim=-1, keepdim=True))
