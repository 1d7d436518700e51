"""Parts that models are put together from; each is pure: no ids, no positions, no statistics over the batch."""

from training.blocks.attention import AttentionPool, Pooling, Scale
from training.blocks.feedforward import FeedForward, FeedForwardKind
from training.blocks.projector import ModalityProjector

__all__ = ["AttentionPool", "FeedForward", "FeedForwardKind", "ModalityProjector", "Pooling", "Scale"]
