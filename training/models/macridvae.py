"""MacridVAE (Ma et al. 2019): a user is read from the history once for each of a few concepts that items belong to.

There is nothing that is learned of a user: whoever brings a history is read as the training users were.

Legend: `X` items asked for, `I` items, `B` users, `Q` concepts, `F` width of items, `H` hidden width, `D` = F + Q.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from api_schemas.manifest import Scorer
from training.models.id_model import IdModel
from training.settings import Settings

_LEAST = 1e-12
"""Squared lengths below are no length: nothing is divided by zero, and nothing flows back."""


class MacridVaeConfig(Settings):
    """What MacridVAE can be told."""

    has_exact_fold_in: ClassVar[bool] = True
    """Its own encoder; there is no other."""

    kind: Literal["macridvae"] = "macridvae"
    dim: int = Field(64, ge=1, le=1024, description="Width of items, and of what a user wants of a concept.")
    concepts: int = Field(3, ge=1, le=64, description="Concepts that items belong to; a user has a query for each.")
    hidden: int = Field(200, ge=1, le=4096, description="Width of the encoder's hidden layer.")
    history_length: int = Field(
        200, ge=1, le=500, description="L: live histories are cut to the last L items; training reads all."
    )
    tau: float = Field(0.1, gt=0, le=10, description="Temperature of concepts, and of scores.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of the history that a training step does not see.")
    prior_std: float = Field(0.075, gt=0, le=10, description="Deviation of the prior.")
    kl_weight: float = Field(0.2, ge=0, le=1000, description="beta, once it has risen.")
    kl_epochs: float = Field(20, ge=0, description="Epochs in which beta rises from 0.")
    init_std: float = Field(0.1, gt=0, le=10, description="Deviation of the normal law that items start from.")

    def build(self, *, num_items: int) -> "MacridVae":
        """Return a freshly initialised model of these items."""
        return MacridVae(self, num_items=num_items)


class Concepts(nn.Module):
    """What is learned for all items and users together: the concepts, and how a history is read for each."""

    def __init__(self, config: MacridVaeConfig) -> None:
        super().__init__()
        self.tau = config.tau
        self.cores_QF = nn.Parameter(torch.randn(config.concepts, config.dim))
        self.first_H = nn.Parameter(torch.zeros(config.hidden))
        self.mean_HF = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.hidden, config.dim)))
        self.mean_F = nn.Parameter(torch.randn(config.dim) * config.init_std)
        self.spread_HF = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.hidden, config.dim)))
        self.spread_F = nn.Parameter(torch.zeros(config.dim))

    @property
    def row_widths(self) -> list[int]:
        """Return H and Q: what a history row is made of."""
        return [len(self.first_H), len(self.cores_QF)]

    def log_shares(self, unit_XF: Tensor) -> Tensor:
        """Return log c `[..., Q]` of items of length 1: how much of each is each concept's."""
        return torch.log_softmax(unit_XF @ unit(self.cores_QF).T / self.tau, dim=-1)

    def items(self, unit_XF: Tensor) -> Tensor:
        """Return the vectors `[..., D]` of items of length 1: the item and log c side by side."""
        return torch.cat([unit_XF, self.log_shares(unit_XF)], dim=-1)

    def read(self, pooled_BQH: Tensor) -> tuple[Tensor, Tensor]:
        """Return, of the first layer's sum over a history, mean `[B, Q, F]` and log of variance over the prior's."""
        hidden_BQH = torch.tanh(pooled_BQH + self.first_H)
        return unit(hidden_BQH @ self.mean_HF + self.mean_F), hidden_BQH @ self.spread_HF + self.spread_F

    def queries(self, wanted_BQF: Tensor) -> Tensor:
        """Return the queries `[B, Q, D]` of users who want this of each concept.

        With `items`, log sum_q exp(query . item) is log sum_q c_q exp(cos(z_q, h) / tau).
        """
        wanted_BQF = unit(wanted_BQF)
        own_BQQ = torch.eye(len(self.cores_QF), dtype=wanted_BQF.dtype) + torch.zeros_like(wanted_BQF[..., :1])
        return torch.cat([wanted_BQF / self.tau, own_BQQ], dim=-1)


class MacridVae(IdModel):
    """Items, their rows of the encoder's first layer, and the concepts."""

    scorer: ClassVar[Scorer] = "logsumexp"
    ids_IF: nn.Parameter

    def __init__(self, config: MacridVaeConfig, *, num_items: int) -> None:
        super().__init__()
        self.concepts = Concepts(config)
        self.ids_IF = nn.Parameter(torch.randn(num_items, config.dim) * config.init_std)
        self.first_IH = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_items, config.hidden)))
        """The row of an item in the encoder's first layer."""

    @property
    def dim(self) -> int:
        """Return D."""
        return self.ids_IF.shape[1] + self.num_queries

    @property
    def num_queries(self) -> int:
        """Return Q."""
        return len(self.concepts.cores_QF)

    def items(self, content_XR: Tensor, rows_X: Tensor | None = None) -> Tensor:  # noqa: ARG002  # it reads no content
        """Return the vectors of all items, or of some `[X, D]`."""
        ids_XF = self.ids_IF if rows_X is None else F.embedding(rows_X, self.ids_IF)
        return self.concepts.items(unit(ids_XF))

    def history_rows(self, content_IR: Tensor) -> Tensor:  # noqa: ARG002  # it reads no content
        """Return what the encoder reads of all items `[I, H + Q]`: the first layer's row, and c."""
        return torch.cat([self.first_IH, self.concepts.log_shares(unit(self.ids_IF)).exp()], dim=-1)

    def tables(self) -> list[nn.Parameter]:
        """Return both tables of items."""
        return [self.ids_IF, self.first_IH]

    def learned(self) -> Tensor:
        """Return item, row, and what is added to log c side by side `[I, F + H + 1]`: nothing to a trained item's."""
        return torch.cat([unit(self.ids_IF), self.first_IH, torch.zeros_like(self.ids_IF[:, :1])], dim=-1)

    def as_items(self, learned_F: Tensor) -> Tensor:
        """Return what the last of such numbers adds to vectors `[..., D]`; the others do not add up."""
        added_Q = learned_F[..., -1:].expand(*learned_F.shape[:-1], self.num_queries)
        return F.pad(added_Q, (self.ids_IF.shape[1], 0))

    def as_learned(self, vector_D: Tensor) -> Tensor:
        """Return numbers that add the vector's sum over concepts to log c: so all users' scores rise alike."""
        added_1 = vector_D[self.ids_IF.shape[1] :].sum(dim=0, keepdim=True)
        return F.pad(added_1, (self.ids_IF.shape[1] + self.first_IH.shape[1], 0))

    def own_squares(self, users_B: Tensor, times_B: Tensor, items_X: Tensor) -> Tensor:  # noqa: ARG002  # of no user
        """Return the summed squares of what is learned for some items."""
        times_I = items_X.bincount(minlength=len(self.ids_IF)).float()
        squares_I = self.ids_IF.square().sum(dim=-1) + self.first_IH.square().sum(dim=-1)
        return (squares_I * times_I).sum()


def unit(vectors_F: Tensor) -> Tensor:
    """Return vectors `[..., F]` at length 1; a zero stays one, and has a gradient."""
    return vectors_F * vectors_F.square().sum(dim=-1, keepdim=True).clamp_min(_LEAST).rsqrt()


def share_weights(shares_LQ: Tensor, squares_Q: Tensor) -> Tensor:
    """Return how much each item of a history counts in each concept: c over the length of the history's c.

    Args:
        shares_LQ: c of the history's items, in any shape that `squares_Q` fits.
        squares_Q: Sum of their squares over the history.
    """
    return shares_LQ * squares_Q.clamp_min(_LEAST).rsqrt()
