"""What goes wrong while a bundle is made leaves nothing in the store."""

import subprocess

import numpy as np
import pytest
import torch

from api_schemas.manifest import Modality
from index.dataset import Dataset
from index.store import ArtifactStore
from training import publish
from training.config import parse_config
from training.faithfulness import JudgedUsers
from training.golden import ParityError
from training.models import FeatureSpec

CONFIG = parse_config('name = "toy"\n[model]\nkind = "base"\ndim = 4\nhistory_length = 3\n')


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def given(toy_dataset) -> dict:
    dataset = Dataset.open(toy_dataset)
    modalities = tuple(Modality(name=one.name, dim=one.dim) for one in dataset.manifest.modalities)
    return {
        "model": CONFIG.model.build(FeatureSpec(modalities)),
        "config": CONFIG,
        "dataset": dataset,
        "metrics": {"test": {"recall@20": 0.5}},
        "judged": JudgedUsers([], []),
    }


def left_behind(store: ArtifactStore) -> list[str]:
    return [path.name for path in store.root.glob("versions/*")]


def test_a_model_with_nan_is_refused_by_the_parameters_name(store, given):
    with torch.no_grad():
        given["model"].item_pool.f.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"item_pool\.f\.weight"):
        publish.publish_bundle(store, **given)
    assert left_behind(store) == []


def test_a_metric_that_is_no_number_is_refused_by_name(store, given):
    given["metrics"] = {"test": {"recall@20": 0.5, "ndcg@20": float("nan")}}
    with pytest.raises(ValueError, match="ndcg@20 of test is nan"):
        publish.publish_bundle(store, **given)
    assert left_behind(store) == []


@pytest.mark.parametrize("step", ["make_golden", "check_parity", "measure_faithfulness"])
def test_a_failure_at_any_step_publishes_nothing(store, given, monkeypatch, step):
    def fail(*_, **__):
        raise ParityError("wrong")

    class Opened:
        @classmethod
        def open(cls, path):
            return cls()

        def check_golden(self) -> None: ...

    monkeypatch.setattr(publish, "export_graphs", lambda *_, **__: {})
    monkeypatch.setattr(publish, "make_golden", lambda *_: {"a": np.zeros(1)})
    monkeypatch.setattr(publish, "check_parity", lambda *_: None)
    monkeypatch.setattr(publish, "Bundle", Opened)
    monkeypatch.setattr(publish, step, fail)
    with pytest.raises(ParityError):
        publish.publish_bundle(store, **given)
    assert left_behind(store) == []
    assert store.list() == ()


def test_a_full_disk_publishes_nothing(store, given, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "export_graphs", full)
    with pytest.raises(OSError, match="No space"):
        publish.publish_bundle(store, **given)
    assert left_behind(store) == []


def test_outside_git_the_revision_is_the_packages_version(monkeypatch):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert publish.code_revision().startswith("prismrec ")


def test_the_revision_says_something(given):
    assert publish.code_revision()
