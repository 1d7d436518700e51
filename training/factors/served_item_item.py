"""EASE and item-kNN as they are served. Part `id` is all of an item; content only predicts it, for items that are new.

Legend: `B` items, `M` modalities, `P` parts, `D` width, `S` = 2D state width: the item's vector, then its row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from api_schemas.manifest import Modality
from training.factors.encoders import HistoryEncoder
from training.factors.imputers import Imputer
from training.factors.served import RetrieverById
from training.models import IdModel, ItemItem


class ServedItemItem(RetrieverById):
    """The graphs of an item-item model. Users are sums, so what each past item adds to a score is exact."""

    def __init__(
        self,
        model: ItemItem,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer,
        users: HistoryEncoder,
    ) -> None:
        super().__init__(
            modalities,
            dim=model.dim,
            state_dim=2 * model.dim,
            history_length=history_length,
            num_queries=1,
            extra_parts=["id"],
            history_dim=model.dim,
        )
        self.imputer, self.users = imputer, users

    @property
    def warm_parts(self) -> list[str]:
        """Return `id`."""
        return list(self.extra_parts)

    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Return what is known of the catalogue's items, whatever their content."""
        return model.learned().unsqueeze(1)

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, S]`: `id` predicted from content, and nothing of the modalities themselves."""
        assert self.imputer is not None
        id_B1S = self.imputer(features, presence_BM).unsqueeze(1)
        return torch.cat([torch.zeros_like(id_B1S).expand(-1, len(self.modalities), -1), id_B1S], dim=1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the vector, and nothing without `id`."""
        return self.modality_parts(states_PS, presence_P).sum(dim=-2)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the first half of each state."""
        return states_PS[..., : self.dim] * presence_P.unsqueeze(-1).to(states_PS.dtype)

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the row, and nothing without `id`."""
        return self.history_parts(states_PS, presence_P).sum(dim=-2)

    def history_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the second half of each state."""
        return states_PS[..., self.dim :] * presence_P.unsqueeze(-1).to(states_PS.dtype)

    def exact_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor | None:
        """Return the rows that users are the sum of `[..., D]`."""
        return self.history_rows(states_PS, presence_P)
