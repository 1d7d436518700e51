"""A ranker as it is served: items as candidates, users as queries, and the network that scores the two.

Legend: `B` items or users, `M` modalities, `P` = M + 1 parts (the modalities, then `id`), `F` learned numbers of an
item, `S` state width, `D` width of a candidate, `H` history row, `Q` width of a query, `N` items.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from api_schemas.manifest import Modality
from training.blocks import ModalityProjector
from training.factors.encoders import HistoryEncoder
from training.factors.imputers import Imputer
from training.factors.served import ServedById
from training.models import IdModel, RankerModel


class ServedRanker(ServedById):
    """The graphs of a ranker.

    What a modality is to the ranker is computed from content, for trained items, too; `id` is learned, and predicted
    from content for items that are new.
    """

    def __init__(
        self,
        model: RankerModel,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer,
        users: HistoryEncoder,
    ) -> None:
        ranker = model.ranker
        super().__init__(
            modalities,
            dim=ranker.dim,
            state_dim=ranker.state_dim,
            history_length=history_length,
            num_queries=1,
            extra_parts=["id"],
            history_dim=ranker.row_dim,
            query_dim=ranker.query_dim,
            scorer=model.scorer,
        )
        self.ranker, self.imputer, self.users = ranker, imputer, users
        self.projector = ModalityProjector([modality.dim for modality in modalities], state_dim=ranker.state_dim)
        for m, modality in enumerate(modalities):
            is_used = m in model.columns
            weight_SR = model.content_weight(m) if is_used else torch.zeros(ranker.state_dim, modality.dim)
            self.projector.assign(m, weight_SD=weight_SR, bias_S=torch.zeros(ranker.state_dim))

    @property
    def warm_parts(self) -> list[str]:
        """Return `id`."""
        return list(self.extra_parts)

    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Return what is learned of the catalogue's items, whatever their content."""
        return self.warm_states(model.learned())

    def warm_states(self, learned_BF: Tensor) -> Tensor:
        """Return the states `[B, 1, S]` of items with these learned numbers."""
        return self.ranker.id_state(learned_BF).unsqueeze(1)

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on, where conditioned ones were taken so far."""
        self.projector.absorb(maps)
        super().absorb(maps)

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, S]`, `id` predicted from content: of an item without any, the average."""
        assert self.imputer is not None
        states_BMS = self.projector(features, presence_BM)
        return torch.cat([states_BMS, self.warm_states(self.imputer(features, presence_BM))], dim=1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the candidate `[..., D]` that the parts that are there make."""
        return self.ranker.fuse(states_PS, presence_P)

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return what users are read from `[..., H]`."""
        return self.ranker.rows(states_PS, presence_P)

    def exact_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor | None:
        """Return the rows that the encoder reads `[..., H]`."""
        return self.history_rows(states_PS, presence_P)

    def score(self, queries_BQD: Tensor, items_ND: Tensor) -> Tensor:
        """Return the scores `[B, N]`."""
        return self.ranker.over_catalogue(queries_BQD, items_ND)
