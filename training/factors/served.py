"""An id-based model as it is served: items as sums of parts, users from their histories, no user id.

Parts are the modalities, then what the family adds: `id` (where items have ids) and `bias` (where there is one). Items
that the model was trained on bring what they learned from the bundle's warm table; for all others it is predicted from
content.

Legend: `B` items or users, `L` history length, `M` modalities, `P` parts, `W` parts of the warm table, `F` learned
numbers of an item, `D` width, `S` state width.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from api_schemas.manifest import Modality
from training.blocks import ModalityProjector
from training.factors.encoders import HistoryEncoder
from training.factors.imputers import Imputer
from training.models import FactorModel, GraphModel, IdModel, Retriever, ServableModel


class ServedById(ServableModel):
    """What all id-based models have in common: a user encoder, and what predicts the learned numbers of new items."""

    users: HistoryEncoder
    imputer: Imputer | None

    @property
    @abstractmethod
    def warm_parts(self) -> list[str]:
        """Return the parts that are learned for each item."""

    @abstractmethod
    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return the states `[I, W, S]` of the warm parts of the whole catalogue, as the model has learned them.

        Args:
            model: What was trained.
            features: Content per modality `[I, R_m]`, for those whose learned numbers act on it.
            presence_BM: `[I, M]`.
        """

    def serve_users(self, encoder: HistoryEncoder) -> None:
        """Read users by this encoder from now on."""
        self.users = encoder

    def exact_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor | None:  # noqa: ARG002  # most have none
        """Return the rows that encoders of rows read `[..., H]`; None: the model has none."""
        return None

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on, where conditioned ones were taken so far."""
        if self.imputer is not None:
            self.imputer.absorb(maps)
        self.modalities = tuple(
            Modality(name=modality.name, dim=len(mean_D))
            for modality, (mean_D, _) in zip(self.modalities, maps, strict=True)
        )

    def encode_users(self, rows_BLH: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:  # noqa: ARG002  # none reads them
        """Return what the history gives `[B, Q, D]`; of no history, an average user."""
        return self.users.queries(rows_BLH, mask_BL)


class RetrieverById(ServedById, Retriever):
    """Those whose score is made of inner products."""

    @property
    def user_map(self) -> Tensor | None:
        """Return the fold-in map of the pooled history; None where users are more than that."""
        return self.users.pooled_map

    def history_weights(self, real_BL: Tensor) -> Tensor:
        """Return how much each item of a history counts, where that map holds `[B, L]`."""
        return self.users.weights_of(real_BL)


class ServedFactors(RetrieverById):
    """The graphs of a factor model. State and part are the same: the vector that a part adds to the item.

    What content adds is computed from content, for trained items, too.
    """

    fixed_D: Tensor

    def __init__(
        self,
        model: FactorModel,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer | None,
        users: HistoryEncoder,
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
    def warm_parts(self) -> list[str]:
        """Return the extra parts that are learned for each item."""
        return [name for name in self.extra_parts if name == "id" or self.has_item_bias]

    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Return what is learned of the catalogue's items, whatever their content."""
        return self.warm_states(model.learned())

    def warm_states(self, learned_BF: Tensor) -> Tensor:
        """Return the states `[B, W, S]` of the learned extra parts."""
        states = self.extra_states(learned_BF, num_items=len(learned_BF))
        kept = [state for name, state in zip(self.extra_parts, states, strict=True) if name in self.warm_parts]
        return torch.stack(kept, dim=1)

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
        super().absorb(maps)

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


class ServedTables(RetrieverById):
    """The graphs of a graph model: all parts of an item are learned, as its neighbours are in them.

    A part's state is the vector that it adds to the item. Where users are read by the exact fold-in, what the part adds
    to the item's row in a history follows it.
    """

    def __init__(
        self,
        model: GraphModel,
        modalities: Sequence[Modality],
        *,
        history_length: int,
        imputer: Imputer,
        users: HistoryEncoder,
    ) -> None:
        super().__init__(
            modalities,
            dim=model.dim,
            state_dim=model.learned().shape[1] // model.num_parts,
            history_length=history_length,
            num_queries=1,
            extra_parts=model.extra_parts,
        )
        self._num_modalities = model.num_modalities
        self.imputer = imputer
        self.serve_users(users)

    def serve_users(self, encoder: HistoryEncoder) -> None:
        """Read users by this encoder from now on, from the rows that it reads."""
        super().serve_users(encoder)
        self.history_dim = self.dim
        self.history_is_candidate = not encoder.reads_history_rows

    def exact_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor | None:
        """Return the rows that the exact fold-in reads `[..., D]`; None: the model has none."""
        if self.state_dim == self.dim:
            return None
        return _kept(states_PS[..., self.dim :], presence_P).sum(dim=-2)

    def narrow(self) -> None:
        """Forget the second half of the states, which no user is read from."""
        if self.history_is_candidate:
            self.state_dim = self.dim

    @property
    def warm_parts(self) -> list[str]:
        """Return all parts."""
        return list(self.part_names)

    def known_states(self, model: IdModel, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:  # noqa: ARG002
        """Return what is learned of the catalogue's items, whatever their content."""
        return self.warm_states(model.learned())

    def warm_states(self, learned_BF: Tensor) -> Tensor:
        """Return the states `[B, P, S]` of items with these learned numbers."""
        # shape[0], not len(): that would fix the size of the batch in the exported graph.
        return learned_BF.view(learned_BF.shape[0], len(self.part_names), -1)[..., : self.state_dim]

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P, S]`, all predicted from content.

        What is predicted of a modality that the item lacks counts as `id`: it comes from the neighbours.
        """
        assert self.imputer is not None
        states_BPS = self.warm_states(self.imputer(features, presence_BM))
        modalities_BMS, id_B1S, others_BXS = states_BPS.tensor_split(
            [self._num_modalities, self._num_modalities + 1], dim=1
        )
        present_BM1 = presence_BM.unsqueeze(-1).to(states_BPS.dtype)
        id_B1S = id_B1S + (modalities_BMS * (1 - present_BM1)).sum(dim=1, keepdim=True)
        return torch.cat([modalities_BMS * present_BM1, id_B1S, others_BXS], dim=1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the sum of what the parts that are there add to the item."""
        return self.modality_parts(states_PS, presence_P).sum(dim=-2)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return what the parts that are there add to the item."""
        return _kept(states_PS[..., : self.dim], presence_P)

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the sum of what they add to its row."""
        return self.history_parts(states_PS, presence_P).sum(dim=-2)

    def history_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return what the parts that are there add to the item's row in a history."""
        if self.history_is_candidate:
            return self.modality_parts(states_PS, presence_P)
        return _kept(states_PS[..., self.dim :], presence_P)


def _kept(parts_PD: Tensor, presence_P: Tensor) -> Tensor:
    return parts_PD * presence_P.unsqueeze(-1).to(parts_PD.dtype)
