"""Whole runs of id-based models on the toy: they learn the known answer and resume exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import training
from tests.factor_runs import FAMILIES, OWN_ENCODERS, config_of, run
from training.config import FactorRun, load_config
from training.factors.gate import ServingError
from training.factors.serving import check_servable
from training.trainer import Interrupted

SHIPPED = [
    path
    for path in sorted((Path(training.__file__).parent / "configs").glob("*.toml"))
    if isinstance(load_config(path), FactorRun)
]


@pytest.mark.parametrize("kind", [*FAMILIES, *OWN_ENCODERS])
def test_every_family_learns_the_toys_known_answer(kind, toy_dataset, tmp_path):
    trained = run(config_of(kind), toy_dataset, tmp_path)
    # At random a third of the items come first; the right style has a third of them, less those seen.
    assert trained.metrics["test"]["recall@20"] > 0.8
    assert trained.metrics["test_from_history"]["recall@20"] > 0.8
    assert [report.name for report in trained.state.reports][-1] in ("fit", "final", "network", "solve")


@pytest.mark.parametrize("kind", ["ultragcn", "invrl", "cb2cf", "macridvae"])
def test_a_run_that_is_stopped_anywhere_and_resumed_goes_the_same_way_bit_by_bit(kind, toy_dataset, tmp_path):
    config = config_of(kind, "optim.epochs=4", "eval.every_epochs=2")
    whole = run(config, toy_dataset, tmp_path / "whole")
    calls = 0

    def every_fifth_step() -> bool:
        nonlocal calls
        calls += 1
        return calls % 5 == 0

    for _ in range(200):
        try:
            parts = run(config, toy_dataset, tmp_path / "parts", resume=True, should_stop=every_fifth_step)
            break
        except Interrupted:
            continue
    for name, value in whole.served.model.state_dict().items():
        assert torch.equal(value, parts.served.model.state_dict()[name]), name
    assert parts.metrics == whole.metrics


def test_a_split_by_users_reads_held_out_users_from_their_histories(toy_dataset, tmp_path):
    trained = run(config_of("ultragcn", split="users"), toy_dataset, tmp_path)
    assert trained.metrics["test"] == trained.metrics["test_from_history"]
    assert trained.metrics["test"]["recall@20"] > 0.8


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_trains(path, toy_dataset, tmp_path):
    short = ["optim.max_steps=5", "optim.batch_size=64", "split.kind=interactions"]
    if "popularity" not in path.stem:
        short.append("model.dim=8")
    if "invrl" in path.stem:
        short += ["model.iterations=1", "model.partition.rounds=1", "model.masking.epochs=1"]
    if "cb2cf" in path.stem:
        short += ["model.network.epochs=1"]
    if "pamd" in path.stem:
        short += ["model.pretraining.max_steps=5"]
    if "corr-ae" in path.stem:
        short += ["features.pretraining.max_steps=5"]
    trained = run(load_config(path, short), toy_dataset, tmp_path)
    is_solved = [report.name for report in trained.state.reports] == ["solve"]
    assert trained.state.reports[0].steps == (0 if is_solved else 5)


def test_figures_that_are_too_low_refuse_the_bundle_and_say_so(toy_dataset, tmp_path):
    config = config_of("duif", "optim.max_steps=1", "serving.min_fold_in=1.0")
    served = run(config, toy_dataset, tmp_path).served
    figures = served.fold_in_figures.model_copy(update={"recall": 0.1, "recall_of_known": 0.2})
    with pytest.raises(ServingError, match=r"from their history have recall@20 0\.1000, from their learned"):
        check_servable(replace(served, fold_in_figures=figures), config)
    exposed = replace(served, exposure_ratio=0.1, imputation="ridge", cold=None)
    with pytest.raises(ServingError, match=r"\(ridge\) have 0\.10 times their share"):
        check_servable(replace(exposed, fold_in_figures=figures.model_copy(update={"recall": 0.2})), config)
