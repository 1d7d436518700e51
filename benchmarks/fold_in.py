"""How users without a vector and items without a history are served, by every option: recall and exposure.

    python -m benchmarks.fold_in DIR training/configs/tiktok-mf-bpr.toml --seeds 0,1 --json table.json

One model is trained for each seed. Users: recall of test users by their learned vector and read from their history,
each by an encoder that was fitted on the users of other folds. Items: a tenth is taken for new; what stands for their
learned numbers is fitted on the others. The users had learned from these items, so recall of them is an upper bound.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.factor_data import FactorInputs
from index.dataset import Dataset
from index.metrics import pad_targets
from training.checkpoint import read_checkpoint
from training.config import FactorRun, load_config
from training.data.split import HeldOut
from training.evaluate import mask_seen, means
from training.factors.cold import (
    TOP,
    balancing_shift,
    design,
    exposure_ratio,
    fit_ridge,
    mean_weights,
    shift_direction,
)
from training.factors.encoders import MeanEncoder
from training.factors.fold_in import ItemTables, fit_affine, implicit_als, pool
from training.factors.gate import rank
from training.factors.imputers import LinearImputer, NearestImputer
from training.factors.new_users import fit_fold_in, learn_fold_in
from training.factors.plan import Plan, imputer_items
from training.factors.trainer import train_factors
from training.models import LearnedUsers
from training.progress import Unwatched
from training.trainer import run_digest

FOLDS = 2
CUTOFFS = (10, 20)
ALS = [(w0, ridge) for w0 in (1e-2, 1e-1, 1.0) for ridge in (1e-1, 1.0, 10.0)]
"""Of Q'Q, and of the mean of its diagonal."""

Figures = dict[str, dict[str, float]]
"""By option, then by figure."""


def main() -> None:
    """Train, measure every option, and print a table of means over the seeds."""
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
    tables: dict[str, list[Figures]] = {"users": [], "items": []}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            config = load_config(arguments.config, [*arguments.overrides, f"seed={seed}"])
            assert isinstance(config, FactorRun), "content models have neither learned users nor learned items"
            folder = (arguments.checkpoints or Path(temporary)) / f"{config.name}-{seed}"
            trial = Trial(config, dataset, folder)
            tables["users"].append(trial.users())
            tables["items"].append(trial.items())
    averages = {name: mean_of(figures) for name, figures in tables.items()}
    for table in averages.values():
        columns = list(next(iter(table.values())))
        sys.stdout.write("".join(f"{word:>22}" for word in ("", *columns)) + "\n")
        for option, figures in table.items():
            sys.stdout.write(f"{option:>22}" + "".join(f"{figures[column]:22.4f}" for column in columns) + "\n")
    if arguments.json is not None:
        document = {"config": arguments.config.name, "overrides": arguments.overrides, "seeds": seeds}
        arguments.json.write_text(json.dumps({**document, **averages, "by_seed": tables}, indent=2) + "\n")


def mean_of(tables: Sequence[Figures]) -> Figures:
    """Return the mean of the same figures over seeds."""
    return {
        option: {name: float(np.mean([table[option][name] for table in tables])) for name in figures}
        for option, figures in tables[0].items()
    }


class Trial:
    """One trained model."""

    def __init__(self, config: FactorRun, dataset: Dataset, folder: Path) -> None:
        inputs = FactorInputs.make(config, dataset)
        split, data = inputs.split, inputs.data
        assert np.isin(split.test.users_B, split.train_users).all(), (
            "users without a learned vector: nothing to compare"
        )
        train_factors(config, dataset, checkpoints=folder, observer=Unwatched(), resume=True)
        found = read_checkpoint(folder, run=run_digest(config, dataset))
        assert found is not None, "a finished run leaves its last checkpoint"
        self.config, self.valid, self.test, self.data = config, split.valid, split.test, data
        model = Plan(config, data, inputs.catalogue.features).final_model(found.carry).requires_grad_(False)
        assert isinstance(model, LearnedUsers), "no vector is learned of a user: nothing to compare"
        self.model = model
        self.items_ID = self.model.items(self.data.content_IR)
        self.users_UD = self.model.users(torch.arange(self.data.num_users))

    @torch.no_grad()
    def users(self) -> Figures:
        """Return the recall of test users by every way to read them."""
        length, items_ID, test = self.config.model.history_length, self.items_ID, self.test
        queries = {
            "learned": self.users_UD[torch.from_numpy(test.users_B)],
            "mean": pool(items_ID, test.histories, length=length),
            "beta": pool(items_ID, test.histories, length=length, degree_I=self.data.degree_I),
            "beta, then map": torch.zeros(len(test), self.model.dim),
            "als": self._als(),
            **{kind: torch.zeros(len(test), self.model.dim) for kind in ("affine", "softmax", "attention")},
        }
        fold_B = np.random.default_rng([self.config.seed, 29]).integers(0, FOLDS, len(test))
        for fold in range(FOLDS):
            judged = _part(test, np.flatnonzero(fold_B == fold))
            rows_B = torch.from_numpy(np.flatnonzero(fold_B == fold))
            closed = fit_fold_in(self.model, self.data, self.config, ItemTables(items_ID), gate=judged)
            encoders = {"affine": closed}
            encoders["softmax"] = learn_fold_in(
                "softmax", closed, self.data, self.config, ItemTables(items_ID), gate=judged
            )
            encoders["attention"] = learn_fold_in(
                "attention", closed, self.data, self.config, ItemTables(items_ID), gate=judged
            )
            for kind, encoder in encoders.items():
                queries[kind][rows_B] = encoder.queries(ItemTables(items_ID), judged.histories)[:, 0]
            users = np.setdiff1d(self.data.users, judged.users_B)
            pooled_UD = pool(items_ID, self.data.histories(users), length=length, degree_I=self.data.degree_I)
            target_UD = self.users_UD[torch.from_numpy(users)]
            beta = fit_affine(pooled_UD, target_UD, history_length=length, seed=self.config.seed).encoder
            assert isinstance(beta, MeanEncoder)
            queries["beta, then map"][rows_B] = queries["beta"][rows_B] @ beta.map_DD + beta.offset_D
        return {kind: self._ranked(queries_BD, items_ID, test) for kind, queries_BD in queries.items()}

    def _als(self) -> Tensor:
        """Return ALS' test users, with the weights that find most of the validation users."""
        scale, length = float(self.items_ID.square().sum() / self.items_ID.shape[1]), self.config.model.history_length

        def users(held_out: HeldOut, w0: float, ridge: float) -> Tensor:
            return implicit_als(self.items_ID, held_out.histories, length=length, w0=w0, ridge=ridge * scale)

        best = max(ALS, key=lambda one: self._ranked(users(self.valid, *one), self.items_ID, self.valid)["recall@20"])
        return users(self.test, *best)

    @torch.no_grad()
    def items(self) -> Figures:
        """Return what becomes of a tenth of the items, taken for new, by every imputation, unmoved and balanced."""
        data, model, seed = self.data, self.model, self.config.seed
        learned_IF = model.learned()
        if not learned_IF.shape[1]:  # nothing is learned of an item, so nothing has to be guessed
            return {}
        fitted, held = imputer_items(data, seed=seed)
        design_IZ = design(data)
        imputers: dict[str, LinearImputer | NearestImputer] = {
            "mean": LinearImputer(data.widths, mean_weights(design_IZ.shape[1], learned_IF, fitted)),
            "ridge": LinearImputer(data.widths, fit_ridge(design_IZ, learned_IF, fitted, seed=seed)),
            **{
                f"knn {count}": NearestImputer(data.widths, data.content_IR[fitted], learned_IF[fitted], count=count)
                for count in (5, 20, 100)
            },
        }
        features = torch.split(data.content_IR[held], data.widths, dim=-1)
        direction_F = shift_direction(model, self.users_UD[torch.from_numpy(data.users), None], self.items_ID)
        figures: Figures = {"not new": self._with(self.items_ID[held], held)}
        for name, imputer in imputers.items():
            imputed_HF = imputer(features, data.presence_IM[held])

            def moved(shift: float, imputed_HF: Tensor = imputed_HF) -> Tensor:
                return self.items_ID[held] + model.as_items(imputed_HF + direction_F * shift - learned_IF[held])

            figures[name] = self._with(moved(0.0), held)
            shift = balancing_shift(lambda size: self._with(moved(size), held, exposure_only=True)["exposure"])
            figures[f"{name}, balanced"] = self._with(moved(shift), held)
        return figures

    def _with(self, new_HD: Tensor, held: Tensor, *, exposure_only: bool = False) -> dict[str, float]:
        """Return the figures of a catalogue in which some items have the vectors of new ones."""
        items_ID, users = self.items_ID.clone(), self.data.users[::5]
        items_ID[held] = new_HD
        queries_UD, histories = self.users_UD[torch.from_numpy(users)], self.data.histories(users)
        exposure = exposure_ratio(self.model.score, queries_UD[:, None], items_ID, held, histories)
        if exposure_only:
            return {"exposure": exposure}
        is_held_I = np.isin(np.arange(len(items_ID)), held.numpy())
        new, old = (_targets(self.test, keep) for keep in (is_held_I, ~is_held_I))
        place_I = np.cumsum(is_held_I) - 1
        among = HeldOut(
            new.users_B,
            tuple(place_I[one[is_held_I[one]]] for one in new.histories),
            np.where(new.targets_BT >= 0, place_I[new.targets_BT], -1),
        )
        scores_UI = queries_UD @ items_ID.T
        mask_seen(scores_UI, histories)
        listed_UK = torch.from_numpy(is_held_I)[torch.topk(scores_UI, min(TOP, len(items_ID))).indices]
        query = {id(one): self.users_UD[torch.from_numpy(one.users_B)] for one in (new, old, self.test)}
        return {
            "among new @10": self._ranked(query[id(new)], new_HD, among)["recall@10"],
            "all @20": self._ranked(query[id(self.test)], items_ID, self.test)["recall@20"],
            "known targets @20": self._ranked(query[id(old)], items_ID, old)["recall@20"],
            "new targets @20": self._ranked(query[id(new)], items_ID, new)["recall@20"],
            "exposure": exposure,
            "users shown any": float(listed_UK.any(dim=-1).float().mean()),
        }

    def _ranked(self, queries_BD: Tensor, items_ID: Tensor, users: HeldOut) -> dict[str, float]:
        judged = rank(
            self.model.score, queries_BD[:, None], items_ID, users, cutoffs=CUTOFFS, seen=self.config.eval.seen
        )
        found = means(judged)
        return {name: found[name] for name in ("recall@10", "recall@20", "ndcg@20")}


def _part(users: HeldOut, rows: NDArray[np.int64]) -> HeldOut:
    return HeldOut(users.users_B[rows], tuple(users.histories[row] for row in rows), users.targets_BT[rows])


def _targets(users: HeldOut, keep_I: NDArray[np.bool_]) -> HeldOut:
    """Return the users who have targets among some items, and these targets."""
    targets = [row[(row >= 0) & keep_I[row]] for row in users.targets_BT]
    rows = np.flatnonzero([len(row) > 0 for row in targets])
    return HeldOut(
        users.users_B[rows], tuple(users.histories[row] for row in rows), pad_targets([targets[row] for row in rows])
    )


if __name__ == "__main__":
    main()
