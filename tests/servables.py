"""Small models that use what the graph contract offers beyond the families: rows of their own, sums over queries.

Legend: `B` batch, `L` history length, `P` parts of an item (the modalities, then `id`), `S` state width, `D` vector
width, `H` history row, `Q` queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from api_schemas.manifest import Modality
from training.models import Retriever

H, Q = 5, 3


class OwnRows(Retriever):
    """A state is what a part adds to the item's vector, then what it adds to its row in a history.

    A user is the sum of the rows over the root of their number, times A, plus a constant.
    """

    def __init__(self, modalities: Sequence[Modality], *, dim: int, history_length: int) -> None:
        super().__init__(
            modalities,
            dim=dim,
            state_dim=dim + H,
            history_length=history_length,
            num_queries=1,
            extra_parts=["id"],
            history_dim=H,
        )
        self.weights = nn.ParameterList([torch.randn(one.dim, dim + H) for one in modalities])
        self.to_id = nn.ParameterList([torch.randn(one.dim, dim + H) for one in modalities])
        self.map_HD = nn.Parameter(torch.randn(H, dim) / H)
        self.offset_D = nn.Parameter(0.2 * torch.randn(dim))
        self.default_query = nn.Parameter(torch.randn(1, dim))

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        kept = [x * presence_BM[:, m, None] for m, x in enumerate(features)]
        states = [x @ weight for x, weight in zip(kept, self.weights, strict=True)]
        imputed = [x @ weight for x, weight in zip(kept, self.to_id, strict=True)]
        return torch.stack([*states, sum(imputed[1:], imputed[0])], dim=1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        return self.modality_parts(states_PS, presence_P).sum(dim=-2)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        return states_PS[..., : self.dim] * presence_P.unsqueeze(-1)

    def history_rows(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        return self.history_parts(states_PS, presence_P).sum(dim=-2)

    def history_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        return states_PS[..., self.dim :] * presence_P.unsqueeze(-1)

    @property
    def user_map(self) -> Tensor | None:
        return self.map_HD

    def history_weights(self, real_BL: Tensor) -> Tensor:
        return real_BL / real_BL.sum(dim=-1, keepdim=True).clamp_min(1).sqrt()

    def encode_users(self, rows_BLH: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:
        kept_BLH = torch.where(mask_BL.unsqueeze(-1), rows_BLH, torch.zeros((), dtype=rows_BLH.dtype))
        pooled_BH = (self.history_weights(mask_BL).unsqueeze(-1) * kept_BLH).sum(dim=1)
        query_BD = self.query(pooled_BH)
        return torch.where(mask_BL.any(dim=-1, keepdim=True), query_BD, self.default_query).unsqueeze(1)

    def query(self, pooled_BH: Tensor) -> Tensor:
        return pooled_BH @ self.map_HD + self.offset_D


class BentRows(OwnRows):
    """The same with a bend, so that its explanations are differentiated."""

    user_map = None

    def query(self, pooled_BH: Tensor) -> Tensor:
        return torch.tanh(pooled_BH @ self.map_HD) + self.offset_D


class SummedQueries(Retriever):
    """Three queries of a user, and a score that all of them add to. Parts are the modalities."""

    def __init__(self, modalities: Sequence[Modality], *, dim: int, history_length: int) -> None:
        super().__init__(
            modalities, dim=dim, state_dim=dim, history_length=history_length, num_queries=Q, scorer="logsumexp"
        )
        self.weights = nn.ParameterList([torch.randn(one.dim, dim) for one in modalities])
        self.map_QDD = nn.Parameter(torch.randn(Q, dim, dim) / dim)
        self.default_query = nn.Parameter(torch.randn(Q, dim))

    def project(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        states = [x @ weight for x, weight in zip(features, self.weights, strict=True)]
        return torch.stack(states, dim=1) * presence_BM.unsqueeze(-1)

    def fuse(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        return self.modality_parts(states_PS, presence_P).sum(dim=-2)

    def modality_parts(self, states_PS: Tensor, presence_P: Tensor) -> Tensor:
        return states_PS * presence_P.unsqueeze(-1)

    def encode_users(self, rows_BLH: Tensor, mask_BL: Tensor, ages_BL: Tensor | None = None) -> Tensor:
        kept_BLH = torch.where(mask_BL.unsqueeze(-1), rows_BLH, torch.zeros((), dtype=rows_BLH.dtype))
        mean_BH = kept_BLH.sum(dim=1) / mask_BL.sum(dim=-1, keepdim=True).clamp_min(1)
        queries_BQD = torch.tanh(torch.einsum("bh,qhd->bqd", mean_BH, self.map_QDD))
        return torch.where(mask_BL.any(dim=-1)[:, None, None], queries_BQD, self.default_query)


OWN_ROWS = {"own-rows": OwnRows, "bent-rows": BentRows}
TOYS = {**OWN_ROWS, "summed": SummedQueries}


def toy_model(kind: str, modalities: Sequence[Modality], *, dim: int, history_length: int) -> Retriever:
    """Return one with random weights, always the same."""
    torch.manual_seed(0)
    return TOYS[kind](modalities, dim=dim, history_length=history_length)
