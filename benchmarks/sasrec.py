"""Seconds an epoch of SASRec here and in RecTools: the same users, items, batch, length, width, blocks and loss.

    python -m venv .bench/rectools && .bench/rectools/bin/pip install "rectools[torch]"
    python -m benchmarks.sasrec --data DIR --rectools .bench/rectools/bin/python --epochs 3 --threads 1

An epoch is the last items of every user once, with the softmax over the whole catalogue at every place. RecTools looks
up an embedding of each item's id; here every item is made of its content in every step, which is the more work. The
first epoch of each is not counted, and neither is what comes before or after training.

Legend: `B` users of a step, `L` history length.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe, table
from index.dataset import Dataset
from index.features import pad_history
from training.data.batches import Batch
from training.data.catalogue import Catalogue
from training.data.conditioning import ConditioningConfig
from training.data.interactions import Interactions, read_interactions
from training.data.negatives import FullSoftmaxConfig
from training.models import SasRecConfig
from training.objective import Objective


def main() -> None:
    """Time both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rectools", type=Path, required=True, help="Python of the environment that has RecTools.")
    parser.add_argument("--epochs", type=int, default=3, help="That count.")
    parser.add_argument("--users", type=int, default=None, help="Only so many, for a quick look.")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    dataset = Dataset.open(told.data)
    interactions = read_interactions(dataset)
    users = np.flatnonzero(interactions.lengths >= 2)[: told.users]
    theirs = statistics.median(_rectools(told, interactions, users)[1:])
    ours = statistics.median(_ours(told, dataset, interactions, users)[1:])
    sys.stdout.write(
        f"{table(describe())}\n\n{len(users):,} users, {dataset.num_items:,} items, batch {told.batch_size}, length "
        f"{told.length}, width {told.width}, {told.blocks} blocks, {told.threads} threads\n\n"
        f"| SASRec | seconds an epoch |\n|---|---|\n| here, of content | {ours:.2f} |\n"
        f"| RecTools, of ids | {theirs:.2f} |\n\n{ours / theirs:.2f} of RecTools' time\n"
    )


def _ours(told: argparse.Namespace, dataset: Dataset, interactions: Interactions, users: np.ndarray) -> list[float]:
    """Return the seconds of each epoch, of the steps that the trainer takes."""
    catalogue = Catalogue(dataset)
    catalogue.condition(ConditioningConfig())
    torch.manual_seed(0)
    model = SasRecConfig(dim=told.width, history_length=told.length, blocks=told.blocks).build(catalogue.features)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    objective = Objective(
        model,
        catalogue,
        interactions,
        train_users=users,
        negatives=FullSoftmaxConfig(),
        augment=None,
        device=torch.device("cpu"),
    )
    rng, generator, seconds = np.random.default_rng(0), torch.Generator().manual_seed(0), []
    for _ in range(1 + told.epochs):
        started = time.perf_counter()
        shuffled = rng.permutation(users)
        for start in range(0, len(shuffled), told.batch_size):
            batch = _last_items(interactions, shuffled[start : start + told.batch_size], length=told.length)
            losses = objective(batch, generator=generator, with_views=False)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(losses["total"])
            optimiser.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def _last_items(interactions: Interactions, users_B: np.ndarray, *, length: int) -> Batch:
    """Return each user's last L + 1 items: the history, and what it is to find."""
    sequences = [interactions.of(int(user)) for user in users_B]
    padded = [pad_history(sequence[:-1], length=length) for sequence in sequences]
    target_B = np.array([sequence[-1] for sequence in sequences])
    return Batch(users_B, np.stack([rows for rows, _ in padded]), np.stack([mask for _, mask in padded]), target_B)


def _rectools(told: argparse.Namespace, interactions: Interactions, users: np.ndarray) -> list[float]:
    """Return the seconds of each epoch."""
    lengths = interactions.lengths[users]
    items = np.concatenate([interactions.of(int(user)) for user in users])
    # User, item, weight, time: each user's order in seconds, and nothing else counts.
    table_X4 = np.stack([np.repeat(users, lengths), items, np.ones_like(items), np.arange(len(items))], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "interactions.csv"
        np.savetxt(file, table_X4, fmt="%d", delimiter=",", header="user_id,item_id,weight,datetime", comments="")
        settings = {
            "interactions": str(file),
            "epochs": 1 + told.epochs,
            **{name: getattr(told, name) for name in ("batch_size", "length", "width", "blocks", "threads")},
        }
        command = [str(told.rectools), str(Path(__file__).with_name("rectools_sasrec.py"))]
        found = subprocess.run(command, input=json.dumps(settings), stdout=subprocess.PIPE, text=True, check=True)
    seconds: list[float] = json.loads(found.stdout.splitlines()[-1])
    return seconds


if __name__ == "__main__":
    main()
