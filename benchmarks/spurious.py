"""Whether InvRL's mask turns off content that is followed by clicks in training and not in test.

    python -m benchmarks.spurious --seeds 0,1,2

Users click by taste: that is what test holds. In training some clicks are made in contexts where an item's look counts
too (a campaign, a layout that favours covers of a kind): each user then takes items of a look of his own, and how
strongly depends on the context, which nobody records. Looks are the planted content: they predict clicks in training
and validation, and nothing in test. A model of taste alone shows what there was to gain.

Legend: `U` users, `I` items, `T` width of a block of content, `C` contexts, `K` items listed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from index.dataset import Dataset
from index.dataset_write import DatasetWriter
from index.metrics import mean_and_deviation
from training.config import FactorRun, load_config
from training.factors.trainer import TrainedFactors, train_factors
from training.progress import Unwatched

USERS, ITEMS, WIDTH, LOOKS = 2000, 1000, 16, 8
TASTE_STRENGTH = 3.0
CONTEXTS = ((0.4, 0.0), (0.3, 2.0), (0.3, 4.0))
"""Share of the training clicks, and how much more likely an item of the user's look is there (in log odds)."""
TRAIN, VALID, TEST = 24, 3, 5
"""Clicks of a user."""
_START_S = 1_735_689_600

CONFIGS = Path(__file__).resolve().parent.parent / "training" / "configs"
Model = tuple[str, list[str]]
"""A configuration's file and its overrides."""

MASKS = [("direct", 0), ("direct", 1), ("direct", 16), ("direct", 64), ("hrm", 1), ("hrm", 4), ("paper", 64)]
"""Forms of the penalty, and their weights alpha."""


def invrl(form: str, alpha: float, environments: int = 3) -> Model:
    """Return InvRL with a penalty and a number of environments."""
    return "tiktok-invrl", [
        f"model.masking.penalty={form}",
        f"model.masking.alpha={alpha}",
        "model.masking.epochs=40",
        f"model.partition.environments={environments}",
    ]


def penalties() -> dict[str, Model]:
    """Return InvRL with each penalty, and what it is compared with."""
    return {
        "UltraGCN, taste alone": ("tiktok-ultragcn", ['model.modalities=["taste"]']),
        "UltraGCN": ("tiktok-ultragcn", []),
        **{f"InvRL, {form}, alpha {alpha}": invrl(form, alpha) for form, alpha in MASKS},
    }


SETTINGS = (
    "conditioning.kind=scale",
    "model.negative_factor=4.0",
    "optim.lr=3e-3",
    "optim.l2_tables=0.1",
    "optim.l2_projection=1e-3",
)
"""Of all models: of a few tried, what UltraGCN on all content validates best with."""


def main() -> None:
    """Make the world, train each model on it, and print what lists and masks hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--environments", help="Compare these numbers of them, such as 1,3,10, instead of penalties.")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="For all models.")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    models = penalties()
    if arguments.environments is not None:
        counts = [int(one) for one in arguments.environments.split(",")]
        models = {f"InvRL, {count} environments": invrl("direct", 64, count) for count in counts}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as folder:
        for seed in (int(one) for one in arguments.seeds.split(",")):
            dataset = make_world(Path(folder) / f"world-{seed}", seed=seed)
            for name, (file, overrides) in models.items():
                config = load_config(
                    CONFIGS / f"{file}.toml",
                    [f"seed={seed}", *SETTINGS, *overrides, *arguments.overrides],
                )
                assert isinstance(config, FactorRun)
                with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
                    trained = train_factors(config, dataset, checkpoints=Path(checkpoints), observer=Unwatched())
                found[name].append(figures(trained, dataset))
                sys.stdout.write(f"seed {seed}, {name}: {found[name][-1]}\n")
                sys.stdout.flush()
    for name, runs in found.items():
        told = [f"{key} {mean:.4f} +- {sd:.4f}" for key, (mean, sd) in mean_and_deviation(runs).items()]
        sys.stdout.write(f"{name}: {', '.join(told)}\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def figures(trained: TrainedFactors, dataset: Dataset) -> dict[str, float]:
    """Return recall, where the content's share of lists comes from, and what is left of each block by the mask."""
    model = trained.served.model
    names = dataset.modality_names
    features = [torch.from_numpy(np.array(dataset.features(name), np.float32)) for name in names]
    presence = torch.ones(dataset.num_items, len(names), dtype=torch.bool)
    with torch.inference_mode():
        states_IMD = model.project(features, presence)[:, : len(names)]
        queries_UD = torch.from_numpy(trained.served.queries_UD)
        top_UK = torch.topk(queries_UD @ trained.served.tables.items_ID.T, 20, dim=-1).indices
        # Parts of a score matter for the order by how they differ between items.
        centred_IMD = states_IMD - states_IMD.mean(dim=0)
        parts_UKM = torch.einsum("ud,ukmd->ukm", queries_UD, centred_IMD[top_UK]).abs()
    share_M = parts_UKM.sum(dim=(0, 1)) / parts_UKM.sum().clamp_min(1e-12)
    values = {
        "test recall@20": trained.metrics["test"]["recall@20"],
        "valid recall@20": trained.metrics["valid"]["recall@20"],
        **{f"share of {name}": float(share) for name, share in zip(names, share_M, strict=True)},
    }
    return values | {f"mask of {one.modality}": one.mean for one in trained.served.mask}


def make_world(path: Path, *, seed: int) -> Dataset:
    """Write the data set: content blocks `taste` and `look`, and the split of clicks by what made them."""
    rng = np.random.default_rng(seed)
    taste_IT, look_I = _unit(rng.normal(size=(ITEMS, WIDTH))), rng.integers(0, LOOKS, ITEMS)
    look_IT = _unit(_unit(rng.normal(size=(LOOKS, WIDTH)))[look_I] + 0.1 * rng.normal(size=(ITEMS, WIDTH)))
    likes_UI = TASTE_STRENGTH * _unit(rng.normal(size=(USERS, WIDTH))) @ taste_IT.T * WIDTH**0.5 / 2
    of_look_UI = rng.integers(0, LOOKS, USERS)[:, None] == look_I
    clicks: list[tuple[str, NDArray[np.int64]]] = []
    taken_UI = np.zeros((USERS, ITEMS), bool)
    strengths = rng.choice(
        [strength for _, strength in CONTEXTS], size=TRAIN + VALID, p=[share for share, _ in CONTEXTS]
    )
    for place, strength in enumerate([*strengths, *[0.0] * TEST]):
        logits_UI = likes_UI + strength * of_look_UI + rng.gumbel(size=(USERS, ITEMS))
        logits_UI[taken_UI] = -np.inf
        chosen_U = logits_UI.argmax(axis=1)
        taken_UI[np.arange(USERS), chosen_U] = True
        clicks.append(("train" if place < TRAIN else "valid" if place < TRAIN + VALID else "test", chosen_U))
    item_ids = np.array([f"item-{row:04d}" for row in range(ITEMS)])
    with DatasetWriter(path, name="spurious", description="Clicks by taste, and in training by looks too") as writer:
        writer.add_items(pa.table({"item_id": item_ids, "title": item_ids}))
        for name, block_IT in (("taste", taste_IT), ("look", look_IT)):
            writer.add_modality(name, dim=WIDTH, batches=[(block_IT, np.ones(ITEMS, bool))], dtype=np.float32)
        writer.add_interactions(
            pa.table(
                {
                    "user_id": [f"user-{user:04d}" for user in range(USERS) for _ in clicks],
                    "item_id": [str(item_ids[chosen_U[user]]) for user in range(USERS) for _, chosen_U in clicks],
                    "timestamp": [_START_S + 60 * place for _ in range(USERS) for place in range(len(clicks))],
                    "event": ["click"] * (USERS * len(clicks)),
                    "split": [part for _ in range(USERS) for part, _ in clicks],
                }
            )
        )
        return writer.publish()


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


if __name__ == "__main__":
    main()
