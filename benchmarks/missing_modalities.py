"""What is found when parts of all items are switched off at test: each modality, all content, the ids.

    python -m benchmarks.missing_modalities DIR training/configs/tiktok-slmrec.toml --seeds 0,1,2 --json table.json

One model is trained for each seed, with everything there. What is left of an item is what the service would serve of it
with that part absent; nothing is trained or fitted again. Test users are ranked by their learned vectors, and read from
their histories, whose items lack the same parts.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from index.dataset import Dataset
from training.config import FactorRun, load_config
from training.evaluate import means
from training.factors.gate import rank
from training.factors.serving import Served
from training.factors.trainer import TrainedFactors, train_factors
from training.progress import Unwatched

CUTOFFS = (10, 20)
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
WHOLE = "nothing"

Figures = dict[str, dict[str, dict[str, float]]]
"""By what is switched off, then by how users are read, then by metric."""


def main() -> None:
    """Train, switch parts off, and print a table of means and deviations over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--checkpoints", type=Path, help="keep trained models here, and take them from here")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset = Dataset.open(arguments.data)
    seeds = [int(one) for one in arguments.seeds.split(",")]
    by_seed: list[Figures] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            config = load_config(arguments.config, [*arguments.overrides, f"seed={seed}"])
            assert isinstance(config, FactorRun), "content models have no parts beside content"
            folder = (arguments.checkpoints or Path(temporary)) / f"{config.name}-{seed}"
            trained = train_factors(config, dataset, checkpoints=folder, observer=Unwatched(), resume=True)
            by_seed.append(figures_of(trained, config))
    sys.stdout.write(markdown(by_seed))
    if arguments.json is not None:
        document = {"config": arguments.config.name, "overrides": arguments.overrides, "seeds": seeds}
        arguments.json.write_text(json.dumps({**document, "by_seed": by_seed}, indent=2) + "\n")


def switched_off(served: Served) -> dict[str, tuple[str, ...]]:
    """Return the parts to do without, by what a row is called."""
    modalities = tuple(modality.name for modality in served.model.modalities)
    rows: dict[str, tuple[str, ...]] = {WHOLE: (), **{name: (name,) for name in modalities}}
    if len(modalities) > 1:
        rows["all content"] = modalities
    if "id" in served.model.part_names:
        rows["id"] = ("id",)
    return rows


@torch.inference_mode()
def figures_of(trained: TrainedFactors, config: FactorRun) -> Figures:
    """Return the figures of the test users of one trained model."""
    served, test, interactions = trained.served, trained.split.test, trained.interactions
    place_of = {name: place for place, name in enumerate(served.user_ids)}
    place_B = torch.tensor([place_of.get(interactions.user_ids[user], -1) for user in test.users_B])
    is_known_B11 = (place_B >= 0)[:, None, None]
    figures: Figures = {}
    for row, parts in switched_off(served).items():
        tables = served.tables_without(parts)
        from_history_BQD = served.fold_in.queries(tables, test.histories)
        queries = {"from history": from_history_BQD}
        if is_known_B11.any():  # the others are read from their histories, as the trainer does it
            learned_BQD = torch.from_numpy(served.queries_UD)[place_B].unsqueeze(1)
            queries["learned"] = torch.where(is_known_B11, learned_BQD, from_history_BQD)
        figures[row] = {}
        for reading, queries_BQD in queries.items():
            judged = rank(
                served.model.score, queries_BQD, tables.items_ID, test, cutoffs=CUTOFFS, seen=config.eval.seen
            )
            figures[row][reading] = {name: means(judged)[name] for name in METRICS}
    told = trained.metrics["test_from_history"]["recall@20"]
    assert np.isclose(figures[WHOLE]["from history"]["recall@20"], told), "with everything there it is the run's figure"
    return figures


def markdown(by_seed: Sequence[Figures]) -> str:
    """Return the table."""
    readings = [one for one in ("learned", "from history") if one in by_seed[0][WHOLE]]
    lines = [
        f"| without | users | {' | '.join(METRICS)} | of recall@20 with everything |",
        "|---" * (len(METRICS) + 3) + "|",
    ]
    for reading in readings:
        whole = _values(by_seed, WHOLE, reading)["recall@20"].mean()
        for row in by_seed[0]:
            values = _values(by_seed, row, reading)
            share = f"{values['recall@20'].mean() / whole:.1%}" if whole > 0 else "-"
            cells = " | ".join(_told(values[name]) for name in METRICS)
            lines.append(f"| {row} | {reading} | {cells} | {share} |")
    return "\n".join(lines) + "\n"


def _values(by_seed: Sequence[Figures], row: str, reading: str) -> Mapping[str, np.ndarray]:
    return {name: np.array([figures[row][reading][name] for figures in by_seed]) for name in METRICS}


def _told(values_S: np.ndarray) -> str:
    """Return mean and sample deviation."""
    deviation = f" ± {values_S.std(ddof=1):.4f}" if len(values_S) > 1 else ""
    return f"{values_S.mean():.4f}{deviation}"


if __name__ == "__main__":
    main()
