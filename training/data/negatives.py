"""What the target is compared with: the whole catalogue, or a sample that the batch shares.

Legend: `I` items of the catalogue, `N` negatives.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from training.settings import Settings


class FullSoftmaxConfig(Settings):
    """Every item of the catalogue is a candidate: no sampling noise. For up to some ten thousand items."""

    kind: Literal["full"] = "full"


class SampledSoftmaxConfig(Settings):
    """Negatives shared by the batch; one that is a user's own target is left out of that user's sum."""

    kind: Literal["sampled"] = "sampled"
    law: Literal["uniform", "log_uniform"] = Field(
        "uniform", description="log_uniform: over popularity rank, as ComiRec samples."
    )
    count: int = Field(4096, ge=1, le=1_000_000)
    log_q: bool = Field(False, description="Take the log of the expected count off every logit.")


NegativesConfig = Annotated[FullSoftmaxConfig | SampledSoftmaxConfig, Field(discriminator="kind")]


class NegativeSampler:
    """Draws shared negatives with replacement and knows how often each item is expected in a draw."""

    def __init__(
        self, config: SampledSoftmaxConfig, popularity_I: NDArray[np.int64], *, device: torch.device | None = None
    ) -> None:
        self.config = config
        num_items = len(popularity_I)
        by_popularity_I = np.argsort(-popularity_I, kind="stable")
        rank_I = np.empty(num_items, np.int64)
        rank_I[by_popularity_I] = np.arange(num_items)
        if config.law == "uniform":
            log_p_I = np.full(num_items, -np.log(num_items))
        else:
            log_p_I = np.log(np.log1p(1 / (rank_I + 1)) / np.log(num_items + 1))
        self._item_at_rank_I = torch.from_numpy(by_popularity_I).to(device)
        self._log_expected_I = torch.from_numpy((log_p_I + np.log(config.count)).astype(np.float32)).to(device)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return `[N]` item rows; repeats are possible and counted as often in the loss."""
        num_items, count = len(self._item_at_rank_I), self.config.count
        device = self._item_at_rank_I.device
        if self.config.law == "uniform":
            return torch.randint(num_items, (count,), generator=generator, device=device)
        # P(rank < r) = log(r + 1) / log(I + 1), inverted.
        uniform_N = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        rank_N = ((num_items + 1) ** uniform_N).to(torch.int64) - 1
        return self._item_at_rank_I[rank_N.clamp_(0, num_items - 1)]

    def log_expected(self, items: Tensor) -> Tensor:
        """Return the log of the expected count in one draw, of any item rows."""
        return self._log_expected_I[items]
