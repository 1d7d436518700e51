"""Whole runs of id-based models on the toy: they learn the known answer, resume exactly, and are exported."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch

import training
from index.bundle import Bundle
from index.dataset import Dataset
from index.features import from_dataset
from index.item_encoder import ItemEncoder
from index.store import ArtifactStore
from training.config import FactorRun, load_config, parse_config
from training.evaluate_bundle import judge_bundle, judged_users
from training.factors.bundle import write_tables
from training.factors.serving import ServingError, check_servable
from training.factors.trainer import train_factors
from training.models import FactorFamily
from training.publish import publish_bundle
from training.trainer import Interrupted

FAMILIES = [family.model_fields["kind"].default for family in get_args(FactorFamily)]

SHIPPED = [
    path
    for path in sorted((Path(training.__file__).parent / "configs").glob("*.toml"))
    if isinstance(load_config(path), FactorRun)
]

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
QUICK = {"invrl": ["model.iterations=1", "model.partition.rounds=2"], "cb2cf": ["model.network.epochs=10"]}


class Silent:
    def started(self, **_): ...
    def stepped(self, *_): ...
    def validated(self, *_, **__): ...


def config_of(kind: str, *overrides: str, split: str = "interactions"):
    batch_size = 64 if kind in ("ultragcn", "invrl") else 256
    text = RUN.format(kind=kind, split=split, batch_size=batch_size)
    return parse_config(text, [*QUICK.get(kind, []), *overrides])


def run(config, folder: Path, checkpoints: Path, **options):
    return train_factors(config, Dataset.open(folder), checkpoints=checkpoints, observer=Silent(), **options)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, toy_dataset, tmp_path_factory):
    config = config_of(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return config, run(config, toy_dataset, folder), toy_dataset, folder


def test_every_family_learns_the_toys_known_answer(made):
    _, trained, *_ = made
    # At random a third of the items come first; the right style has a third of them, less those seen.
    assert trained.metrics["test"]["recall@20"] > 0.8
    assert trained.metrics["test_from_history"]["recall@20"] > 0.8
    assert [report.name for report in trained.state.reports][-1] in ("fit", "final", "network")


def test_every_family_is_exported_with_what_it_learned(made):
    config, trained, data, folder = made
    check_servable(trained.served, config)
    dataset, store = Dataset.open(data), ArtifactStore(folder / "store")
    version = publish_bundle(
        store,
        model=trained.served.model,
        config=config,
        dataset=dataset,
        metrics=trained.metrics,
        judged=judged_users(dataset, trained.interactions, trained.split.test, config),
        extras=lambda path: write_tables(trained.served, path),
    )
    path, manifest = store.open_bundle(version)
    assert manifest.explanation_methods[0] == "decomposition"
    assert manifest.fold_in.recall >= 0.8 * manifest.fold_in.recall_of_known
    assert len(manifest.modality_mask) == (3 if config.model.kind == "invrl" else 0)
    bundle = Bundle.open(path)
    bundle.check_golden()
    encoder = ItemEncoder(bundle)
    inputs = from_dataset(dataset, slice(0, dataset.num_items), manifest.modalities)
    known = encoder.known_rows(pa.chunked_array([pa.array(dataset.item_ids, pa.string())]))
    np.testing.assert_allclose(encoder.encode(inputs, known).candidates, trained.served.items_ID, atol=2e-5)
    judged = judge_bundle(bundle, dataset, which="test", num_explained=0, on_progress=lambda *_: None)
    assert judged.metrics == pytest.approx(trained.metrics["test_from_history"], abs=1e-6)
    assert judged.metrics_of_known == pytest.approx(manifest.metrics, abs=1e-6)
    assert {entry.path for entry in manifest.files} >= {"stages.json", "known_users.arrow", "known_queries.npy"}


@pytest.mark.parametrize("kind", ["ultragcn", "invrl", "cb2cf"])
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
    short = ["optim.max_steps=5", "model.dim=8", "optim.batch_size=64", "split.kind=interactions"]
    if "invrl" in path.stem:
        short += ["model.iterations=1", "model.partition.rounds=1", "model.masking.epochs=1"]
    if "cb2cf" in path.stem:
        short += ["model.network.epochs=1"]
    trained = run(load_config(path, short), toy_dataset, tmp_path)
    assert trained.state.reports[0].steps == 5


def test_figures_that_are_too_low_refuse_the_bundle_and_say_so(toy_dataset, tmp_path):
    config = config_of("duif", "optim.max_steps=1", "serving.min_fold_in=1.0")
    served = run(config, toy_dataset, tmp_path).served
    figures = served.fold_in_figures.model_copy(update={"recall": 0.1, "recall_of_known": 0.2})
    with pytest.raises(ServingError, match=r"from their history have recall@20 0\.1000, from their learned"):
        check_servable(replace(served, fold_in_figures=figures), config)
    exposed = replace(served, exposure_ratio=0.1, imputation="ridge", cold=None)
    with pytest.raises(ServingError, match=r"\(ridge\) have 0\.10 times their share"):
        check_servable(replace(exposed, fold_in_figures=figures.model_copy(update={"recall": 0.2})), config)
