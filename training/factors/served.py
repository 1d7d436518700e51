"""An id-based model as it is served: items as sums of parts, users from their histories, no user id.

Parts are the modalities, then `id` (where items have ids) and `bias` (where there is one). Items that the model was
trained on bring the learned parts from the bundle's warm table; for all others they are predicted from content.

Legend: `B` items or users, `L` history length, `M` modalities, `P` parts, `F` learned numbers of an item, `D` width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from api_schemas.manifest import Modality
from training.blocks import ModalityProjector
from training.factors.encoders import MeanEncoder
from training.factors.imputers import Imputer
from training.models import FactorModel, ServableModel


class ServedFactors(ServableModel):
    """The graphs of an id-based model. State and part are the same: the vector that a part adds to the item."""

    fixed_D: Tensor

    def __init__(
        self,
        model: FactorModel,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer | None,
        users: MeanEncoder,
    ) -> None:
        has_bias = model.bias_C is not None or model.item_bias_I is not None
        extra = [name for name, there in (("id", model.ids_IF is not None), ("bias", has_bias)) if there]
        super().__init__(
            modalities,
            dim=model.dim,
            state_dim=model.dim,
            history_length=history_length,
            num_queries=1,
            extra_parts=extra,
        )
        self.ids_dim = model.ids_dim
        self.has_item_bias = model.item_bias_I is not None
        widths = [modality.dim for modality in modalities]
        self.projector = ModalityProjector(widths, state_dim=model.dim)
        fixed_D = torch.zeros(model.dim)
        content = slice(model.ids_dim, model.ids_dim + model.content_dim)
        start = 0
        for m, width in enumerate(widths):
            columns, start = slice(start, start + width), start + width
            weight_DR = torch.zeros(model.dim, width)
            if model.weight_CR is not None:
                weight_DR[content] = model.weight_CR.detach()[:, columns] * model.mask_R[columns]
            if model.content_bias_R is not None:
                weight_DR[-1] = model.content_bias_R.detach()[columns] * model.mask_R[columns]
            self.projector.assign(m, weight_SD=weight_DR, bias_S=torch.zeros(model.dim))
        if model.bias_C is not None:
            fixed_D[content] = model.bias_C.detach()
        self.imputer = imputer
        self.register_buffer("fixed_D", fixed_D)
        self.users = users

    @property
    def user_map(self) -> Tensor | None:
        """Return the fold-in map of the mean; None where users are more than that."""
        return self.users.mean_map

    @property
    def warm_parts(self) -> list[str]:
        """Return the extra parts that are learned for each item."""
        return [name for name in self.extra_parts if name == "id" or self.has_item_bias]

    def extra_states(self, learned_BF: Tensor | None, *, num_items: int) -> list[Tensor]:
        """Return the states `[B, D]` of the extra parts, of ids and item bias side by side `[B, F]`."""
        states = []
        for name in self.extra_parts:
            state_BD = self.fixed_D.new_zeros(num_items, self.dim)
            if name == "id":
                assert learned_BF is not None
                state_BD = torch.cat([learned_BF[:, : self.ids_dim], state_BD[:, self.ids_dim :]], dim=-1)
            else:
                state_BD = state_BD + self.fixed_D
                if self.has_item_bias:
                    assert learned_BF is not None
                    state_BD = torch.cat([state_BD[:, :-1], learned_BF[:, -1:]], dim=-1)
            states.append(state_BD)
        return states

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on, where conditioned ones were taken so far."""
        self.projector.absorb(maps)
        if self.imputer is not None:
            self.imputer.absorb(maps)
        self.modalities = tuple(
            Modality(name=modality.name, dim=len(mean_D))
            for modality, (mean_D, _) in zip(self.modalities, maps, strict=True)
        )

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, D]`, the extra ones predicted from content: of an item without any, the average."""
        states_BMD = self.projector(features, presence_BM)
        learned_BF = None if self.imputer is None else self.imputer(features, presence_BM)
        extra = [one.unsqueeze(1) for one in self.extra_states(learned_BF, num_items=states_BMD.shape[0])]
        return torch.cat([states_BMD, *extra], dim=1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the sum of the parts that are there."""
        return self.modality_parts(states_PS, presence_P).sum(dim=-2)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the states that are there: they are the parts."""
        return states_PS * presence_P.unsqueeze(-1).to(states_PS.dtype)

    def encode_users(self, items_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what the history gives `[B, 1, D]`; of no history, the mean user."""
        queries_BD: Tensor = self.users(items_BLD, mask_BL)
        return queries_BD.unsqueeze(1)
