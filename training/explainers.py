"""The explainers that are exported: interest scores, gradients and exact shares of a score, written out.

They guard themselves as `training.export_graphs` does, in eval mode, float32, with free batch and candidates.

Legend: `B` batch, `L` history length, `P` parts of an item (the modalities first), `S` state width, `D` vector width,
`H` history row, `Q` queries, `K` candidates, `J` = 2P directions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp, vmap

from training.export_graphs import items_of, kept, kept_ages, rows_of
from training.models import Retriever, ServableModel, over_queries
from training.models.beside import Beside


class ExplainerGraph(nn.Module, ABC):
    """What every explainer is given, freed of what lies in absent parts and padding."""

    def __init__(self, model: Retriever) -> None:
        super().__init__()
        self.model = model

    def forward(  # noqa: PLR0917  # the tensors of a graph, in its order
        self,
        states_BLPS: Tensor,
        presence_BLP: Tensor,
        mask_BL: Tensor,
        candidate_states_KPS: Tensor,
        candidate_presence_KP: Tensor,
        ages_BL: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the seven outputs in the order of `training.export.EXPLAINER_OUTPUTS`."""
        presence_BLP = presence_BLP & mask_BL[..., None]
        states_BLPS = kept(states_BLPS, presence_BLP[..., None])
        candidate_states_KPS = kept(candidate_states_KPS, candidate_presence_KP[..., None])
        ages_BL = kept_ages(ages_BL, presence_BLP.any(dim=-1))
        return self.explained(states_BLPS, presence_BLP, candidate_states_KPS, candidate_presence_KP, ages_BL)

    @abstractmethod
    def explained(
        self,
        states_BLPS: Tensor,
        presence_BLP: Tensor,
        candidate_states_KPS: Tensor,
        candidate_presence_KP: Tensor,
        ages_BL: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the seven outputs of states, and ages, that are zero where nothing is."""


class Explainer(ExplainerGraph):
    """Demure's interest scores (its Eq. 7 and 8), gradient x input, and the exact split of the candidate's side.

    psi is the score before any softmax, max_q u_q . v or log sum_q exp(u_q . v), and the candidate's vector is a
    constant. The gradient at a history row is taken once per candidate. The gradient at a state follows by the chain
    rule, and of it only two numbers per state are asked for, its mean and its product with the state. Both are
    directional derivatives of the history row and know nothing of the candidate, so 2P directions per history replace
    one backward pass through all states per candidate (20 candidates, L = 50, M = 4: half the time).

    When something was done is no interest in it: ages are constants.
    """

    def explained(
        self,
        states_BLPS: Tensor,
        presence_BLP: Tensor,
        candidate_states_KPS: Tensor,
        candidate_presence_KP: Tensor,
        ages_BL: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the seven outputs of states, and ages, that are zero where nothing is."""
        rows_BLH = rows_of(self.model, states_BLPS, presence_BLP)
        # An item with a part has a vector, but its row may be nothing: say that of an item without any neighbour.
        real_BL = presence_BLP.any(dim=-1) if self.model.history_is_candidate else (rows_BLH != 0).any(dim=-1)
        candidate_KD = items_of(self.model, candidate_states_KPS, candidate_presence_KP)
        queries_BQD, pull_back = self._queries(rows_BLH, real_BL, ages_BL)
        products_BQK = queries_BQD @ candidate_KD.T
        weight_BQK = self._weights(products_BQK)
        # One forward pass, and a backward pass for each candidate: d psi / d u_q is the query's weight times v.
        cotangent_KBQD = torch.einsum("bqk,kd->kbqd", weight_BQK, candidate_KD)
        gradient_BKLH = kept(pull_back(cotangent_KBQD).transpose(0, 1), real_BL[:, None, :, None])
        directions_JBLH = self._directions(rows_BLH, states_BLPS, presence_BLP)
        derivatives_BKLJ = torch.einsum("bklh,jblh->bklj", gradient_BKLH, directions_JBLH)
        derivatives_BKLJ = kept(derivatives_BKLJ, torch.cat([presence_BLP, presence_BLP], dim=-1)[:, None])
        num_parts = states_BLPS.shape[2]

        parts_KPD = _parts(self.model, candidate_states_KPS, candidate_presence_KP)
        return (
            over_queries(products_BQK, dim=1, scorer=self.model.scorer),
            gradient_BKLH.mean(dim=-1),
            derivatives_BKLJ[..., :num_parts],
            (gradient_BKLH * rows_BLH[:, None]).sum(dim=-1),
            derivatives_BKLJ[..., num_parts:],
            torch.einsum("bqk,bqd,kpd->bkp", weight_BQK, queries_BQD, parts_KPD),
            queries_BQD,
        )

    def _weights(self, products_BQK: Tensor) -> Tensor:
        """Return d psi / d (u_q . v): 1 for the best query, or the softmax over queries."""
        if self.model.scorer == "logsumexp":
            return torch.softmax(products_BQK, dim=1)
        is_best_BQK = (products_BQK == products_BQK.amax(dim=1, keepdim=True)).to(products_BQK.dtype)
        return is_best_BQK / is_best_BQK.sum(dim=1, keepdim=True)

    def _queries(
        self, rows_BLH: Tensor, real_BL: Tensor, ages_BL: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return queries `[B, Q, D]`, and what takes derivatives at these `[K, B, Q, D]` to rows `[K, B, L, H]`."""
        return _encoded_users(self.model, rows_BLH, real_BL, ages_BL)

    def _directions(self, rows_BLH: Tensor, states_BLPS: Tensor, presence_BLP: Tensor) -> Tensor:
        """Return how history rows move `[J, B, L, H]` along the mean of each state, then along each state itself."""
        return _moved_rows(self.model, rows_BLH, states_BLPS, presence_BLP, mean_of=states_BLPS.shape[-1])


class BesideExplainer(Explainer):
    """The same of a network with a linear model beside it: each is differentiated by itself.

    A row is the network's, then the linear model's, and the last part's state begins with the row that it adds. So
    nothing wide goes through the network's derivatives, and the last part's directions need none.
    """

    model: Beside

    def _queries(
        self, rows_BLH: Tensor, real_BL: Tensor, ages_BL: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return queries, and what takes derivatives at these to rows; see `Explainer`."""
        network, width = self.model.network, self.model.network.dim
        inner_BLD, linear_BLR = rows_BLH[..., :width], rows_BLH[..., width:]
        has_content_BL = self.model.has_content(inner_BLD, real_BL)
        inner_BQD, inner_back = _encoded_users(network, inner_BLD, has_content_BL, ages_BL)
        linear_BR, linear_back = _pulled_back(lambda rows: self.model.linear(rows, real_BL), linear_BLR)

        def both(cotangent_KBQH: Tensor) -> Tensor:
            return torch.cat(
                [inner_back(cotangent_KBQH[..., :width]), linear_back(cotangent_KBQH[..., width:].sum(dim=2))], dim=-1
            )

        return self.model.joined(inner_BQD, linear_BR), both

    def _directions(self, rows_BLH: Tensor, states_BLPS: Tensor, presence_BLP: Tensor) -> Tensor:
        """Return how history rows move along the means of states and along states; see `Explainer`."""
        network, num_directions = self.model.network, self.model.num_directions
        inner_JBLD = _moved_rows(
            network,
            rows_BLH[..., : network.dim],
            states_BLPS[..., :-1, : network.state_dim],
            presence_BLP[..., :-1],
            mean_of=self.model.state_dim,
        )
        row_BLR = states_BLPS[..., -1, :num_directions]
        own_JBLR = torch.stack([torch.ones_like(row_BLR) / self.model.state_dim, row_BLR])
        means, along = F.pad(inner_JBLD, (0, num_directions)).chunk(2)
        own_mean, own = F.pad(own_JBLR, (network.dim, 0))
        return torch.cat([means, own_mean[None], along, own[None]])


def _encoded_users(
    model: ServableModel, rows_BLH: Tensor, real_BL: Tensor, ages_BL: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return _pulled_back(lambda rows: model.encode_users(rows, real_BL, ages_BL), rows_BLH)


def _pulled_back(function: Callable[[Tensor], Tensor], rows_BLH: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the function of the rows, and what takes derivatives at its values `[K, ...]` to rows `[K, B, L, H]`."""
    values, backward = vjp(function, rows_BLH)[:2]
    return values, vmap(lambda cotangent: backward(cotangent)[0])


def _moved_rows(
    model: ServableModel, rows_BLH: Tensor, states_BLPS: Tensor, presence_BLP: Tensor, *, mean_of: int
) -> Tensor:
    """Return how rows move `[J, B, L, H]` along the mean of each state, of so many numbers, then along each state.

    A derivative along a direction is the transpose of the backward pass, that is, its own backward pass:
    forward-mode differentiation would fix the batch when traced (torch 2.13).
    """
    one_PP1 = torch.eye(states_BLPS.shape[2], dtype=states_BLPS.dtype)[:, None, None, :, None]
    tangents_JBLPS = torch.cat([torch.ones_like(states_BLPS) / mean_of * one_PP1, states_BLPS * one_PP1])

    def pull_back(cotangent_BLH: Tensor) -> Tensor:
        backward = vjp(lambda states: rows_of(model, states, presence_BLP), states_BLPS)[1]
        pulled_BLPS: Tensor = backward(cotangent_BLH)[0]
        return pulled_BLPS

    push_forward = vjp(pull_back, torch.zeros_like(rows_BLH))[1]
    moved_JBLH: Tensor = vmap(lambda tangent: push_forward(tangent)[0])(tangents_JBLPS)
    return moved_JBLH


class AffineExplainer(ExplainerGraph):
    """What `Explainer` gives, for a model whose users are an affine map of the weighted sum of their history.

    The gradient of psi at a past item is w_l A v, whatever the others are: nothing has to be differentiated. As the row
    is linear in the states, so is its derivative along the mean of a state: the row of a state of ones over S.
    """

    def explained(
        self,
        states_BLPS: Tensor,
        presence_BLP: Tensor,
        candidate_states_KPS: Tensor,
        candidate_presence_KP: Tensor,
        ages_BL: Tensor | None,  # noqa: ARG002  # the weights are those of places
    ) -> tuple[Tensor, ...]:
        """Return the seven outputs of states that are zero where nothing is."""
        map_HD = self.model.user_map
        assert map_HD is not None, "graphs_of takes this explainer for models with a map only"
        rows_BLH = rows_of(self.model, states_BLPS, presence_BLP)
        real_BL = (rows_BLH != 0).any(dim=-1)  # as `UserEncoder` has it
        parts_KPD = _parts(self.model, candidate_states_KPS, candidate_presence_KP)
        candidate_KD = parts_KPD.sum(dim=1)
        queries_BQD = self.model.encode_users(rows_BLH, real_BL)
        weight_BL = self.model.history_weights(real_BL)
        pulled_KH = candidate_KD @ map_HD.T
        weight_BLP = weight_BL[..., None] * presence_BLP
        parts_BLPH = kept(self.model.history_parts(states_BLPS, presence_BLP), presence_BLP[..., None])
        ones_PS = torch.ones_like(candidate_states_KPS[0]) / candidate_states_KPS.shape[-1]
        moved_PH = self.model.history_parts(ones_PS, torch.ones_like(candidate_presence_KP[0]))
        return (
            (queries_BQD @ candidate_KD.T).amax(dim=1),
            weight_BL[:, None, :] * pulled_KH.mean(dim=-1)[None, :, None],
            weight_BLP[:, None] * (pulled_KH @ moved_PH.T)[None, :, None],
            torch.einsum("bl,blh,kh->bkl", weight_BL, rows_BLH, pulled_KH),
            torch.einsum("blp,blph,kh->bklp", weight_BLP, parts_BLPH, pulled_KH),
            torch.einsum("bqd,kpd->bkp", queries_BQD, parts_KPD),
            queries_BQD,
        )


def _parts(model: Retriever, states_PS: Tensor, presence_P: Tensor) -> Tensor:
    return kept(model.modality_parts(states_PS, presence_P), presence_P[..., None])
