"""Which representations PAMD attends to where it is right: the shares of common and specific parts (its Table 6).

    python -m benchmarks.pamd_attention DIR training/configs/tiktok-pamd.toml --seeds 0,1,2
    python -m benchmarks.pamd_attention DIR training/configs/tiktok-pamd-user.toml --seeds 0,1,2

Of each test item among a user's ten best, the kind with the largest weight counts, as in the paper; beside it stands
the mean weight of each kind and modality. With the item as query (`pamd`) an item's weights are the same for all users,
with the user as query (`pamd_user`), as the published code has it, they are not.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index.dataset import Dataset
from training.blocks.disentangled import attention
from training.config import FactorRun, load_config
from training.data.catalogue import Catalogue
from training.evaluate import mask_seen, pieces
from training.factors.served_pamd import ServedPamd
from training.factors.served_ranker import ServedRanker
from training.factors.trainer import TrainedFactors, train_factors
from training.models.pamd_user import PamdUserRanker
from training.progress import Unwatched

CUTOFF = 10
KINDS = ("common", "specific")


def main() -> None:
    """Train once for each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = Dataset.open(arguments.data)
    rows = []
    for seed in [int(one) for one in arguments.seeds.split(",")]:
        config = load_config(arguments.config, [*arguments.overrides, f"seed={seed}"])
        assert isinstance(config, FactorRun), "PAMD is id-based"
        with tempfile.TemporaryDirectory() as folder:
            trained = train_factors(config, dataset, checkpoints=Path(folder), observer=Unwatched())
        rows.append(figures_of(trained, dataset))
    sys.stdout.write(markdown(rows))


def markdown(rows: Sequence[dict[str, float]]) -> str:
    """Return means and deviations over the seeds."""
    lines = ["|  | share |", "|---|---|"]
    for name in rows[0]:
        values = [row[name] for row in rows]
        lines.append(f"| {name} | {np.mean(values):.3f} ± {np.std(values, ddof=1 if len(values) > 1 else 0):.3f} |")
    return "\n".join(lines) + "\n"


@torch.inference_mode()
def figures_of(trained: TrainedFactors, dataset: Dataset) -> dict[str, float]:
    """Return how often each kind has the largest weight of a hit, and the mean weights."""
    model = trained.served.model
    queries_XQ, items_X = hits(trained)
    if isinstance(model, ServedPamd):
        weights_XMT = item_weights(trained, dataset)[items_X]
    else:
        assert isinstance(model, ServedRanker)
        assert isinstance(model.ranker, PamdUserRanker), "attention to common and specific parts is PAMD's"
        weights_XT = model.ranker.attention(queries_XQ[:, None], trained.served.tables.items_ID[items_X][:, None])
        weights_XMT = weights_XT.squeeze(1).reshape(len(items_X), -1, len(KINDS))
    largest_X = weights_XMT.flatten(start_dim=1).argmax(dim=-1) % len(KINDS)
    figures = {"hits": float(len(items_X))}
    figures |= {f"{kind}, largest": float((largest_X == place).float().mean()) for place, kind in enumerate(KINDS)}
    for m, modality in enumerate(dataset.manifest.modalities):
        for place, kind in enumerate(KINDS):
            figures[f"{modality.name}, {kind}, mean weight"] = float(weights_XMT[:, m, place].mean())
    return figures


def hits(trained: TrainedFactors) -> tuple[Tensor, Tensor]:
    """Return the query `[X, Q]` and the item `[X]` of each test item that is among a user's ten best."""
    served, test, interactions = trained.served, trained.split.test, trained.interactions
    place_of = {name: place for place, name in enumerate(served.user_ids)}
    known = [b for b, user in enumerate(test.users_B) if interactions.user_ids[user] in place_of]
    learned_BQ = torch.from_numpy(served.queries_UD)[[place_of[interactions.user_ids[test.users_B[b]]] for b in known]]
    users, items = [], []
    for piece in pieces(len(known), num_items=len(served.tables.items_ID)):
        scores_BI = served.model.score(learned_BQ[piece].unsqueeze(1), served.tables.items_ID)
        mask_seen(scores_BI, [test.histories[b] for b in known[piece]])
        for place, top in enumerate(torch.topk(scores_BI, CUTOFF, dim=-1).indices):
            found = [item for item in top.tolist() if item in test.targets_BT[known[piece.start + place]]]
            users += [piece.start + place] * len(found)
            items += found
    return learned_BQ[users], torch.tensor(items)


def item_weights(trained: TrainedFactors, dataset: Dataset) -> Tensor:
    """Return the weights `[I, M, 2]` of all items' common and specific parts, the item as query."""
    model, states_IPS = trained.served.model, trained.served.parts.states_IPS
    assert isinstance(model, ServedPamd)
    features, presence_IM = Catalogue(dataset).inputs()
    ids_IF = states_IPS[:, model.part_names.index("id"), : model.ids_dim]
    kinds = torch.split(model.content(features, presence_IM), model.ids_dim, dim=-1)
    weights = attention(ids_IF, kinds, presence_IM, scale=1 / math.sqrt(model.ids_dim))
    return torch.stack(weights, dim=-1)


if __name__ == "__main__":
    main()
