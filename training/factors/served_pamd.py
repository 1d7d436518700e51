"""PAMD as it is served: an item's own vector and what attention adds of its modalities, as parts that are summed.

Attention is held as it is for the item with all that it has. So an item is one vector, its score an exact sum of its
parts, and without a modality it loses what the modality has added; the others do not take its place.

Legend: `B` items, `M` modalities, `P` parts (the modalities, `id`, and `bias` where items have one), `D` width, `F`
what is learned for an item: its own vector and bias.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from api_schemas.manifest import Modality
from training.factors.encoders import HistoryEncoder
from training.factors.imputers import Imputer
from training.factors.served import RetrieverById
from training.models import IdModel, PamdModel
from training.models.pamd import fused


class ServedPamd(RetrieverById):
    """The graphs of PAMD: a part's state is the vector that it adds to the item."""

    def __init__(
        self,
        model: PamdModel,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer,
        users: HistoryEncoder,
    ) -> None:
        super().__init__(
            modalities,
            dim=model.dim,
            state_dim=model.dim,
            history_length=history_length,
            num_queries=1,
            extra_parts=["id", "bias"] if model.bias_dim else ["id"],
        )
        self.ids_dim = model.ids_dim
        self.content = copy.deepcopy(model.content)
        self.imputer = imputer
        self.users = users

    @property
    def warm_parts(self) -> list[str]:
        """Return all parts: an item's own vector decides how much its modalities count."""
        return list(self.part_names)

    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return the states of the catalogue, whose own vectors are learned."""
        return self._states(model.learned(), features, presence_BM)

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on, where conditioned ones were taken so far."""
        self.content.encoder.absorb(maps)
        super().absorb(maps)

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, D]` of new items, whose own vectors are predicted from content."""
        assert self.imputer is not None
        return self._states(self.imputer(features, presence_BM), features, presence_BM)

    def _states(self, learned_BF: Tensor, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        ids_BF, bias_BF = learned_BF.tensor_split([self.ids_dim], dim=-1)
        added_BMF = fused(ids_BF, self.content(features, presence_BM), presence_BM)
        vectors_BPF = torch.cat([added_BMF, ids_BF.unsqueeze(1)], dim=1)
        if len(self.extra_parts) == 1:
            return vectors_BPF
        bias_B1D = F.pad(bias_BF.unsqueeze(1), (self.ids_dim, 0))
        return torch.cat([F.pad(vectors_BPF, (0, 1)), bias_B1D], dim=1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the sum of the parts that are there (Eq. 13)."""
        return self.modality_parts(states_PS, presence_P).sum(dim=-2)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the states that are there: they are the parts."""
        return states_PS * presence_P.unsqueeze(-1).to(states_PS.dtype)
