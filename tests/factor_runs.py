"""Short runs of every id-based family on the toy: half a second each, and they learn its right answer."""

from pathlib import Path
from typing import get_args

from index.dataset import Dataset
from training.config import FactorRun, parse_config
from training.evaluate_bundle import judged_users
from training.factors.bundle import write_tables
from training.factors.trainer import TrainedFactors, train_factors
from training.models import FactorFamily, GraphFamily, ItemItemFamily, RankerFamily
from training.progress import Unwatched

FACTOR_FAMILIES, GRAPH_FAMILIES, RANKER_FAMILIES, ITEM_ITEM_FAMILIES = (
    [family.model_fields["kind"].default for family in get_args(union)]
    for union in (FactorFamily, GraphFamily, RankerFamily, ItemItemFamily)
)
WITH_BIAS = ["pamd+bias"]
"""Families that can have a bias of each item; BPR++ is VBPR's code then."""
FAMILIES = [*FACTOR_FAMILIES, *WITH_BIAS, *GRAPH_FAMILIES, *RANKER_FAMILIES]

TRAINED_ENCODERS = ["macridvae"]
OWN_ENCODERS = [*TRAINED_ENCODERS, *ITEM_ITEM_FAMILIES]
"""Families that learn no users: all are read from their histories, by the encoder that was trained or by the sum."""

RUN = """
name = "toy"
[model]
kind = "{kind}"
dim = 8
history_length = 10
init_std = 0.1
[split]
kind = "{split}"
[optim]
batch_size = {batch_size}
epochs = 60
lr = 3e-2
[eval]
every_epochs = 20
[export]
faithfulness_users = 2
"""
QUICK = {
    "ease": ["model.ridge=20.0"],
    "slit": ["model.ridge=300.0", "model.past=20", "model.future=5"],
    "item_knn": ["model.neighbours=30"],
    "invrl": ["model.iterations=1", "model.partition.rounds=2"],
    "cb2cf": ["model.network.epochs=10"],
}


def config_of(kind: str, *overrides: str, split: str = "interactions") -> FactorRun:
    """Return the short run of a family, with a bias of each item after `+bias`, and with these settings changed."""
    kind, _, option = kind.partition("+")
    if option == "bias":
        overrides = ("model.item_bias=true", *overrides)
    batch_size = 64 if kind in ("ultragcn", "invrl", *OWN_ENCODERS) else 256
    text = RUN.format(kind=kind, split=split, batch_size=batch_size)
    if kind in (*ITEM_ITEM_FAMILIES, "popularity"):  # nothing is drawn
        text = text.replace("init_std = 0.1\n", "")
    if kind == "popularity":  # of one number
        text = text.replace("dim = 8\n", "")
    return parse_config(text, [*QUICK.get(kind, []), *overrides])


def run(config: FactorRun, folder: Path, checkpoints: Path, **options) -> TrainedFactors:
    """Train on a folder."""
    return train_factors(config, Dataset.open(folder), checkpoints=checkpoints, observer=Unwatched(), **options)


def publishable(trained: TrainedFactors, config: FactorRun, dataset: Dataset) -> dict:
    """Return what `publish_bundle` is told of a run, beside the store."""
    return {
        "model": trained.served.model,
        "config": config,
        "dataset": dataset,
        "metrics": trained.metrics,
        "judged": judged_users(dataset, trained.interactions, trained.split.test, config),
        "extras": lambda path: write_tables(trained.served, path),
    }
