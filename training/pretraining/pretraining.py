"""What is trained on items before any user is looked at: steps, losses, and what comes out.

All chance of a step is a function of seed and step.

Legend: `I` items, `B` items of a step, `M` modalities, `R_m` width of a modality, `D` width of a representation.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.blocks.disentangled import Disentangled, DisentangledEncoder
from training.blocks.projector import ModalityProjector
from training.pretraining.losses import Gaps, encoder_loss, infonce, mean_of, ordering, squared_gap
from training.pretraining.settings import CorrAeConfig, DisentanglingConfig, PretrainingSettings

HELD_OUT = 0.1
"""Of the items: nothing is learned from them, and the order of the gaps is judged on them."""


class Pretraining(ABC):
    """Learns maps of content from the items that have it."""

    module: nn.Module

    def __init__(
        self, features: Sequence[Tensor], presence_IM: Tensor, settings: PretrainingSettings, *, seed: int, least: int
    ) -> None:
        """Take the catalogue.

        Args:
            features: Per modality `[I, R_m]`, centred, mean square about 1; what lies where it is absent is not read.
            presence_IM: Which are there.
            settings: How long, and how fast.
            seed: Of the order of the items, of those held out, and of initialisation.
            least: Modalities that an item must have to teach anything.
        """
        self.settings, self._features, self._presence_IM, self._seed = settings, features, presence_IM, seed
        usable = torch.nonzero(presence_IM.sum(dim=-1) >= least).squeeze(-1).cpu().numpy()
        shuffled = np.random.default_rng([seed, 29]).permutation(usable)
        count = round(len(shuffled) * HELD_OUT)
        self.held_out, self._items = shuffled[:count], shuffled[count:]
        self._per_epoch = -(-len(self._items) // settings.batch_size)
        self.total_steps = min(settings.epochs * self._per_epoch, settings.max_steps)

    def batch(self, step: int) -> tuple[list[Tensor], Tensor]:
        """Return vectors per modality `[B, R_m]` and presence `[B, M]` of the items of a step."""
        epoch, place = divmod(step, self._per_epoch)
        order = np.random.default_rng([self._seed, 31, epoch]).permutation(self._items)
        size = self.settings.batch_size
        return self.of(order[place * size : (place + 1) * size])

    def of(self, items: NDArray[np.int64]) -> tuple[list[Tensor], Tensor]:
        """Return the same of some items."""
        rows = torch.from_numpy(items).to(self._presence_IM.device)
        presence_BM = self._presence_IM[rows]
        return [one[rows] * presence_BM[:, m, None] for m, one in enumerate(self._features)], presence_BM

    @abstractmethod
    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the losses of a step by name, `total` among them."""

    @abstractmethod
    def matrices(self) -> list[Tensor]:
        """Return per modality the map `[R_m, ...]` to what models are to read."""

    @torch.no_grad()
    def facts(self) -> dict[str, float]:
        """Return what there is to tell of the items held out."""
        return {}

    def run(self) -> None:
        """Take all steps."""
        settings = self.settings
        optimiser = torch.optim.Adam(
            self.module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        for step in range(self.total_steps):
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(self.losses(step)["total"])
            optimiser.step()


class Decoders(nn.Module):
    """One affine map for each ordered pair of modalities: from a representation of one to the vector of the other."""

    def __init__(self, widths: Sequence[int], *, dim: int) -> None:
        super().__init__()
        self.pairs = [(m, n) for m in range(len(widths)) for n in range(len(widths)) if m != n]
        self.linears = nn.ModuleList([nn.Linear(dim, widths[n]) for _, n in self.pairs])

    def forward(self, representations_D: Tensor, place: int) -> Tensor:
        """Return what representations `[..., D]` of the pair at this place predict `[..., R_n]`."""
        predicted_R: Tensor = self.linears[place](representations_D)
        return predicted_R


class Disentangling(Pretraining):
    """PAMD's: common parts are alike in all modalities of an item and tell of the others, specific ones do neither."""

    _settings: DisentanglingConfig

    def __init__(
        self, features: Sequence[Tensor], presence_IM: Tensor, settings: DisentanglingConfig, *, seed: int
    ) -> None:
        super().__init__(features, presence_IM, settings, seed=seed, least=2)
        self._settings = settings
        widths = [one.shape[1] for one in features]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = DisentangledEncoder(widths, dim=settings.dim)
            self.decoders = Decoders(widths, dim=settings.dim)
        self.module = nn.ModuleDict({"encoder": self.encoder, "decoders": self.decoders}).to(presence_IM.device)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return L_en, L_de and their weighted sum (Eq. 11), and the mean gaps."""
        settings = self._settings
        features, presence_BM = self.batch(step)
        parts = self.encoder(features, presence_BM)
        encoder = encoder_loss(parts.common_BMD, parts.specific_BMD, presence_BM)
        gaps, contrast = self._across(parts, features, presence_BM)
        if settings.contrast == "softplus":
            contrast = ordering(gaps) + settings.rho * gaps.common
        elif settings.contrast == "none":
            contrast = gaps.common
        total = settings.encoder_weight * encoder + settings.contrast_weight * contrast
        told = {"encoder": encoder, "contrast": contrast, **gaps._asdict()}
        return {"total": total, **{name: value.detach() for name, value in told.items()}}

    def _across(self, parts: Disentangled, features: Sequence[Tensor], presence_BM: Tensor) -> tuple[Gaps, Tensor]:
        """Return the mean gaps over items and ordered pairs, each per dimension, and the mean of `infonce`."""
        errors, contrasts, there = [], [], []
        for predicted_3BR, target_BR, both_B in self._predicted(parts, features, presence_BM):
            errors.append(_errors(predicted_3BR, target_BR))
            contrasts.append(infonce(predicted_3BR, target_BR, tau=self._settings.tau))
            there.append(both_B)
        if not there:  # one modality tells of no other
            zero = presence_BM.new_zeros((), dtype=torch.float32)
            return Gaps(zero, zero, zero), zero
        there_BP, errors_3BP = torch.stack(there, dim=-1), torch.stack(errors, dim=-1)
        gaps = Gaps(*[mean_of(one_BP, there_BP) for one_BP in errors_3BP])
        return gaps, mean_of(torch.stack(contrasts, dim=-1), there_BP)

    def _predicted(
        self, parts: Disentangled, features: Sequence[Tensor], presence_BM: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return of each ordered pair what common part, whole and specific part predict, what is there, and where."""
        found = []
        for place, (m, n) in enumerate(self.decoders.pairs):
            of_3BD = torch.stack([parts.common_BMD[:, m], parts.primitive_BMD[:, m], parts.specific_BMD[:, m]])
            found.append((self.decoders(of_3BD, place), features[n], presence_BM[:, m] & presence_BM[:, n]))
        return found

    @torch.no_grad()
    def matrices(self) -> list[Tensor]:
        """Return the maps to common and specific part side by side."""
        return [self.encoder.matrix(m) for m in range(len(self._features))]

    @torch.no_grad()
    def mean_length(self) -> float:
        """Return the root of the mean squared length of common and specific parts; 0 where no item has content."""
        features, presence_IM = self.of(np.arange(len(self._presence_IM)))
        parts = self.encoder(features, presence_IM)
        squares_IM = (parts.common_BMD.square() + parts.specific_BMD.square()).sum(dim=-1) / 2
        return float(mean_of(squares_IM, presence_IM).sqrt())

    @torch.no_grad()
    def facts(self) -> dict[str, float]:
        """Return the mean gaps of the items held out, and the share of their pairs with L_c < L_p < L_s."""
        if len(self.held_out) == 0 or not self.decoders.pairs:
            return {}
        features, presence_BM = self.of(self.held_out)
        errors, ordered, there = [], [], []
        parts = self.encoder(features, presence_BM)
        for predicted_3BR, target_BR, both_B in self._predicted(parts, features, presence_BM):
            gap_3B = _errors(predicted_3BR, target_BR)
            if self._settings.contrast == "infonce":  # judged as it was trained: by direction
                gap_3B = -F.cosine_similarity(predicted_3BR, target_BR.unsqueeze(0), dim=-1)
            errors.append(gap_3B)
            ordered.append((gap_3B[0] < gap_3B[1]) & (gap_3B[1] < gap_3B[2]))
            there.append(both_B)
        there_BP, errors_3BP = torch.stack(there, dim=-1), torch.stack(errors, dim=-1)
        means = [float(mean_of(one_BP, there_BP)) for one_BP in errors_3BP]
        in_order = float(mean_of(torch.stack(ordered, dim=-1).float(), there_BP))
        return {"gap_common": means[0], "gap_primitive": means[1], "gap_specific": means[2], "in_order": in_order}


class CorrAutoencoder(Pretraining):
    """Corr-AE's: (1 - alpha) times the errors of rebuilding, and alpha times the distance of an item's codes."""

    _settings: CorrAeConfig

    def __init__(self, features: Sequence[Tensor], presence_IM: Tensor, settings: CorrAeConfig, *, seed: int) -> None:
        super().__init__(features, presence_IM, settings, seed=seed, least=1)
        self._settings = settings
        widths = [one.shape[1] for one in features]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = ModalityProjector(widths, state_dim=settings.dim, bias=False)
            self.decoders = nn.ModuleList([nn.Linear(settings.dim, width) for width in widths])
        self.module = nn.ModuleDict({"encoder": self.encoder, "decoders": self.decoders}).to(presence_IM.device)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return both terms, each a mean over dimensions, and their weighted sum."""
        features, presence_BM = self.batch(step)
        code_BMD = self.encoder(features, presence_BM)
        errors_BM = torch.stack(
            [
                squared_gap(decoder(code_BMD[:, m]), features[m]) / features[m].shape[1]
                for m, decoder in enumerate(self.decoders)
            ],
            dim=-1,
        )
        rebuilt = mean_of(errors_BM, presence_BM)
        tied = encoder_loss(code_BMD, torch.zeros_like(code_BMD), presence_BM) / code_BMD.shape[-1]
        total = (1 - self._settings.tie) * rebuilt + self._settings.tie * tied
        return {"total": total, "rebuilt": rebuilt.detach(), "tied": tied.detach()}

    @torch.no_grad()
    def matrices(self) -> list[Tensor]:
        """Return the maps to the codes."""
        return [weight_DR.T.clone() for weight_DR in self.encoder.weights()]


def _errors(predicted_3BR: Tensor, target_BR: Tensor) -> Tensor:
    """Return the squared errors of each item `[3, B]`, per dimension, or the terms of `ordering` saturate at once."""
    return squared_gap(predicted_3BR, target_BR.unsqueeze(0)) / target_BR.shape[-1]
