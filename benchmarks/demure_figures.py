"""What the paper of Demure shows of its network in pictures (Yao et al., Figures 4 to 6), on data that are here.

    python -m benchmarks.demure_figures --data DIR --out out/figures --seeds 0,1,2

Base and Demure are trained once for each seed on one split, so that runs differ by chance alone. On the test users:

* `ratings` (Figure 4): interest scores of past items (Eq. 7, of the first item to be found), brought to 0..1 within a
  history and times 5, against the ratings. Two numbers beside the picture, as a difference says little where nearly all
  ratings are alike: the mean difference, and how often an item with a higher rating has the higher score.
* `map` (Figure 5): t-SNE of five users and their items. The number beside it is of fifty users, in the space of the
  vectors: how many of an item's ten nearest among all their past items (by angle) are of the same user.
* `attention` (Figure 6): the variance of attention weights over runs, and within a user.

Everything is in `--out`: checkpoints, from which the same command goes on, figures.json and the pictures. Needs
`pip install '.[report]'`.

Legend: `R` runs, `B` test users, `L` history length, `M` modalities, `D` vector width, `N` items, `X` some pairs.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.dataset import Dataset
from index.metrics import mean_and_deviation
from training.config import ContentRun, load_config
from training.data.catalogue import Catalogue
from training.evaluate import pad_histories
from training.models.demure import Demure
from training.progress import Unwatched
from training.trainer import Trained, train
from training.views import interest_gradients

CONFIGS = {"Base": Path("training/configs/ml1m-base.toml"), "Demure": Path("training/configs/ml1m-demure.toml")}
HIGHEST = 5.0
"""Of ratings; scores are brought to this scale."""
SHOWN_USERS = 20
"""In the picture of ratings."""
MAPPED_USERS = 5
"""In the t-SNE."""
JUDGED_USERS = 50
"""Whose neighbours are counted: of five it is chance."""
NEIGHBOURS = 10

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Read:
    """What one trained network makes of the test users."""

    items_BL: NDArray[np.int64]
    mask_BL: NDArray[np.bool_]
    user_BD: Matrix
    vectors_ND: Matrix
    interest_BL: Matrix
    """Eq. 7."""
    item_weight_BL: Matrix
    """Attention to past items; sums to 1 over a history."""
    slot_weight_NM: Matrix
    """Attention to an item's modalities; sums to 1 over those that are there."""
    present_NM: NDArray[np.bool_]


def main() -> None:
    """Train what is not trained yet, draw, and print a table of means and deviations over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="For both networks.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset = Dataset.open(arguments.data)
    seeds = [int(one) for one in arguments.seeds.split(",")]
    runs: dict[str, list[Read]] = {}
    ratings_BL = np.zeros(0)
    for name, path in CONFIGS.items():
        runs[name] = []
        for seed in seeds:
            config = load_config(path, [*arguments.overrides, "split.seed=0", f"seed={seed}"])
            assert isinstance(config, ContentRun)
            folder = arguments.out / "checkpoints" / f"{config.name}-{seed}"
            trained = train(config, dataset, checkpoints=folder, observer=Unwatched(), resume=True)
            runs[name].append(read(trained, dataset))
            ratings_BL = ratings_of(dataset, trained, runs[name][-1])
    figures = {name: figures_of(reads, ratings_BL) for name, reads in runs.items()}
    document = {"seeds": seeds, "overrides": arguments.overrides, "figures": figures}
    (arguments.out / "figures.json").write_text(json.dumps(document, indent=2) + "\n")
    sys.stdout.write(markdown(figures))
    first = {name: reads[0] for name, reads in runs.items()}
    draw_ratings(first, ratings_BL, arguments.out / "ratings.png")
    draw_map(first, arguments.out / "map.png")


def read(trained: Trained, dataset: Dataset) -> Read:
    """Return what the network makes of the test users and of all items."""
    model, test = trained.model, trained.split.test
    assert isinstance(model, Demure), "the figures are of this network"
    items_BL, mask_BL = pad_histories(test, slice(None), length=model.history_length)
    with torch.no_grad():
        features, present_NM = Catalogue(dataset).inputs()
        states_NMS = model.project(features, present_NM)
        vectors_ND = model.fuse(states_NMS, present_NM)
        slot_weight_NM = model.modality_pool.weights(states_NMS, present_NM)
    mask = torch.from_numpy(mask_BL)
    past_BLD = vectors_ND[torch.from_numpy(items_BL)].requires_grad_()
    user_BD = model.encode_users(past_BLD, mask).squeeze(1)
    target_BD = vectors_ND[torch.from_numpy(test.targets_BT[:, 0])]
    interest_BL = interest_gradients(user_BD, target_BD, past_BLD).mean(dim=-1)
    with torch.no_grad():
        item_weight_BL = model.item_pool.weights(past_BLD, mask)
    return Read(
        items_BL,
        mask_BL,
        _array(user_BD),
        _array(vectors_ND),
        _array(interest_BL),
        _array(item_weight_BL),
        _array(slot_weight_NM),
        present_NM.numpy(),
    )


def ratings_of(dataset: Dataset, trained: Trained, seen: Read) -> Matrix:
    """Return the rating of each past item `[B, L]`, NaN where there is none.

    Raises:
        ValueError: The data set has no ratings.
    """
    table = dataset.interactions()
    if "rating" not in table.schema.names:
        raise ValueError("interactions.parquet has no column 'rating'")
    row_of = {name: row for row, name in enumerate(dataset.item_ids)}
    columns = (table[name].to_pylist() for name in ("user_id", "item_id", "rating"))
    rating_of = {(user, row_of[item]): rating for user, item, rating in zip(*columns, strict=True)}
    users = [trained.interactions.user_ids[user] for user in trained.split.test.users_B]
    ratings_BL = np.full(seen.items_BL.shape, np.nan)
    for place in zip(*np.nonzero(seen.mask_BL), strict=True):
        ratings_BL[place] = rating_of[users[place[0]], int(seen.items_BL[place])]
    return ratings_BL


def figures_of(reads: Sequence[Read], ratings_BL: Matrix) -> dict[str, tuple[float, float | None]]:
    """Return mean and deviation over runs of what one run can say, and what only all of them can, without deviation."""
    by_run = [
        {
            "score x 5 against rating, mean difference": float(np.nanmean(differences(one, ratings_BL))),
            "higher rating has the higher score": concordance(one, ratings_BL),
            "of an item's ten nearest, of the same user": own_neighbours(one),
            "attention to items, variance within a user": within(one.item_weight_BL, one.mask_BL),
            "attention to modalities, variance within an item": within(one.slot_weight_NM, one.present_NM),
        }
        for one in reads
    ]
    figures: dict[str, tuple[float, float | None]] = {**mean_and_deviation(by_run)}
    if len(reads) > 1:
        items_RBL = np.stack([one.item_weight_BL for one in reads])
        slots_RNM = np.stack([one.slot_weight_NM for one in reads])
        over = float(items_RBL.var(axis=0, ddof=1)[reads[0].mask_BL].mean())
        figures["attention to items, variance over runs"] = over, None
        used_N = np.unique(reads[0].items_BL[reads[0].mask_BL])
        over = float(slots_RNM.var(axis=0, ddof=1)[used_N][reads[0].present_NM[used_N]].mean())
        figures["attention to modalities, variance over runs"] = over, None
    return figures


def differences(one: Read, ratings_BL: Matrix) -> Matrix:
    """Return |score x 5 - rating| `[B, L]`, scores brought to 0..1 within a history; NaN where nothing is."""
    scores_BL = np.where(one.mask_BL, one.interest_BL, np.nan)
    low_B1, high_B1 = np.nanmin(scores_BL, axis=1, keepdims=True), np.nanmax(scores_BL, axis=1, keepdims=True)
    span_B1 = np.where(high_B1 > low_B1, high_B1 - low_B1, 1.0)
    apart_BL: Matrix = np.abs((scores_BL - low_B1) / span_B1 * HIGHEST - ratings_BL)
    return apart_BL


def concordance(one: Read, ratings_BL: Matrix) -> float:
    """Return how often, of two past items of a user with unlike ratings, the higher one has the higher score.

    A half is chance; users count alike.
    """
    shares = []
    for scores_L, ratings_L in zip(one.interest_BL, ratings_BL, strict=True):
        higher_LL = ratings_L[:, None] > ratings_L[None, :]  # false where a rating is NaN
        if higher_LL.any():
            above_LL = np.sign(scores_L[:, None] - scores_L[None, :])
            shares.append(float((above_LL[higher_LL] + 1).mean() / 2))
    return float(np.mean(shares))


def within(weights_XY: Matrix, mask_XY: NDArray[np.bool_]) -> float:
    """Return the mean over rows of the variance of a row's weights, where it has more than one."""
    rows = [weights[mask] for weights, mask in zip(weights_XY, mask_XY, strict=True)]
    return float(np.mean([row.var() for row in rows if len(row) > 1]))


def own_neighbours(one: Read) -> float:
    """Return which share of a past item's nearest is of the same user; the same item of another user is none."""
    vectors_XD, user_X, item_X = _items_of(one, _users(one, JUDGED_USERS))
    unit_XD = vectors_XD / np.linalg.norm(vectors_XD, axis=1, keepdims=True)
    angle_XX = np.where(item_X[:, None] == item_X[None, :], -np.inf, unit_XD @ unit_XD.T)
    nearest_XK = np.argsort(-angle_XX, axis=1)[:, :NEIGHBOURS]
    return float((user_X[nearest_XK] == user_X[:, None]).mean())


def draw_ratings(reads: Mapping[str, Read], ratings_BL: Matrix, path: Path) -> None:
    """Draw differences of some users' scores and ratings, dark where they are large."""
    plt = _plots()
    figure, axes = plt.subplots(1, len(reads), figsize=(5 * len(reads), 4.5), layout="constrained")
    images = []
    for axis, (name, one) in zip(axes, reads.items(), strict=True):
        users = _users(one, SHOWN_USERS)
        shown = differences(one, ratings_BL)[users]
        images.append(axis.imshow(shown, cmap="Blues", vmin=0, vmax=HIGHEST, aspect="auto"))
        axis.set(title=name, xlabel="past items, oldest first", ylabel="users", xticks=[], yticks=[])
    figure.colorbar(images[0], ax=axes, label="|interest score x 5 - rating|")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_map(reads: Mapping[str, Read], path: Path) -> None:
    """Draw the t-SNE of some users (stars) and their past items."""
    from sklearn.manifold import TSNE

    plt = _plots()
    figure, axes = plt.subplots(1, len(reads), figsize=(5 * len(reads), 4.5), layout="constrained")
    for axis, (name, one) in zip(axes, reads.items(), strict=True):
        users = _users(one, MAPPED_USERS)
        vectors_XD, user_X, _ = _items_of(one, users)
        points = np.concatenate([vectors_XD, one.user_BD[users]])
        places = TSNE(metric="cosine", init="random", perplexity=15, random_state=0).fit_transform(points)
        items, stars = places[: len(user_X)], places[len(user_X) :]
        for number, user in enumerate(users):
            own = user_X == user
            axis.scatter(*items[own].T, s=14, color=f"C{number}", label=f"user {number + 1}")
            axis.scatter(*stars[number], s=140, marker="*", color=f"C{number}", edgecolors="black")
        axis.set(title=name, xticks=[], yticks=[])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=MAPPED_USERS)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def markdown(figures: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> str:
    """Return the table."""
    lines = [f"|  | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for name in next(iter(figures.values())):
        cells = (_told(*of_network[name]) for of_network in figures.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _users(one: Read, most: int) -> NDArray[np.int64]:
    """Return some users with whole histories, the same of every run."""
    whole = np.flatnonzero(one.mask_BL.all(axis=1))
    return np.sort(np.random.default_rng(0).permutation(whole)[:most])


def _items_of(one: Read, users: NDArray[np.int64]) -> tuple[Matrix, NDArray[np.int64], NDArray[np.int64]]:
    """Return the vectors of these users' past items `[X, D]`, whose each is, and which it is."""
    item_X = one.items_BL[users].ravel()
    return one.vectors_ND[item_X], np.repeat(users, one.items_BL.shape[1]), item_X


def _plots() -> ModuleType:
    """Return matplotlib's plots, drawn to files."""
    import_module("matplotlib").use("agg")
    return import_module("matplotlib.pyplot")


def _array(tensor: Tensor) -> Matrix:
    return tensor.detach().to(torch.float64).numpy()


def _told(mean: float, deviation: float | None) -> str:
    return f"{mean:.3g}" if deviation is None else f"{mean:.3g} ± {deviation:.2g}"


if __name__ == "__main__":
    main()
