"""From raw pictures, texts and categories to the vectors of a modality.

The built-in featurisers need no download and are the same everywhere; `adapters` runs stronger encoders whose weights
are given by path.
"""

from training.data.featurise.batches import Featuriser, image_batches, text_batches
from training.data.featurise.category import CategoryFeaturiser
from training.data.featurise.image import ImageDescriptor
from training.data.featurise.text import HashedText

__all__ = ["CategoryFeaturiser", "Featuriser", "HashedText", "ImageDescriptor", "image_batches", "text_batches"]
