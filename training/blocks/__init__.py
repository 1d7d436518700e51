"""Parts that models are put together from; each is pure: no ids, no statistics over the batch."""

from training.blocks.attention import AttentionPool, Pooling, Scale
from training.blocks.feedforward import FeedForward, FeedForwardKind
from training.blocks.line import in_line, places
from training.blocks.projector import ModalityProjector
from training.blocks.recurrent import Gru
from training.blocks.routing import HeadsPool, agree, gather, over_places, route, shares
from training.blocks.transformer import CausalBlock, RowNorm

__all__ = [
    "AttentionPool",
    "CausalBlock",
    "FeedForward",
    "FeedForwardKind",
    "Gru",
    "HeadsPool",
    "ModalityProjector",
    "Pooling",
    "RowNorm",
    "Scale",
    "agree",
    "gather",
    "in_line",
    "over_places",
    "places",
    "route",
    "shares",
]
