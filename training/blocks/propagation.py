"""Messages over the graph of interactions: a sparse matrix that is constant, times dense tables that are learned.

The products run as bags of embeddings, the sums of table rows that torch has a fast kernel for, many
times as fast as its sparse tensors (`benchmarks/graph_training.py`). A product's gradient is the product with the
transposed matrix, which is laid out once, too.

Legend: `U` users, `I` items, `N` rows, `X` columns, `E` entries, `D` width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx

Normalisation = Literal["symmetric", "mean"]


class Nodes(NamedTuple):
    """A table of each side of the graph."""

    users_UD: Tensor
    items_ID: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """A constant matrix `[N, X]`, laid out by rows and by columns."""

    shape: tuple[int, int]
    columns_E: Tensor
    start_N1: Tensor
    weight_E: Tensor
    rows_E: Tensor
    start_X1: Tensor
    weight_by_column_E: Tensor

    @classmethod
    def of(cls, matrix: sp.sparray | sp.spmatrix) -> Self:
        """Lay out a SciPy matrix; entries of the same place are added."""
        by_row = sp.csr_matrix(matrix)
        by_row.sum_duplicates()
        by_column = by_row.tocsc()

        def numbers(values: NDArray[np.int32]) -> Tensor:
            return torch.from_numpy(values.astype(np.int64))

        return cls(
            (by_row.shape[0], by_row.shape[1]),
            numbers(by_row.indices),
            numbers(by_row.indptr),
            torch.from_numpy(by_row.data),
            numbers(by_column.indices),
            numbers(by_column.indptr),
            torch.from_numpy(by_column.data),
        )

    @property
    def transposed(self) -> "SparseMatrix":
        """Return the same numbers, read the other way."""
        return SparseMatrix(
            (self.shape[1], self.shape[0]),
            self.rows_E,
            self.start_X1,
            self.weight_by_column_E,
            self.columns_E,
            self.start_N1,
            self.weight_E,
        )

    def __matmul__(self, table_XD: Tensor) -> Tensor:
        """Return `[N, D]`, differentiable with respect to the table."""
        product_ND: Tensor = _Product.apply(self, table_XD)  # type: ignore[no-untyped-call]  # torch
        return product_ND

    def multiplied(self, table_XD: Tensor) -> Tensor:
        """Return the product, without gradients."""
        return F.embedding_bag(
            self.columns_E,
            table_XD,
            self.start_N1,
            mode="sum",
            per_sample_weights=self.weight_E.to(table_XD.dtype),
            include_last_offset=True,
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, matrix: SparseMatrix, table_XD: Tensor) -> Tensor:
        ctx.matrix = matrix  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        return matrix.multiplied(table_XD)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, Tensor]:
        matrix: SparseMatrix = ctx.matrix  # type: ignore[attr-defined]  # set above
        return None, matrix.transposed.multiplied(grads[0].contiguous())


class InteractionGraph:
    """Users and items as nodes, interactions as edges, each pair once."""

    def __init__(self, user_E: Tensor, item_E: Tensor, *, num_users: int, num_items: int) -> None:
        pairs_E = torch.unique(user_E * num_items + item_E)
        self.user_E, self.item_E = pairs_E // num_items, pairs_E % num_items
        """Edges, by user."""
        self.num_users, self.num_items = num_users, num_items
        self.degree_U = torch.bincount(self.user_E, minlength=num_users).float()
        self.degree_I = torch.bincount(self.item_E, minlength=num_items).float()

    def operator(self, kind: Normalisation = "symmetric", *, dtype: torch.dtype = torch.float32) -> "Propagator":
        """Return one step of messages: symmetric is D^-1/2 A D^-1/2, mean is D^-1 A; without self-loops."""
        users_E, items_E = self.degree_U[self.user_E].to(dtype), self.degree_I[self.item_E].to(dtype)
        if kind == "symmetric":
            to_users_E = to_items_E = (users_E * items_E).rsqrt()
        else:
            to_users_E, to_items_E = users_E.reciprocal(), items_E.reciprocal()
        return Propagator(self._matrix(to_users_E), self._matrix(to_items_E).transposed)

    def _matrix(self, weight_E: Tensor) -> SparseMatrix:
        entries = (weight_E.numpy(), (self.user_E.numpy(), self.item_E.numpy()))
        return SparseMatrix.of(sp.coo_matrix(entries, shape=(self.num_users, self.num_items)))


@dataclass(frozen=True, slots=True, eq=False)
class Propagator:
    """One step of messages over the graph, either way."""

    to_users: SparseMatrix
    """`[U, I]`."""
    to_items: SparseMatrix
    """`[I, U]`."""

    def __call__(self, nodes: Nodes) -> Nodes:
        """Return what each node gets from its neighbours."""
        return Nodes(self.to_users @ nodes.items_ID, self.to_items @ nodes.users_UD)

    def layers(self, nodes: Nodes, count: int) -> Iterator[Nodes]:
        """Give the nodes, then what has moved one step, two steps, up to `count`."""
        yield nodes
        for _ in range(count):
            nodes = self(nodes)
            yield nodes

    def mean_of_users(self, users_UD: Tensor, count: int) -> Nodes:
        """Return that mean where only users have a layer 0. Half the work: each layer is on one side of the graph."""
        users_UD, items_ID = _walked(users_UD, self.to_items, self.to_users, count)
        return Nodes(users_UD, items_ID)

    def mean_of_items(self, items_ID: Tensor, count: int) -> Nodes:
        """Return that mean where only items have a layer 0."""
        items_ID, users_UD = _walked(items_ID, self.to_users, self.to_items, count)
        return Nodes(users_UD, items_ID)

    def mean(self, nodes: Nodes, count: int) -> Nodes:
        """Return the mean of layers 0 to `count` (LightGCN, Eq. 8 with equal weights)."""
        users_UD, items_ID = _Mean.apply(*nodes, self, count)  # type: ignore[no-untyped-call]  # torch
        return Nodes(users_UD, items_ID)


def _mean(nodes: Nodes, to_users: SparseMatrix, to_items: SparseMatrix, count: int) -> Nodes:
    """Return the mean of layers 0 to `count` by Horner's rule: the sums need no tables but those of the products."""
    users_UD, items_ID = nodes
    for _ in range(count):
        users_UD, items_ID = to_users.multiplied(items_ID), to_items.multiplied(users_UD)
        users_UD += nodes.users_UD
        items_ID += nodes.items_ID
    return Nodes(users_UD / (count + 1), items_ID / (count + 1))


class _Mean(torch.autograd.Function):
    """All layers at once: autograd would make new tables of each sum, which cost more than some products do."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, users_UD: Tensor, items_ID: Tensor, propagator: Propagator, count: int
    ) -> tuple[Tensor, Tensor]:
        ctx.mean = (propagator, count)  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        mean = _mean(Nodes(users_UD, items_ID), propagator.to_users, propagator.to_items, count)
        return mean.users_UD, mean.items_ID

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        propagator, count = ctx.mean  # type: ignore[attr-defined]  # set above
        to_users, to_items = propagator.to_items.transposed, propagator.to_users.transposed
        return *_mean(Nodes(*(one.contiguous() for one in grads)), to_users, to_items, count), None, None


def _walked(table_ND: Tensor, there: SparseMatrix, back: SparseMatrix, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean of layers 0 to `count` on the side that has layer 0, and on the other side."""
    near_ND, far_XD = _Walk.apply(table_ND, there, back, count)  # type: ignore[no-untyped-call]  # torch
    return near_ND, far_XD


class _Walk(torch.autograd.Function):
    """The same where one side alone has a layer 0."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, table_ND: Tensor, there: SparseMatrix, back: SparseMatrix, count: int
    ) -> tuple[Tensor, Tensor]:
        ctx.walk = (there, back, count)  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        sums = [table_ND.clone(), table_ND.new_zeros(there.shape[0], table_ND.shape[1])]
        for layer in range(1, count + 1):
            table_ND = (there if layer % 2 == 1 else back).multiplied(table_ND)
            sums[layer % 2] += table_ND
        near_ND, far_XD = sums
        return near_ND.div_(count + 1), far_XD.div_(count + 1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        there, back, count = ctx.walk  # type: ignore[attr-defined]  # set above
        table_ND = grads[count % 2].contiguous()
        for layer in range(count, 0, -1):  # Horner: each layer's gradient, and what the later ones send back to it
            table_ND = (there if layer % 2 == 1 else back).transposed.multiplied(table_ND)
            table_ND += grads[(layer - 1) % 2]
        return table_ND / (count + 1), None, None, None
