"""`prismrec-train run`, `evaluate` and `baselines` as people call them: exit codes, last lines, files, Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.dataset import Dataset
from index.store import ArtifactStore
from tests import toy
from training.cli import app

CONFIG = """
name = "small"
[model]
kind = "base"
dim = 8
history_length = 6
[optim]
batch_size = 64
epochs = 100000
[export]
faithfulness_users = 2
"""

SAMPLED = """
name = "sampled"
[model]
kind = "{kind}"
dim = 8
history_length = 10
[split]
kind = "folds"
[optim]
epochs = 20
lr = 3e-2
[eval.sampled]
n = 50
[export]
faithfulness_users = 1
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(CONFIG)
    return path


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_whose_bundle_is_evaluated_gives_the_figures_of_its_manifest(trained, tmp_path):
    report = tmp_path / "report.json"
    result = call(
        "evaluate", "--store", trained.store, "--bundle", trained.bundle, "--data", trained.dataset, "--json", report
    )
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    said = f"{trained.bundle} on 12 users (test): recall@10 {found['metrics']['recall@10']:.4f}"
    assert result.stdout.splitlines()[-1].startswith(said)
    _, manifest = ArtifactStore(trained.store).open_bundle(trained.bundle)
    # The graphs rank as the torch model did, in which the conditioning of inputs was not yet folded.
    assert found["metrics"] == pytest.approx(manifest.metrics, abs=1e-6)
    assert {method: values.model_dump() for method, values in manifest.faithfulness.items()} == found["faithfulness"]
    assert (found["family"], found["split"], found["num_users"]) == ("demure", "test", 12)


def test_a_bundle_is_judged_on_every_user_of_a_folder_that_it_never_saw(trained, tmp_path):
    data = toy.make_dataset(tmp_path / "data", num_users=40, seed=0)
    arguments = ("evaluate", "--store", trained.store, "--bundle", trained.bundle, "--data", data)
    refused = call(*arguments)
    assert refused.exit_code == 1
    assert "is not the folder that the bundle was trained on (toy)" in refused.stderr
    result = call(*arguments, "--split", "all", "--explained-users", "1", "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "report.json").read_text())["num_users"] == 40


@pytest.mark.parametrize("kind", ["base", "bpr_plus"])
def test_figures_of_a_sample_are_told_and_kept_beside_those_of_the_whole_catalogue(kind, toy_dataset, tmp_path):
    config, store = tmp_path / "sampled.toml", tmp_path / "store"
    config.write_text(SAMPLED.format(kind=kind))
    made = call("run", config, "--data", toy_dataset, "--store", store)
    assert made.exit_code == 0, made.output
    version = made.stdout.split()[-1]
    _, manifest = ArtifactStore(store).open_bundle(version)
    sampled = {name: value for name, value in manifest.metrics.items() if name.endswith("_of_50")}
    assert len(sampled) * 2 == len(manifest.metrics)
    assert sampled["recall@20_of_50"] >= manifest.metrics["recall@20"] > 0.5
    lines = made.stdout.splitlines()
    assert any(
        re.match(r"test: recall@20 [\d.]+, ndcg@20 [\d.]+, recall@50 [\d.]+, ndcg@50 [\d.]+$", line) for line in lines
    )
    assert any(line.startswith(f"test, sampled: recall@20_of_50 {sampled['recall@20_of_50']:.4f}, ") for line in lines)

    arguments = (
        "evaluate",
        "--store",
        store,
        "--bundle",
        version,
        "--data",
        toy_dataset,
        "--json",
        tmp_path / "r.json",
    )
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "r.json").read_text())
    ours = found["metrics_of_known"] or found["metrics"]  # the manifest has known users by their learned vectors
    assert ours == pytest.approx(manifest.metrics, abs=1e-6)
    told = f"sampled: recall@20_of_50 {found['metrics']['recall@20_of_50']:.4f}, recall@50_of_50 1.0000"
    assert told in result.stdout.splitlines()
    assert "_of_50" not in result.stdout.splitlines()[-1]


def test_a_bundle_that_is_not_there_is_an_error(trained):
    result = call("evaluate", "--store", trained.store, "--bundle", "bundle-none", "--data", trained.dataset)
    assert result.exit_code == 1
    assert "bundle-none" in result.stderr


def test_baselines_are_judged_on_the_same_users_for_each_seed(toy_dataset, tmp_path):
    result = call("baselines", "--data", toy_dataset, "--seeds", "0,1", "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    runs = json.loads((tmp_path / "b.json").read_text())
    assert {name: len(found) for name, found in runs.items()} == {"popularity": 2, "item_knn": 2, "ease": 2}
    last = result.stdout.splitlines()[-1]
    assert last.startswith("mean of 2, ease: recall@10 ")
    assert "recall@20 1.0000 +- 0.0000" in last


def test_baselines_are_judged_on_a_split_of_interactions_too(toy_dataset, tmp_path):
    result = call("baselines", "--data", toy_dataset, "--split", "interactions", "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "b.json").read_text())["ease"][0]["recall@20"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "optim.speed=3"), "optim.speed: Extra inputs are not permitted"),
        (("--set", "optim.lr"), "expected key=value"),
        (("--device", "cuda"), "this torch sees no GPU"),
        (("--device", "tpu"), "Invalid value for '--device'"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_wrong_usage_ends_with_two_and_makes_nothing(arguments, message, config, toy_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = call("run", config, "--data", toy_dataset, "--store", tmp_path / "store", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "store").exists()


def test_a_configuration_that_is_not_there_is_wrong_usage(toy_dataset, tmp_path):
    result = call("run", tmp_path / "none.toml", "--data", toy_dataset, "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert "none.toml: can not be read" in result.stderr


def test_seeds_that_are_no_numbers_are_wrong_usage(toy_dataset):
    assert call("baselines", "--data", toy_dataset, "--seeds", "0,x").exit_code == 2


def test_a_broken_data_set_ends_with_one_and_says_what_is_wrong(config, tmp_path):
    data = toy.make_dataset(tmp_path / "data", num_users=30, num_items=20)
    (data / "features" / "text.npy").unlink()
    result = call("run", config, "--data", data, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "features/text.npy: file is missing" in result.stderr


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(config, toy_dataset, tmp_path):
    store = tmp_path / "store"
    script = Path(sys.executable).with_name("prismrec-train")
    command = [script, "run", config, "--data", toy_dataset, "--store", store, "--set", "eval.patience=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("training: step 10 "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 1
    assert "stopped after step" in rest
    assert "--resume goes on from there" in rest
    assert not (store / "versions").exists()

    from training.config import load_config
    from training.trainer import run_digest

    digest = run_digest(load_config(config, ["eval.patience=100000"]), Dataset.open(toy_dataset))
    state = json.loads((store / ".checkpoints" / f"small-{digest[:12]}" / "checkpoint.json").read_text())
    assert state["run"] == digest
    assert state["step"] >= 10
