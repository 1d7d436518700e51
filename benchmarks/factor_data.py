"""What an id-based run is trained on, put together outside of a run."""

from dataclasses import dataclass
from typing import Self

from index.dataset import Dataset
from training.config import FactorRun
from training.data.catalogue import Catalogue
from training.data.interactions import read_interactions
from training.data.split import HeldOut, Split, make_split
from training.factors.data import FactorData
from training.factors.gate import gate_users


@dataclass(frozen=True, slots=True, eq=False)
class FactorInputs:
    """Data of a run."""

    split: Split
    gate: HeldOut
    catalogue: Catalogue
    data: FactorData

    @classmethod
    def make(cls, config: FactorRun, dataset: Dataset) -> Self:
        """Return what the trainer makes of the same configuration."""
        split = make_split(read_interactions(dataset), config.split, seed=config.seed, seen=config.eval.seen)
        train, gate = gate_users(split, seed=config.seed, seen=config.eval.seen)
        catalogue = Catalogue(dataset)
        catalogue.condition(config.conditioning)
        return cls(split, gate, catalogue, FactorData(train, split.train_users, catalogue, seed=config.seed))
