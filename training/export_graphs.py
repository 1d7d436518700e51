"""What the exported graphs compute: a content model cut where the service needs it, and its gradients written out.

Every graph guards itself: whatever lies in an absent modality or in padding (NaN included) changes nothing, and an item
without any modality is no item. Eval mode, float32, free batch, fixed history length and modalities.

Legend: `B` batch, `L` history length, `M` modalities, `D_m` raw width, `S` state width, `D` vector width, `Q` queries,
`K` candidates, `J` = 2M directions.
"""

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from training.models import ContentModel


class ItemEncoder(nn.Module):
    """Raw vectors by modality -> candidate vector, history row, modality states."""

    def __init__(self, model: ContentModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidate `[B, D]`, history `[B, D]`, states `[B, M, S]`.

        Inputs are M raw tensors `[B, D_m]`, then presence `[B, M]`.
        """
        *raw, presence_BM = inputs
        features = [_kept(raw_BD, presence_BM[:, m, None]) for m, raw_BD in enumerate(raw)]
        states_BMS = self.model.project(features, presence_BM)
        items_BD = _items(self.model, states_BMS, presence_BM)
        return items_BD, items_BD.clone(), states_BMS


class StateEncoder(nn.Module):
    """Modality states -> candidate vector, history row.

    With `UserEncoder` it answers every "and without this modality?" without raw vectors and without gradients.
    """

    def __init__(self, model: ContentModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, states_BMS: Tensor, presence_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return candidate `[B, D]` and history `[B, D]`."""
        states_BMS = _kept(states_BMS, presence_BM[..., None])
        items_BD = _items(self.model, states_BMS, presence_BM)
        return items_BD, items_BD.clone()


class UserEncoder(nn.Module):
    """History rows -> queries; the learned default when there is no history."""

    def __init__(self, model: ContentModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, history_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return queries `[B, Q, D]`. A history row of zeros is an item without any modality, hence no item."""
        history_BLD = _kept(history_BLD, mask_BL[..., None])
        queries_BQD: Tensor = self.model.encode_users(history_BLD, mask_BL & (history_BLD != 0).any(dim=-1))
        return queries_BQD


class Explainer(nn.Module):
    """Demure's interest scores (its Eq. 7 and 8), gradient x input, and the exact split of the candidate's side.

    psi = max_q u_q . v is the score before any softmax, and the candidate's vector is a constant. The gradient at an
    item vector is taken once per candidate. The gradient at a modality state follows by the chain rule, and of it only
    two numbers per state are asked for, its mean and its product with the state. Both are directional derivatives of
    the item's vector and know nothing of the candidate, so 2M directions per history replace one backward pass through
    all modality states per candidate (20 candidates, L = 50, M = 4: half the time).
    """

    def __init__(self, model: ContentModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        states_BLMS: Tensor,
        presence_BLM: Tensor,
        mask_BL: Tensor,
        candidate_states_KMS: Tensor,
        candidate_presence_KM: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the seven outputs in the order of `training.export.EXPLAINER_OUTPUTS`."""
        presence_BLM = presence_BLM & mask_BL[..., None]
        states_BLMS = _kept(states_BLMS, presence_BLM[..., None])
        real_BL = presence_BLM.any(dim=-1)
        candidate_states_KMS = _kept(candidate_states_KMS, candidate_presence_KM[..., None])
        items_BLD = _items(self.model, states_BLMS, presence_BLM)
        candidate_KD = _items(self.model, candidate_states_KMS, candidate_presence_KM)
        queries_BQD, pull_back = vjp(lambda items: self.model.encode_users(items, real_BL), items_BLD)[:2]
        scores_BQK = queries_BQD @ candidate_KD.T
        # One forward pass, and a backward pass for each candidate: d psi / d u_q is v for the best query, else zero.
        is_best_BQK = (scores_BQK == scores_BQK.amax(dim=1, keepdim=True)).to(scores_BQK.dtype)
        is_best_BQK = is_best_BQK / is_best_BQK.sum(dim=1, keepdim=True)
        cotangent_KBQD = torch.einsum("bqk,kd->kbqd", is_best_BQK, candidate_KD)
        gradient_KBLD = vmap(lambda cotangent: pull_back(cotangent)[0])(cotangent_KBQD)
        gradient_BKLD = _kept(gradient_KBLD.transpose(0, 1), real_BL[:, None, :, None])
        directions_JBLD = self._directions(items_BLD, states_BLMS, presence_BLM)
        derivatives_BKLJ = torch.einsum("bkld,jbld->bklj", gradient_BKLD, directions_JBLD)
        derivatives_BKLJ = _kept(derivatives_BKLJ, torch.cat([presence_BLM, presence_BLM], dim=-1)[:, None])
        num_modalities = states_BLMS.shape[2]

        parts_KMD = _parts(self.model, candidate_states_KMS, candidate_presence_KM)
        return (
            scores_BQK.amax(dim=1),
            gradient_BKLD.mean(dim=-1),
            derivatives_BKLJ[..., :num_modalities],
            (gradient_BKLD * items_BLD[:, None]).sum(dim=-1),
            derivatives_BKLJ[..., num_modalities:],
            torch.einsum("bqk,bqd,kmd->bkm", is_best_BQK, queries_BQD, parts_KMD),
            queries_BQD,
        )

    def _directions(self, items_BLD: Tensor, states_BLMS: Tensor, presence_BLM: Tensor) -> Tensor:
        """Return how item vectors move `[J, B, L, D]` along the mean of each state, then along each state itself.

        A derivative along a direction is the transpose of the backward pass, that is, its own backward pass:
        forward-mode differentiation would fix the batch when traced (torch 2.13).
        """
        num_modalities, state_dim = states_BLMS.shape[2:]
        one_MM1 = torch.eye(num_modalities, dtype=states_BLMS.dtype)[:, None, None, :, None]
        tangents_JBLMS = torch.cat([torch.ones_like(states_BLMS) / state_dim * one_MM1, states_BLMS * one_MM1])

        def pull_back(cotangent_BLD: Tensor) -> Tensor:
            backward = vjp(lambda states: _items(self.model, states, presence_BLM), states_BLMS)[1]
            pulled_BLMS: Tensor = backward(cotangent_BLD)[0]
            return pulled_BLMS

        push_forward = vjp(pull_back, torch.zeros_like(items_BLD))[1]
        moved_JBLD: Tensor = vmap(lambda tangent: push_forward(tangent)[0])(tangents_JBLMS)
        return moved_JBLD


def _kept(values: Tensor, keep: Tensor) -> Tensor:
    """Return the values where `keep` holds and zero elsewhere, even where the value is NaN."""
    return torch.where(keep, values, torch.zeros((), dtype=values.dtype))


def _items(model: ContentModel, states_MS: Tensor, presence_M: Tensor) -> Tensor:
    return _kept(model.fuse(states_MS, presence_M), presence_M.any(dim=-1, keepdim=True))


def _parts(model: ContentModel, states_MS: Tensor, presence_M: Tensor) -> Tensor:
    return _kept(model.modality_parts(states_MS, presence_M), presence_M[..., None])
