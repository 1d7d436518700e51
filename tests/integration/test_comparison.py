"""Runs of a comparison on the toy, and the command with its processes: stopped, gone on with, and finished."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from index.dataset import Dataset
from index.locks import exclusive
from training.cli import app
from training.compare.one_run import Job, RunError, run_one
from training.compare.records import USERS, Records
from training.config import parse_config
from training.trainer import run_digest

CONFIG = """
name = "{name}"
[model]
kind = "{kind}"
dim = 8
history_length = 10
[split]
kind = "interactions"
[optim]
batch_size = 256
epochs = 30
lr = 3e-2
[eval]
cutoffs = [10, 20]
every_epochs = 10
"""
SEARCH = """
[search]
"optim.lr" = [1e-2, 3e-2]
"""


@pytest.fixture(params=["mf_bpr", "cb2cf", "base"])
def job(request, toy_dataset, tmp_path):
    overrides = ["model.network.epochs=5"] if request.param == "cb2cf" else []
    return job_of(parse_config(CONFIG.format(name="toy", kind=request.param), overrides), toy_dataset, tmp_path)


def job_of(config, data, out, *, is_trial=True):
    return Job(run_digest(config, Dataset.open(data)), config, {"optim.lr": 3e-2}, data, out, is_trial)


def judged(job):
    return Job(job.run, job.config, job.settings, job.data, job.out, is_trial=False)


def test_a_trial_that_won_is_judged_without_being_trained_again(job, monkeypatch):
    trial = run_one(job, should_stop=lambda: False)
    records = Records(job.out)
    assert records.find(job.run) == trial
    assert not [part for part in trial.metrics if part.startswith("test")]
    assert not list(job.out.rglob("*.npz"))
    assert trial.metrics["valid"]["recall@20"] > 0.5

    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("it is trained again"))
    record = run_one(judged(job), should_stop=lambda: False)
    assert record.without_test() == trial
    assert record.metrics["test"]["recall@20"] > 0.5
    users_B, recall_B, ndcg_B = Records(job.out).judged(record, USERS, "test/recall@10", "test/ndcg@20")
    assert len(users_B) == len(recall_B) == len(np.unique(users_B)) == 120
    assert recall_B.mean() == pytest.approx(record.metrics["test"]["recall@10"])
    assert ndcg_B.mean() == pytest.approx(record.metrics["test"]["ndcg@20"])
    assert ("test_from_history" in record.metrics) == (job.config.model.kind != "base")
    assert not (job.out / "checkpoints").exists()


def test_a_record_says_what_the_run_cost(job):
    record = run_one(job, should_stop=lambda: False)
    assert record.epochs == pytest.approx(30)
    assert [stage.name for stage in record.stages] == ["fit", "network"][: 2 if job.config.model.kind == "cb2cf" else 1]
    assert 0 < record.seconds_per_epoch * 30 <= record.seconds * (1 + 1e-9)
    assert record.num_parameters > 500


def test_a_run_that_is_stopped_leaves_no_record_and_goes_on_the_same_way(toy_dataset, tmp_path):
    config = parse_config(CONFIG.format(name="toy", kind="mf_bpr"))
    whole = run_one(job_of(config, toy_dataset, tmp_path / "whole", is_trial=False), should_stop=lambda: False)
    parts = job_of(config, toy_dataset, tmp_path / "parts", is_trial=False)
    asked = 0

    def after_twenty_steps():
        nonlocal asked
        asked += 1
        return asked == 20

    assert run_one(parts, should_stop=after_twenty_steps) is None
    assert Records(parts.out).find(parts.run) is None
    record = run_one(parts, should_stop=lambda: False)
    assert record.metrics == whole.metrics


def test_a_run_whose_loss_is_not_finite_is_kept_with_the_reason(toy_dataset, tmp_path):
    config = parse_config(CONFIG.format(name="toy", kind="mf_bpr"), ["optim.lr=1e30"])
    job = job_of(config, toy_dataset, tmp_path)
    record = run_one(job, should_stop=lambda: False)
    assert "lower optim.lr" in record.failed
    assert Records(tmp_path).find(job.run) == record
    assert not (tmp_path / "checkpoints").exists()


def test_what_is_not_the_runs_own_fault_is_no_failed_run(toy_dataset, tmp_path):
    job = job_of(parse_config(CONFIG.format(name="toy", kind="mf_bpr")), toy_dataset, tmp_path)
    folder = Records(tmp_path).checkpoints(job.run)
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(RunError, match=r"toy: .*checkpoint.json: is damaged"):
        run_one(job, should_stop=lambda: False)
    assert Records(tmp_path).find(job.run) is None


@pytest.fixture
def arguments(toy_dataset, tmp_path):
    paths = []
    for kind in ("mf_bpr", "vbpr"):
        path = tmp_path / f"{kind}.toml"
        path.write_text(CONFIG.format(name=kind, kind=kind) + SEARCH)
        paths.append(path)
    options = ["--data", toy_dataset, "--out", tmp_path / "out", "--trials", 2, "--seeds", "0,1"]
    return [str(one) for one in ["compare", *paths, *options]]


def test_sigterm_stops_the_command_and_the_same_command_does_only_what_is_missing(arguments, tmp_path):
    script = Path(sys.executable).with_name("prismrec-train")
    with subprocess.Popen(
        [script, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert first.startswith("1 of 6 runs: mf_bpr, trial of optim.lr=")
    assert process.returncode == 1
    stopped = re.search(
        r"prismrec-train: stopped with (\d) of 6 runs done; the same command goes on from there\n$", rest
    )
    done = int(stopped[1])
    assert done < 6
    assert len(list((tmp_path / "out" / "runs").glob("*.json"))) == done

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [int(line.split()[0]) for line in result.stderr.splitlines()] == list(range(done + 1, 7))
    board = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert sorted(one["name"] for one in board["models"]) == ["mf_bpr", "vbpr"]
    assert board["num_test_users"] == [120, 120]
    assert (tmp_path / "out" / "leaderboard.md").read_text() in result.stdout
    assert not (tmp_path / "out" / "checkpoints").exists()

    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "search.optim.lr=[-1.0]"), "search.optim.lr = -1.0: optim.lr: Input should be greater than 0"),
        (("--seeds", "0,0"), "has a seed twice"),
        (("--against", "ease"), "--against ease: is none of mf_bpr, vbpr"),
        (("--trials", "0"), "Invalid value for '--trials'"),
        (("--set", "name=one"), "two configurations have the name one"),
    ],
)
def test_wrong_usage_ends_with_two_and_makes_nothing(more, message, arguments, tmp_path):
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_second_command_in_the_same_folder_is_refused_at_once(arguments, tmp_path):
    with exclusive(tmp_path / "out" / ".lock"):
        result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 1
    assert "another comparison is working in this folder" in result.output
    assert not (tmp_path / "out" / "runs").exists()


def test_unequal_splits_are_refused_by_the_command(arguments, tmp_path):
    Path(arguments[2]).write_text(CONFIG.format(name="vbpr", kind="vbpr").replace("interactions", "users"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "mf_bpr and vbpr can not be compared: split is" in result.stderr


class InThisProcess:
    """Workers that need no start."""

    num = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def give(self, job):
        self._job = job

    def wait(self, timeout_s):
        return [(self._job, run_one(self._job, should_stop=lambda: False))]


def test_a_comparison_in_which_all_models_fail_says_so(arguments, monkeypatch):
    monkeypatch.setattr("training.cli.processes", lambda _jobs: InThisProcess())
    failing = ["--set", "search.optim.lr=[1e30]"]
    result = CliRunner().invoke(app, [*arguments, *failing])
    assert result.exit_code == 1
    assert "all models failed" in result.stderr
    assert "**vbpr** is not ranked: the loss is" in result.stdout
