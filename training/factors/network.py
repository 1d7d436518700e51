"""CB2CF's second stage: a network that learns the items' collaborative vectors from their content.

Legend: `I` items, `M` modalities, `D_m` raw width, `D` width of the learned part, `H` hidden width, `B` items.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from training.blocks import ModalityProjector
from training.factors.data import FactorData
from training.factors.stages import Carry, Facts, Stage
from training.models.pairwise import ContentNetworkConfig


class ContentNetwork(nn.Module):
    """Each modality through a layer of its own, summed where present, then to the learned part."""

    def __init__(self, widths: Sequence[int], *, hidden: int, dim: int) -> None:
        super().__init__()
        self.views = ModalityProjector(widths, state_dim=hidden)
        self.out = nn.Linear(hidden, dim)

    def absorb(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take raw vectors from now on; see `ModalityProjector.absorb`."""
        self.views.absorb(maps)

    def forward(self, features: Sequence[Tensor], presence_BM: Tensor) -> Tensor:
        """Return `[B, D]` of vectors per modality `[B, D_m]` and presence `[B, M]`."""
        output_BD: Tensor = self.out(torch.relu(self.views(features, presence_BM).sum(dim=1)))
        return output_BD


class ContentNetworkStage(Stage):
    """Fit the network to the learned parts of some items by squared error."""

    def __init__(
        self,
        name: str,
        number: int,
        network: ContentNetwork,
        data: FactorData,
        *,
        target_ID: Tensor,
        items: Tensor,
        config: ContentNetworkConfig,
        seed: int,
    ) -> None:
        self.name, self._number, self.module, self._network = name, number, network, network
        self._data, self._items, self._config, self._seed = data, items, config, seed
        self._target_ID = target_ID
        # Learned vectors are small: errors count in units of their deviation.
        self._scale = float(target_ID[items].std().clamp_min(1e-6))
        self.total_steps = config.epochs * data.steps(len(items), config.batch_size)

    def groups(self) -> list[dict[str, object]]:
        """Return all weights."""
        return [{"params": list(self._network.parameters()), "lr": self._config.lr}]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the mean squared error of some items."""
        epoch, place = divmod(step, self._data.steps(len(self._items), self._config.batch_size))
        order = np.random.default_rng([self._seed, self._number, epoch]).permutation(len(self._items))
        size = self._config.batch_size
        rows_B = self._items[torch.from_numpy(order[place * size : (place + 1) * size])]
        features = torch.split(self._data.content_IR[rows_B], self._data.widths, dim=-1)
        found_BD = self._network(features, self._data.presence_IM[rows_B])
        error = ((found_BD - self._target_ID[rows_B]) / self._scale).square().mean()
        return {"total": error, "squared_error": error.detach()}

    def finish(self) -> tuple[Carry, Facts]:
        """Hand on the weights."""
        return {f"network.{name}": value.clone() for name, value in self._network.state_dict().items()}, {}
