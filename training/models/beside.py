"""A content model and a linear model of what follows what, side by side: one vector, one query, scores added.

The network knows what items are like, also new ones; the linear model (SLIT, `training.factors.transitions`) knows
which items followed which. Both are made apart, and `gain` says what the second counts for.

Legend: `B` batch, `I` items of the catalogue, `L` history length, `P` parts of the network, `S` state width, `D` width
of the network's vectors, `R` directions of the linear model, `H` = D + R.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.content import ContentModel
from training.models.servable import Retriever

TRANSITIONS = "transitions"
"""The part that holds what is known of an item's neighbours in time: its row, then its vector."""


class Beside(Retriever):
    """The network's item vectors and queries, lengthened by those of the linear model.

    An item that is new has no transitions: it stands on its content alone.
    """

    states_I1S: Tensor
    trained_I: Tensor

    def __init__(
        self,
        network: ContentModel,
        linear: nn.Module,
        rows_IR: Tensor,
        items_IR: Tensor,
        *,
        trained_I: Tensor,
        gain: float,
    ) -> None:
        """Put both together.

        Args:
            network: Trained; its history rows are item vectors.
            linear: From rows `[B, L, R]` and a mask `[B, L]` to the sum of rows `[B, R]` that SLIT predicts from.
            rows_IR: What an item says where it is in a history.
            items_IR: What it is found by.
            trained_I: Which items are known; the others' numbers are left out.
            gain: Of the linear model's scores.
        """
        width = max(network.state_dim, 2 * rows_IR.shape[1])
        super().__init__(
            network.modalities,
            dim=network.dim + rows_IR.shape[1],
            state_dim=width,
            history_length=network.history_length,
            num_queries=network.num_queries,
            extra_parts=[*network.extra_parts, TRANSITIONS],
            history_dim=network.dim + rows_IR.shape[1],
        )
        self.network, self.linear = network, linear
        self.num_directions = rows_IR.shape[1]
        states_IS = torch.cat([rows_IR * gain, items_IR], dim=-1) * trained_I[:, None]
        self.register_buffer("states_I1S", F.pad(states_IS, (0, width - states_IS.shape[1])).unsqueeze(1))
        self.register_buffer("trained_I", trained_I, persistent=False)

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on (see `ContentModel`)."""
        self.network.absorb(maps)
        self.modalities = self.network.modalities

    def table(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the items that have transitions, and their states `[X, S]`."""
        (rows_X,) = torch.nonzero(self.trained_I, as_tuple=True)
        return rows_X, self.states_I1S[rows_X, 0]

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return states `[B, P + 1, S]`: the network's, and no transitions."""
        return self._with(self.network.project(features, presence_BM), None)

    def parts_of(
        self,
        features: Sequence[Tensor],
        presence_BM: Tensor,
        rows_B: Tensor | None,
        *,
        chance: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return states `[B, P + 1, S]` and presence `[B, P + 1]` of items of the catalogue."""
        states_BPS, presence_BP = self.network.parts_of(features, presence_BM, rows_B, chance=chance)
        own_B1S = self.states_I1S if rows_B is None else self.states_I1S[rows_B]
        return self._with(states_BPS, own_B1S), F.pad(presence_BP, (0, 1), value=True)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return `[..., H]`: the network's vector, then the linear model's."""
        inner_PS, _, item_R = self._cut(states_PS, presence_P)
        return torch.cat([self.network.fuse(inner_PS, presence_P[..., :-1]), item_R], dim=-1)

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return `[..., H]`: the network's vector, then the linear model's row."""
        inner_PS, row_R, _ = self._cut(states_PS, presence_P)
        return torch.cat([self.network.fuse(inner_PS, presence_P[..., :-1]), row_R], dim=-1)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return `[..., P + 1, H]`: the network's split, and the linear model's vector as the last part's."""
        inner_PS, _, item_R = self._cut(states_PS, presence_P)
        return self._split(inner_PS, presence_P, item_R)

    def history_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        """Return the same of the history row."""
        inner_PS, row_R, _ = self._cut(states_PS, presence_P)
        return self._split(inner_PS, presence_P, row_R)

    def encode_users(self, rows_BLH: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:
        """Return queries `[B, Q, H]`: the network's, each with the linear model's behind it."""
        inner_BLD, linear_BLR = rows_BLH[..., : self.network.dim], rows_BLH[..., self.network.dim :]
        queries_BQD = self.network.encode_users(inner_BLD, self.has_content(inner_BLD, mask_BL), ages_BL)
        return self.joined(queries_BQD, self.linear(linear_BLR, mask_BL))

    def has_content(self, inner_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return which past items `[B, L]` the network sees: one without content is none, as where it is alone."""
        return mask_BL & (inner_BLD != 0).any(dim=-1)

    def joined(self, queries_BQD: Tensor, linear_BR: Tensor) -> Tensor:
        """Return the network's queries, each with the linear model's behind it `[B, Q, H]`."""
        return torch.cat([queries_BQD, linear_BR.unsqueeze(1).expand(-1, queries_BQD.shape[1], -1)], dim=-1)

    def _cut(self, states_PS: Tensor, presence_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the network's states `[..., P, S of the network]`, the linear model's row and its item `[..., R]`."""
        inner_PS = states_PS[..., :-1, : self.network.state_dim]
        own_S = states_PS[..., -1, :] * presence_P[..., -1:].to(states_PS.dtype)
        return inner_PS, own_S[..., : self.num_directions], own_S[..., self.num_directions : 2 * self.num_directions]

    def _split(self, inner_PS: Tensor, presence_P: Tensor, own_R: Tensor) -> Tensor:
        parts_PD = self.network.modality_parts(inner_PS, presence_P[..., :-1])
        wide_PH = F.pad(parts_PD, (0, self.num_directions))
        return torch.cat([wide_PH, F.pad(own_R, (self.network.dim, 0)).unsqueeze(-2)], dim=-2)

    def _with(self, states_BPS: Tensor, own_B1S: Tensor | None) -> Tensor:
        wide_BPS = F.pad(states_BPS, (0, self.state_dim - states_BPS.shape[-1]))
        return torch.cat([wide_BPS, torch.zeros_like(wide_BPS[:, :1]) if own_B1S is None else own_B1S], dim=1)
