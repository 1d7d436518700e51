"""MacridVAE as it is served. Part `id` is all of an item; content only predicts it, for items that are new.

Legend: `B` items, `M` modalities, `P` parts, `Q` concepts, `F` width of items, `H` hidden width, `S` = F + H + 1 state
width, `D` = F + Q width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from api_schemas.manifest import Modality
from training.factors.concept_encoder import beside
from training.factors.encoders import HistoryEncoder
from training.factors.imputers import Imputer
from training.factors.served import RetrieverById
from training.models import IdModel, MacridVae
from training.models.macridvae import unit


class ServedConcepts(RetrieverById):
    """The graphs of MacridVAE.

    A state is the item, its row of the first layer, and what is added to log c. The item is brought to length 1 and c
    is made of it in the graph, so what is predicted of a new item is an item, whatever its length. The last number
    makes new items more or less likely for everybody alike; of trained items it is 0.
    """

    is_id_P1: Tensor

    def __init__(
        self,
        model: MacridVae,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer,
        users: HistoryEncoder,
    ) -> None:
        super().__init__(
            modalities,
            dim=model.dim,
            state_dim=model.learned().shape[1],
            history_length=history_length,
            num_queries=model.num_queries,
            extra_parts=["id"],
            history_dim=model.first_IH.shape[1] + model.num_queries,
            scorer=model.scorer,
        )
        self.concepts = model.concepts
        self.imputer, self.users = imputer, users
        self._widths = [model.ids_IF.shape[1], model.first_IH.shape[1], 1]
        # A parameter, as the tracer of gradients takes no buffers.
        is_id_P1 = torch.tensor([[0.0]] * len(modalities) + [[1.0]])
        self.is_id_P1 = nn.Parameter(is_id_P1, requires_grad=False)

    @property
    def warm_parts(self) -> list[str]:
        """Return `id`."""
        return list(self.extra_parts)

    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Return what is learned of the catalogue's items, whatever their content."""
        return self.warm_states(model.learned())

    def warm_states(self, learned_BF: Tensor) -> Tensor:
        """Return the states `[B, 1, S]` of items with these learned numbers."""
        return learned_BF.unsqueeze(1)

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, S]`: `id` predicted from content, and nothing of the modalities themselves."""
        assert self.imputer is not None
        learned_BS: Tensor = self.imputer(features, presence_BM)
        return learned_BS.unsqueeze(1) * self.is_id_P1

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the item and log c, and nothing without `id`."""
        unit_F, _, added_1 = self._pieces(states_PS)
        vector_D = torch.cat([unit_F, self.concepts.log_shares(unit_F) + added_1], dim=-1)
        return vector_D * presence_P[..., -1:].to(vector_D.dtype)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return all of the vector as `id`."""
        return self.fuse(states_PS, presence_P).unsqueeze(-2) * self.is_id_P1

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the first layer's row and c, and nothing without `id`."""
        unit_F, first_H, _ = self._pieces(states_PS)
        row_H = beside(first_H, self.concepts.log_shares(unit_F).exp())
        return row_H * presence_P[..., -1:].to(row_H.dtype)

    def history_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return all of the row as `id`."""
        return self.history_rows(states_PS, presence_P).unsqueeze(-2) * self.is_id_P1

    def exact_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor | None:
        """Return the rows that the encoder reads `[..., H + Q]`."""
        return self.history_rows(states_PS, presence_P)

    def _pieces(self, states_PS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the state of `id` in its pieces: the item at length 1, its row, what is added."""
        # A sum and a split, as the derivatives of picking and slicing would fix the batch when traced (torch 2.13).
        state_S = (states_PS * self.is_id_P1).sum(dim=-2)
        ids_F, first_H, added_1 = torch.split(state_S, self._widths, dim=-1)
        return unit(ids_F), first_H, added_1
