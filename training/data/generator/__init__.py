"""A multi-modal catalogue and its users, made from a seed, of which the right answer is known twice.

Known are what a user clicks next (an item of a style that he likes) and which modality drives him.
"""

from training.data.generator.make import GeneratorConfig, make_dataset

__all__ = ["GeneratorConfig", "make_dataset"]
