"""What predicts an item's learned numbers from its content: part of the exported item encoder, for items that are new.

Legend: `B` items, `M` modalities, `N` known items, `R` width of all modalities together, `Z` inputs of the regression,
`F` learned numbers of an item, `K` neighbours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.blocks import ModalityProjector
from training.factors.network import ContentNetwork

_EVEN = 1e-6
"""Of a neighbour's weight: neighbours that are all equally near count alike."""


class LinearImputer(nn.Module):
    """What ridge regression predicts of an item's learned numbers, from content and which modalities it has."""

    constant_F: Tensor

    def __init__(self, widths: Sequence[int], weight_ZF: Tensor) -> None:
        """Take the regression's weights: Z is all widths, one number for each modality's presence, and one constant."""
        super().__init__()
        self.projector = ModalityProjector(widths, state_dim=weight_ZF.shape[1])
        *blocks, presence_MF, constant_1F = torch.split(weight_ZF, [*widths, len(widths), 1])
        for m, (block, bias_F) in enumerate(zip(blocks, presence_MF, strict=True)):
            self.projector.assign(m, weight_SD=block.T, bias_S=bias_F)
        self.register_buffer("constant_F", constant_1F.squeeze(0).clone())

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on; see `ModalityProjector.absorb`."""
        self.projector.absorb(maps)

    def forward(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return `[B, F]`."""
        output_BF: Tensor = self.projector(features, presence_BM).sum(dim=1) + self.constant_F
        return output_BF


class NearestImputer(nn.Module):
    """The mean of the learned numbers of the known items whose content is nearest by cosine.

    Each of the K nearest counts by how much nearer it is than the next one after them. So an item that leaves the K
    has no weight when it does: the output is continuous, and does not depend on which of two equal items comes first,
    where torch and ONNX Runtime differ.

    Neither the length of the item's own vector nor a number that all similarities share changes the weights. So the
    table is kept centred, which loses fewer digits, and the item is not normalised.
    """

    learned_NF: Tensor
    mean_F: Tensor

    def __init__(self, widths: Sequence[int], content_NR: Tensor, learned_NF: Tensor, *, count: int) -> None:
        """Take the known items.

        Args:
            widths: Of the modalities in R.
            content_NR: Zero where an item lacks a modality, so that those count which both items have.
            learned_NF: Their learned numbers.
            count: K; at most N - 1 are taken.
        """
        super().__init__()
        self.count = max(1, min(count, len(content_NR) - 1))
        unit_NR = content_NR / content_NR.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        self.similarity = ModalityProjector(widths, state_dim=len(content_NR))
        for m, block_NR in enumerate(torch.split(unit_NR - unit_NR.mean(dim=0), list(widths), dim=-1)):
            self.similarity.assign(m, weight_SD=block_NR, bias_S=torch.zeros(len(content_NR)))
        self.register_buffer("learned_NF", learned_NF.clone())
        self.register_buffer("mean_F", learned_NF.mean(dim=0))

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on; see `ModalityProjector.absorb`."""
        self.similarity.absorb(maps)

    def forward(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return `[B, F]`; of an item without content, the mean."""
        similarity_BN = self.similarity(features, presence_BM).sum(dim=1)
        depth = min(self.count + 1, len(self.learned_NF))
        values_BK, rows_BK = torch.topk(similarity_BN, depth, dim=-1)
        weight_BK = values_BK - values_BK[:, -1:] + _EVEN
        weight_BK = weight_BK[:, : self.count] / weight_BK[:, : self.count].sum(dim=-1, keepdim=True)
        found_BF = (weight_BK.unsqueeze(-1) * self.learned_NF[rows_BK[:, : self.count]]).sum(dim=1)
        return torch.where(presence_BM.any(dim=-1, keepdim=True), found_BF, self.mean_F)


class Imputer(nn.Module):
    """A prediction and the shift that keeps new items in balance (ADR 0018).

    Items without content are not shifted where others have it: they all have one vector, which would stand in no list
    of a user, or in every place of it.
    """

    shift_F: Tensor
    unknown_F: Tensor

    def __init__(self, prediction: LinearImputer | NearestImputer | ContentNetwork, *, num_learned: int) -> None:
        """Take what predicts the F learned numbers of an item; nothing is shifted yet."""
        super().__init__()
        self.prediction = prediction
        self.register_buffer("shift_F", torch.zeros(num_learned))
        self.register_buffer("unknown_F", torch.zeros(num_learned))

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on; see `ModalityProjector.absorb`."""
        self.prediction.absorb(maps)

    def shift(self, by_F: Tensor, *, unknown: bool) -> None:
        """Add the same to what is predicted of all items with content, and, if `unknown`, of those without."""
        self.shift_F += by_F
        if unknown:
            self.unknown_F += by_F

    def forward(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return `[B, F]`."""
        known_B1 = presence_BM.any(dim=-1, keepdim=True)
        output_BF: Tensor = self.prediction(features, presence_BM) + torch.where(known_B1, self.shift_F, self.unknown_F)
        return output_BF
