"""Whole runs on the toy data: they learn the known answer, repeat, stop and go on exactly."""

from pathlib import Path
from typing import get_args

import pytest
import torch

import training
from index.dataset import Dataset
from training.checkpoint import CheckpointError
from training.config import ContentRun, RunConfig, load_config, parse_config
from training.models import ContentFamily
from training.schedule import Schedule
from training.trainer import Interrupted, TrainingError, train

FAMILIES = [family.model_fields["kind"].default for family in get_args(ContentFamily)]
WITH_IDS = ["demure-ids", "sasrec-ids"]
SHIPPED = [
    path
    for path in sorted((Path(training.__file__).parent / "configs").glob("*.toml"))
    if isinstance(load_config(path), ContentRun)
]
SEVERAL_INTERESTS = {
    "mind": ["model.interests=2", "optim.epochs=16"],
    "comirec_dr": ["model.interests=2", "optim.epochs=16", "pairs.item_dropout=0.3"],
    "mtin": ["model.interests=2", "optim.epochs=16"],
}
"""Routing to more interests than the toy's users have, which is one, takes longer and finds less."""
SMALL = ["model.dim=16", "model.history_length=10", "optim.batch_size=64"]


class Recorder:
    def __init__(self):
        self.losses, self.validations, self.first = {}, {}, None

    def started(self, *, step, total_steps, batch_size):
        self.first, self.total_steps = step, total_steps

    def stepped(self, step, losses):
        self.losses[step] = losses

    def validated(self, step, metrics, *, is_best):
        self.validations[step] = metrics


@pytest.fixture(autouse=True)
def every_step_is_reported(monkeypatch):
    monkeypatch.setattr("training.trainer._REPORT_EVERY_STEPS", 1)


def config_of(kind: str, *overrides: str) -> RunConfig:
    kind, _, ids = kind.partition("-")
    return parse_config(f'[model]\nkind = "{kind}"\nids = {str(bool(ids)).lower()}\n', [*SMALL, *overrides])


def run(config, folder, checkpoints, **options):
    recorder = Recorder()
    trained = train(config, Dataset.open(folder), checkpoints=checkpoints, observer=recorder, **options)
    return trained, recorder


@pytest.mark.parametrize("kind", [*FAMILIES, *WITH_IDS])
def test_every_family_learns_the_toys_known_answer(kind, toy_dataset, tmp_path):
    config = config_of(kind, "optim.epochs=8", "eval.every_epochs=4", "optim.lr=5e-3", *SEVERAL_INTERESTS.get(kind, []))
    trained, recorder = run(config, toy_dataset, tmp_path)
    # A random order finds a third of the targets in 20 of 60 items, popularity 0.44, the right style all of them.
    assert trained.test_metrics["recall@20"] > (0.8 if kind in SEVERAL_INTERESTS else 0.9)
    assert recorder.losses[recorder.total_steps]["softmax"] < recorder.losses[1]["softmax"]
    assert not trained.model.training
    assert [modality.dim for modality in trained.model.modalities] == [32, 24, 3]


@pytest.mark.parametrize("kind", [*FAMILIES, *WITH_IDS])
def test_a_run_that_is_stopped_and_resumed_goes_the_same_way_bit_by_bit(kind, toy_dataset, tmp_path):
    special = "model.augment.warmup_epochs=0.5" if kind.startswith("demure") else "pairs.item_dropout=0.2"
    config = config_of(kind, "optim.max_steps=14", "eval.every_epochs=0.5", special)
    whole, expected = run(config, toy_dataset, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="stopped after step 10"):
        run(config, toy_dataset, tmp_path / "parts", should_stop=lambda: next(calls) == 9)
    resumed, rest = run(config, toy_dataset, tmp_path / "parts", resume=True)
    assert rest.first == 10
    assert {step: expected.losses[step] for step in range(11, 15)} == rest.losses
    assert {step: metrics for step, metrics in expected.validations.items() if step > 10} == rest.validations
    assert resumed.test_metrics == whole.test_metrics
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(toy_dataset, tmp_path):
    losses = [
        run(config_of("demure", "optim.max_steps=6", f"seed={seed}"), toy_dataset, tmp_path / str(place))[1].losses
        for place, seed in enumerate((3, 3, 4))
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_trains(path, toy_dataset, tmp_path):
    config = load_config(path, ["optim.max_steps=20", "eval.patience=20", *SMALL])
    trained, recorder = run(config, toy_dataset, tmp_path)
    assert trained.state.step == 20
    assert all(torch.isfinite(torch.tensor(list(losses.values()))).all() for losses in recorder.losses.values())


@pytest.mark.parametrize(
    "options",
    [
        ["negatives.kind=sampled", "negatives.law=log_uniform", "negatives.count=40", "negatives.log_q=true"],
        ["optim.precision=bfloat16", "optim.schedule=cosine", "optim.warmup_steps=3", "model.ids=true"],
        ["conditioning.kind=scale", "model.pooling=column", "model.scale=none", "model.feed_forward=linear"],
    ],
    ids=["sampled", "bfloat16", "readings"],
)
def test_options_of_a_run_give_finite_losses_that_fall(options, toy_dataset, tmp_path):
    config = config_of("demure", "optim.max_steps=30", "model.augment.warmup_epochs=0.3", *options)
    _, recorder = run(config, toy_dataset, tmp_path)
    assert recorder.losses[30]["softmax"] < recorder.losses[1]["softmax"]
    assert "contrast" in recorder.losses[30]


def test_training_stops_when_validation_no_longer_improves_and_the_best_is_kept(toy_dataset, tmp_path):
    config = config_of("base", "optim.epochs=50", "optim.lr=1e-12", "eval.patience=2", "eval.every_epochs=0.2")
    trained, recorder = run(config, toy_dataset, tmp_path)
    steps = sorted(recorder.validations)
    assert trained.state.best_step == steps[0]
    assert len(steps) == 3
    assert trained.valid_metrics == recorder.validations[steps[0]]


def test_a_loss_that_is_not_finite_ends_the_run_and_says_why(toy_dataset, tmp_path):
    config = config_of("base", "optim.lr=1e30", "optim.max_steps=30", "optim.clip_norm=1e30")
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+: lower optim.lr"):
        run(config, toy_dataset, tmp_path)


def test_a_checkpoint_fits_one_configuration_only(toy_dataset, tmp_path):
    with pytest.raises(Interrupted):
        run(config_of("base", "optim.max_steps=5"), toy_dataset, tmp_path, should_stop=lambda: True)
    with pytest.raises(CheckpointError, match="another configuration"):
        run(config_of("base", "optim.max_steps=6"), toy_dataset, tmp_path, resume=True)
    _, fresh = run(config_of("base", "optim.max_steps=6"), toy_dataset, tmp_path)
    assert fresh.first == 0


def test_the_learning_rate_rises_then_falls_to_nothing():
    def rates(schedule):
        config = config_of("base", f"optim.schedule={schedule}", "optim.warmup_steps=2", "optim.lr=1.0")
        plan = Schedule.of(config, steps_per_epoch=1)
        return [round(plan.lr(step), 3) for step in (0, 1, 2, 11, 20)]

    assert rates("constant") == [0.5, 1, 1, 1, 1]
    assert rates("linear") == [0.5, 1, 1, 0.5, 0]
    assert rates("cosine") == [0.5, 1, 1, 0.5, 0]


def test_training_leaves_the_callers_chance_alone(toy_dataset, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(config_of("base", "optim.max_steps=2"), toy_dataset, tmp_path)
    assert torch.equal(torch.rand(3), expected)
