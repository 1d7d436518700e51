"""What models read of content: conditioned vectors, or what pretraining makes of them.

Pretrained maps are linear, so they come after whitening as one map, and whatever model reads them absorbs it as it
absorbs any conditioning: a bundle takes raw vectors in either case.

Legend: `N` items, `M` modalities, `D` raw width, `R` width after whitening, `W` width of what models read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.catalogue import Catalogue
from training.data.conditioning import ConditioningConfig, InputMap, fit
from training.pretraining.pretraining import CorrAutoencoder, Disentangling, Pretraining
from training.pretraining.settings import CorrAeFeatures, FeaturesConfig, PamdFeatures, RawFeatures

_MAX_ITEMS = 200_000
"""Enough to learn maps of a few thousand numbers from."""


def prepare(
    catalogue: Catalogue, conditioning: ConditioningConfig, features: FeaturesConfig, *, seed: int
) -> dict[str, float]:
    """Make a catalogue give what models are to read; return what pretraining has to tell.

    What is pretrained has numbers of the size that conditioned vectors have: vectors of mean square length 1 for
    `conditioning.kind = raw`, else numbers of mean square 1.

    Args:
        catalogue: Raw so far.
        conditioning: What happens to raw vectors.
        features: Which features.
        seed: Of pretraining.
    """
    if isinstance(features, RawFeatures):
        catalogue.condition(conditioning)
        return {}
    widths = [modality.dim for modality in catalogue.features.modalities]
    whitening = fit(features.whitening, catalogue.chunks(), dims=widths)
    vectors, presence_NM = _some_items(catalogue, whitening)
    task = pretraining_of(features, vectors, presence_NM, seed=seed)
    task.run()
    maps = []
    for m, (one, matrix_RW) in enumerate(zip(whitening, task.matrices(), strict=True)):
        read_NW = vectors[m][presence_NM[:, m]] @ matrix_RW
        square = read_NW.square().mean() if len(read_NW) > 0 else read_NW.new_ones(())
        number = 1 / matrix_RW.shape[1] if conditioning.kind == "raw" else 1.0
        maps.append(InputMap(one.mean_D, one.basis_DR @ matrix_RW * (number / square.clamp_min(1e-12)).sqrt()))
    catalogue.take(maps)
    return task.facts()


def pretraining_of(
    features: PamdFeatures | CorrAeFeatures, vectors: Sequence[Tensor], presence_NM: Tensor, *, seed: int
) -> Pretraining:
    """Return the task that learns these features, not yet run."""
    if isinstance(features, PamdFeatures):
        return Disentangling(vectors, presence_NM, features.pretraining, seed=seed)
    return CorrAutoencoder(vectors, presence_NM, features.pretraining, seed=seed)


def _some_items(catalogue: Catalogue, maps: Sequence[InputMap]) -> tuple[list[Tensor], Tensor]:
    """Return whitened vectors per modality `[N, R]` and presence `[N, M]` of the first items."""
    pieces: list[list[Tensor]] = []
    presences: list[Tensor] = []
    for raw, presence_NM in catalogue.chunks():
        pieces.append([one(vectors) for one, vectors in zip(maps, raw, strict=True)])
        presences.append(presence_NM)
        if sum(map(len, presences)) >= _MAX_ITEMS:
            break
    return [torch.cat(modality) for modality in zip(*pieces, strict=True)], torch.cat(presences)
