"""Messages whose weights are learned, one number for each edge: products, weighted sums, and softmax over edges.

Gradients need nothing but the same three operations: that of a weighted sum with respect to its weights is an inner
product for each edge, and that of an inner product is a weighted sum on either side. So nothing as large as edges times
width is ever made. Inner products run as torch's sampled product, many times as fast as gathering both ends.

Legend: `U` users, `I` items, `E` edges, `N` nodes of a side, `S` segments, `D` width.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from training.blocks.propagation import InteractionGraph


class Edges:
    """The edges of a graph in the order of its users; weights `[E]` come in that order, too."""

    def __init__(self, graph: InteractionGraph) -> None:
        self.user_E, self.item_E = graph.user_E, graph.item_E
        self.num_users, self.num_items = graph.num_users, graph.num_items
        self._start_U1, self._start_I1 = _starts(graph.degree_U), _starts(graph.degree_I)
        self._by_item_E = torch.argsort(self.item_E, stable=True)
        self._user_by_item_E = self.user_E[self._by_item_E]

    def products(self, users_UD: Tensor, items_ID: Tensor) -> Tensor:
        """Return the inner product of both ends of each edge `[E]`."""
        products_E: Tensor = _Products.apply(self, users_UD, items_ID)  # type: ignore[no-untyped-call]  # torch
        return products_E

    def to_users(self, weight_E: Tensor, items_ID: Tensor) -> Tensor:
        """Return the weighted sum of each user's items `[U, D]`; zero for a user without any."""
        sums_UD: Tensor = _ToUsers.apply(self, weight_E, items_ID)  # type: ignore[no-untyped-call]  # torch
        return sums_UD

    def to_items(self, weight_E: Tensor, users_UD: Tensor) -> Tensor:
        """Return the weighted sum of each item's users `[I, D]`; zero for an item without any."""
        sums_ID: Tensor = _ToItems.apply(self, weight_E, users_UD)  # type: ignore[no-untyped-call]  # torch
        return sums_ID

    def softmax_of_users(self, logit_E: Tensor) -> Tensor:
        """Return the softmax of each user's edges `[E]`."""
        return segment_softmax(logit_E, self.user_E, count=self.num_users)

    def softmax_of_items(self, logit_E: Tensor) -> Tensor:
        """Return the softmax of each item's edges `[E]`."""
        return segment_softmax(logit_E, self.item_E, count=self.num_items)

    def plain_products(self, users_UD: Tensor, items_ID: Tensor) -> Tensor:
        """Return `products`, without gradients."""
        with warnings.catch_warnings():  # torch says that sparse rows are new
            warnings.simplefilter("ignore", UserWarning)
            pattern_UI = torch.sparse_csr_tensor(
                self._start_U1,
                self.item_E,
                users_UD.new_zeros(len(self.item_E)),
                (self.num_users, self.num_items),
                check_invariants=False,
            )
            sampled_UI = torch.sparse.sampled_addmm(pattern_UI, users_UD.contiguous(), items_ID.contiguous().T, beta=0)
        products_E: Tensor = sampled_UI.values()
        return products_E

    def plain_to_users(self, weight_E: Tensor, items_ID: Tensor) -> Tensor:
        """Return `to_users`, without gradients."""
        return _bags(self.item_E, items_ID, self._start_U1, weight_E)

    def plain_to_items(self, weight_E: Tensor, users_UD: Tensor) -> Tensor:
        """Return `to_items`, without gradients."""
        return _bags(self._user_by_item_E, users_UD, self._start_I1, weight_E.index_select(0, self._by_item_E))


def segment_softmax(logit_E: Tensor, segment_E: Tensor, *, count: int) -> Tensor:
    """Return the softmax over the numbers of each segment `[E]`, stable for numbers of any size.

    -inf gets nothing, also where a segment has nothing else.

    Args:
        logit_E: Anything below inf.
        segment_E: Where each belongs.
        count: S, the number of segments; some may be empty.
    """
    share_E: Tensor = _SegmentSoftmax.apply(logit_E, segment_E, count)  # type: ignore[no-untyped-call]  # torch
    return share_E


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, edges: Edges, users_UD: Tensor, items_ID: Tensor) -> Tensor:
        ctx.edges = edges  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        ctx.save_for_backward(users_UD, items_ID)
        return edges.plain_products(users_UD, items_ID)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        edges: Edges = ctx.edges  # type: ignore[attr-defined]  # set above
        users_UD, items_ID = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        return None, edges.plain_to_users(grads[0], items_ID), edges.plain_to_items(grads[0], users_UD)


class _ToUsers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, edges: Edges, weight_E: Tensor, items_ID: Tensor) -> Tensor:
        ctx.edges = edges  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        ctx.save_for_backward(weight_E, items_ID)
        return edges.plain_to_users(weight_E, items_ID)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        edges: Edges = ctx.edges  # type: ignore[attr-defined]  # set above
        weight_E, items_ID = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        return None, edges.plain_products(grads[0], items_ID), edges.plain_to_items(weight_E, grads[0])


class _ToItems(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, edges: Edges, weight_E: Tensor, users_UD: Tensor) -> Tensor:
        ctx.edges = edges  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        ctx.save_for_backward(weight_E, users_UD)
        return edges.plain_to_items(weight_E, users_UD)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        edges: Edges = ctx.edges  # type: ignore[attr-defined]  # set above
        weight_E, users_UD = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        return None, edges.plain_products(users_UD, grads[0]), edges.plain_to_users(weight_E, grads[0])


class _SegmentSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, logit_E: Tensor, segment_E: Tensor, count: int) -> Tensor:
        most_S = logit_E.new_full((count,), -torch.inf).scatter_reduce_(0, segment_E, logit_E, "amax")
        most_S = most_S.masked_fill_(torch.isneginf(most_S), 0)
        # `index_select` of a row of numbers takes a quarter of the time of indexing.
        power_E = torch.exp(logit_E - most_S.index_select(0, segment_E))
        # The largest of a segment is 1 here, so a sum is at least 1 or has nothing in it.
        sum_S = logit_E.new_zeros(count).index_add_(0, segment_E, power_E).clamp_min_(1)
        share_E = power_E / sum_S.index_select(0, segment_E)
        ctx.count = count  # type: ignore[attr-defined]  # torch keeps what is no tensor so
        ctx.save_for_backward(share_E, segment_E)
        return share_E

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        share_E, segment_E = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch
        count: int = ctx.count  # type: ignore[attr-defined]  # set above
        pulled_E = share_E * grads[0]
        mean_S = pulled_E.new_zeros(count).index_add_(0, segment_E, pulled_E)
        return pulled_E - share_E * mean_S.index_select(0, segment_E), None, None


def _starts(degree_N: Tensor) -> Tensor:
    """Return where each node's edges begin, and where the last one's end `[N + 1]`."""
    return F.pad(degree_N.long().cumsum(0), (1, 0))


def _bags(rows_E: Tensor, table_ND: Tensor, start_N1: Tensor, weight_E: Tensor) -> Tensor:
    return F.embedding_bag(
        rows_E,
        table_ND.contiguous(),
        start_N1,
        mode="sum",
        per_sample_weights=weight_E,
        include_last_offset=True,
    )
