"""PAMD's studies on the toy: protocol, masked copies, going on, what is told. Quick models stand for all."""

import json
import sys
from importlib.util import find_spec

import pytest

from benchmarks import pamd_studies
from benchmarks.pamd_studies import METRICS, STUDIES, configured, jobs_of
from index.dataset import Dataset
from training.data.candidates import SampledConfig

QUICK = ["optim.epochs=3", "eval.every_epochs=3", "eval.sampled.n=40", "model.dim=8", "serving.fold_in=affine"]


@pytest.fixture
def study(toy_dataset, tmp_path, monkeypatch, capsys):
    def study(*arguments):
        overrides = [part for one in QUICK for part in ("--set", one)]
        options = ["--data", toy_dataset, "--catalogue", "ml1m", "--out", tmp_path / "out", *overrides]
        monkeypatch.setattr(sys, "argv", [str(one) for one in ("pamd_studies", arguments[0], *options, *arguments[1:])])
        pamd_studies.main()
        return capsys.readouterr()

    study.out = tmp_path / "out"
    return study


def test_masked_shares_are_learned_from_copies_and_the_same_command_runs_nothing_again(study):
    told = study("sparsity", "--lines", "BPR++", "--values", "0,0.5,1", "--folds", "0,1")
    assert told.err.count(" of 6 runs: ml1m-bpr-plus") == 6
    head, _, *rows = told.out.splitlines()
    shown = [*(f"{metric}_of_40" for metric in METRICS), *METRICS]
    assert head == f"|  | masked share | {' | '.join(shown)} |"
    assert [row.split(" | ")[:2] for row in rows] == [["| BPR++", "0"], ["| BPR++", "0.5"], ["| BPR++", "1"]]
    assert all(row.count(" ± ") == len(shown) for row in rows)
    assert "failed" not in told.out
    copies = [Dataset.open(path) for path in sorted((study.out / "data").iterdir())]
    assert [one.manifest.name for one in copies] == ["toy-masked-0.5", "toy-masked-1"]
    points = json.loads((study.out / "study.json").read_text())["points"]
    assert [(one["line"], one["value"], one["repetition"]) for one in points[:3]] == [
        ("BPR++", 0, 0),
        ("BPR++", 0, 1),
        ("BPR++", 0.5, 0),
    ]
    again = study("sparsity", "--lines", "BPR++", "--values", "0,0.5,1", "--folds", "0,1")
    assert "runs: " not in again.err
    assert again.out == told.out


def test_models_stand_in_a_table_without_an_axis(study):
    told = study("models", "--lines", "BPR,BPR++", "--folds", "3")
    head, _, *rows = told.out.splitlines()
    assert head.startswith("|  | recall@5_of_40 | ")
    assert [row.split(" | ")[0] for row in rows] == ["| BPR", "| BPR++"]
    is_drawn = (study.out / "study.png").exists()
    assert is_drawn == (find_spec("matplotlib") is not None)
    assert is_drawn != ("not drawn" in told.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "--lines", "BPR,SASRec"), "--lines: 'SASRec' is none of popularity, BPR, "),
        (("models", "--catalogue", "nowhere"), "--catalogue: no configuration of these models begins with nowhere-"),
        (("models", "--values", "1,2"), "--values: models is drawn over nothing"),
    ],
)
def test_wrong_usage_is_told(arguments, message, study, capsys):
    with pytest.raises(SystemExit):
        study(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("catalogue", ["ml1m", "tiktok"])
def test_every_line_of_a_study_has_its_configuration_and_the_papers_protocol(name, catalogue, toy_dataset, tmp_path):
    study = configured(STUDIES[name], catalogue)
    assert study == STUDIES[name] or (
        catalogue == "tiktok" and set(STUDIES[name].lines) - set(study.lines) == {"Demure"}
    )
    jobs = jobs_of(study, data=toy_dataset, catalogue=catalogue, folds=[0, 4], overrides=[], out=tmp_path)
    assert len(jobs) == 2 * len(study.lines) * len(study.values)
    for (_, _, fold), job in jobs.items():
        split, judged = job.config.split, job.config.eval
        assert (split.kind, split.folds, split.fold, split.seed) == ("folds", 5, fold, 0)
        assert (judged.cutoffs, judged.sampled) == ((5, 10), SampledConfig(n=1000, rule="total"))
        assert not job.is_trial
