"""What a ranker adds to a retriever: the retriever's list, the same items in the ranker's order, the ranker alone.

    python -m benchmarks.reranking_gain DIR --store STORE --retriever BUNDLE --ranker BUNDLE --pool 500

Both bundles are asked through their graphs, on the same test users, who are read from their histories. Train both on
the same folder with the same split and seed: else one has learned from what the other is to find.

Legend: `B` users, `N` items, `Q` queries.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index.bundle import Bundle
from index.dataset import Dataset
from index.store import ArtifactStore
from training.config import RunConfig, load_config
from training.data.interactions import read_interactions
from training.data.split import HeldOut, make_split
from training.evaluate import evaluate_scores, mask_seen, pad_histories
from training.evaluate_bundle import encode_catalogue, score_in_pieces
from training.publish import CONFIG_FILE

METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
CUTOFFS = (10, 20)


def main() -> None:
    """Judge both, alone and together, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--retriever", required=True, help="version of its bundle")
    parser.add_argument("--ranker", required=True, help="version of its bundle")
    parser.add_argument("--pool", type=int, default=500, help="items that the retriever gives the ranker")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset, store = Dataset.open(arguments.data), ArtifactStore(arguments.store)
    retriever, ranker = (Bundle.open(store.open_bundle(one)[0]) for one in (arguments.retriever, arguments.ranker))
    try:
        figures = figures_of(retriever, ranker, dataset, pool=arguments.pool)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(markdown(figures))
    if arguments.json is not None:
        document = {"data": dataset.manifest.name, "pool": arguments.pool, "figures": figures}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def figures_of(retriever: Bundle, ranker: Bundle, dataset: Dataset, *, pool: int) -> dict[str, dict[str, float]]:
    """Return the figures of the retriever's test users, by who orders what.

    Raises:
        ValueError: The second bundle is no ranker, or the two were not trained on the same part of this folder.
    """
    if not ranker.manifest.is_ranker:
        raise ValueError(f"--ranker: {ranker.manifest.version} is no ranker, it scores by {ranker.manifest.scorer}")
    config, other = (load_config(one.path / CONFIG_FILE) for one in (retriever, ranker))
    for bundle in (retriever, ranker):
        if bundle.manifest.data_fingerprint != dataset.fingerprint():
            raise ValueError(f"{dataset.path}: is not the folder that {bundle.manifest.version} was trained on")
    if _tested(config) != _tested(other):
        raise ValueError(
            "split, seed and eval.seen of the two bundles differ: one has learned what the other shall find"
        )
    users = make_split(read_interactions(dataset), config.split, seed=config.seed, seen=config.eval.seen).test
    retrieve, rank = (_scorer(bundle, dataset, users) for bundle in (retriever, ranker))

    def reranked(piece: slice) -> Tensor:
        retrieved_BN, ranked_BN = retrieve(piece), rank(piece)
        if config.eval.seen == "mask":
            mask_seen(retrieved_BN, users.histories[piece])
        kept = torch.topk(retrieved_BN, min(pool, dataset.num_items), dim=-1).indices
        return torch.full_like(ranked_BN, -torch.inf).scatter(-1, kept, ranked_BN.gather(-1, kept))

    ways = {"retriever": retrieve, f"ranker, of the retriever's first {pool}": reranked, "ranker, of all": rank}
    figures = {}
    for name, score in ways.items():
        found = evaluate_scores(score, users, num_items=dataset.num_items, cutoffs=CUTOFFS, seen=config.eval.seen)
        figures[name] = {metric: found[metric] for metric in METRICS}
    return figures


def markdown(figures: dict[str, dict[str, float]]) -> str:
    """Return the table."""
    lines = [f"| list of 20 by | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{values[metric]:.4f}' for metric in METRICS)} |" for name, values in figures.items()
    ]
    return "\n".join(lines) + "\n"


def _tested(config: RunConfig) -> tuple[object, ...]:
    return config.split, config.seed, config.eval.seen


def _scorer(bundle: Bundle, dataset: Dataset, users: HeldOut) -> Callable[[slice], Tensor]:
    """Return what scores the whole catalogue for a piece of the users, read from their histories."""
    candidate_ND, history_NH = encode_catalogue(bundle, dataset, on_progress=lambda *_: None)
    length = bundle.manifest.history_length
    rows_BL, mask_BL = pad_histories(users, slice(None), length=length)

    def score(piece: slice) -> Tensor:
        queries_BQD = bundle.encode_users(np.ascontiguousarray(history_NH[rows_BL[piece]]), mask_BL[piece])
        return score_in_pieces(bundle, queries_BQD, candidate_ND)

    return score


if __name__ == "__main__":
    main()
