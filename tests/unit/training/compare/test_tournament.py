"""What is run, what is reused, and what is forgotten: no model is trained here."""

import json

import numpy as np
import pytest

from index.dataset import Dataset
from training.compare.comparison import compare
from training.compare.one_run import RunError
from training.compare.records import Records, RunRecord
from training.compare.space import enter
from training.compare.tournament import Stopped
from training.config import parse_config

SPACE = '"optim.lr" = [1e-3, 3e-3, 1e-2]\n"model.negatives" = [1, 4]'
USERS = np.arange(30)


def entrants(*names, search=SPACE, num_trials=4, overrides=()):
    text = '[model]\nkind = "mf_bpr"\n[split]\nkind = "interactions"\n[eval]\ncutoffs = [20]\n[search]\n'
    configs = [parse_config(text + search, [f"name={name}", *overrides]) for name in names]
    return enter(configs, num_trials=num_trials)


class Rehearsal:
    """Workers whose runs take no time: a model's figure is decided by its name and its settings."""

    num = 2

    def __init__(self, *, failing=lambda job: False, stop_after=None):
        self.jobs, self._given, self._failing, self._left = [], [], failing, stop_after
        self.is_stopped = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def give(self, job):
        assert len(self._given) < self.num
        self._given.append(job)

    def stop(self):
        self.is_stopped = True

    def wait(self, timeout_s):
        job = self._given.pop(0)
        if self.is_stopped:
            return [(job, None)]
        self.jobs.append(job)
        return [(job, self._run(job))]

    def _run(self, job):
        records = Records(job.out)
        record = RunRecord(run=job.run, name=job.config.name, seed=job.config.seed, settings=dict(job.settings))
        if self._failing(job):
            record = record.model_copy(update={"failed": "the loss is nan"})
            records.keep(record)
            return record
        # The best on validation is the worst on test: nothing may be chosen by that.
        quality = job.config.optim.lr * 10 + (0.05 if job.config.name == "good" else 0) + job.config.seed / 1000
        value_B = np.full(30, 1 - quality)
        names = ["recall@20", "precision@20", "ndcg@20"]
        if (sampled := job.config.eval.sampled) is not None:
            names += [sampled.named(name) for name in ("recall@20", "ndcg@20", "ndcg_untruncated@20")]
        judged = {"test": dict.fromkeys(names, value_B)}
        metrics = {"valid": {"recall@20": quality}, "test": dict.fromkeys(names, 1 - quality)}
        record = record.model_copy(update={"metrics": metrics, "seconds": 2.0, "num_parameters": 7})
        if job.is_trial:
            records.keep(record.without_test())
            return record.without_test()
        records.keep_judged(record, USERS, judged)
        return record


@pytest.fixture
def play(toy_dataset, tmp_path):
    def play(models, workers, *, seeds=(0, 1, 2), num_trials=4, against=None, should_stop=lambda: False):
        lines = []
        board = compare(
            models,
            Dataset.open(toy_dataset),
            out=tmp_path / "out",
            seeds=seeds,
            num_trials=num_trials,
            against=against,
            workers=lambda: workers,
            tell=lambda line, *, done, total: lines.append((line, done, total)),
            should_stop=should_stop,
        )
        return board, lines

    play.out = tmp_path / "out"
    return play


def written(out):
    return [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]


def test_trials_come_first_and_the_winner_is_trained_with_the_other_seeds_only(play):
    workers = Rehearsal()
    board, lines = play(entrants("good", "poor"), workers)
    for name in ("good", "poor"):
        jobs = [job for job in workers.jobs if job.config.name == name]
        assert [job.is_trial for job in jobs] == [True] * 4 + [False] * 3
        assert {job.config.seed for job in jobs[:4]} == {0}
        assert [job.config.seed for job in jobs[4:]] == [0, 1, 2]
        assert jobs[4].run in {job.run for job in jobs[:4]}  # the trial that won, judged
        assert {job.config.optim.lr for job in jobs[4:]} == {1e-2}
    # 4 trials and 2 further seeds of each model; the winner's judging is no run of its own.
    assert [(done, total) for _, done, total in lines] == [(done, 12) for done in range(1, 13)]
    assert lines[0][0].startswith("good, trial of optim.lr=")
    assert "; about " in lines[0][0]
    assert [len(one.trials) for one in board.models] == [4, 4]
    assert board.num_test_users == [30, 30, 30]


def test_test_figures_of_trials_that_lost_are_nowhere(play):
    board, lines = play(entrants("good"), Rehearsal())
    winners = {"optim.lr": 1e-2, "model.negatives": board.models[0].settings["model.negatives"]}
    assert board.models[0].settings == winners
    judged = [record for record in written(play.out) if "test" in record["metrics"]]
    assert {json.dumps(record["settings"], sort_keys=True) for record in judged} == {
        json.dumps(winners, sort_keys=True)
    }
    assert len(list((play.out / "runs").glob("*.npz"))) == len(judged) == 3
    assert all(
        set(trial.model_dump()) == {"settings", "valid", "failed", "seconds"} for trial in board.models[0].trials
    )
    assert not any("test" in line for line, *_ in lines)


def test_a_second_call_runs_nothing_and_more_trials_run_what_is_missing(play):
    space = '"optim.lr" = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3]'
    first, _ = play(entrants("good", search=space, num_trials=2), Rehearsal())
    again = Rehearsal()
    board, _ = play(entrants("good", search=space, num_trials=2), again)
    assert not again.jobs
    assert board == first
    more = Rehearsal()
    board, _ = play(entrants("good", search=space, num_trials=8), more, num_trials=8)
    assert [job.is_trial for job in more.jobs] == [True] * 6 + [False] * 3
    assert board.models[0].settings == {"optim.lr": 8e-3}
    # The first winner has lost: what it got on test is forgotten.
    kept = [record["settings"]["optim.lr"] for record in written(play.out) if record["seed"] == 0]
    judged = [record["settings"]["optim.lr"] for record in written(play.out) if "test" in record["metrics"]]
    assert len(kept) == 8
    assert [lr for lr in judged if lr == 8e-3] == [8e-3] * 3
    assert first.models[0].settings["optim.lr"] not in [
        record["settings"]["optim.lr"]
        for record in written(play.out)
        if record["seed"] == 0 and "test" in record["metrics"]
    ]


def test_a_comparison_that_is_stopped_goes_on_with_what_is_missing(play):
    before = Rehearsal()
    with pytest.raises(Stopped, match="stopped with 5 of 12 runs done"):
        play(entrants("good", "poor"), before, should_stop=lambda: len(before.jobs) == 5)
    assert not (play.out / "leaderboard.md").exists()
    after = Rehearsal()
    play(entrants("good", "poor"), after)
    trials = [job.run for job in before.jobs + after.jobs if job.is_trial]
    assert len(trials) == len(set(trials)) == 8
    assert len(before.jobs + after.jobs) == 14


def test_a_trial_that_fails_is_kept_counts_and_never_wins(play):
    workers = Rehearsal(failing=lambda job: job.config.optim.lr == 1e-2)
    board, lines = play(entrants("good", num_trials=6), workers)
    assert board.models[0].settings["optim.lr"] == 3e-3
    assert [trial.failed for trial in board.models[0].trials].count("the loss is nan") == 2
    assert len(board.models[0].trials) == 6
    assert any("failed: the loss is nan" in line for line, *_ in lines)
    assert "2 of 6 trials failed: the loss is nan" in (play.out / "leaderboard.md").read_text()
    again = Rehearsal()
    play(entrants("good", num_trials=6), again)
    assert not again.jobs


def test_a_model_whose_trials_all_fail_is_told_and_the_others_go_on(play):
    board, lines = play(entrants("good", "poor"), Rehearsal(failing=lambda job: job.config.name == "good"))
    assert [one.name for one in board.models] == ["poor"]
    assert board.models[0].against is None
    assert [(one.name, one.reasons) for one in board.unranked] == [("good", ["the loss is nan"])]
    assert "**good** is not ranked: the loss is nan" in (play.out / "leaderboard.md").read_text()
    assert lines[-1][1:] == (10, 10)


def test_a_seed_that_fails_is_left_out_of_the_mean_and_of_the_pairs(play):
    failing = Rehearsal(failing=lambda job: job.config.name == "good" and job.config.seed == 1)
    board, _ = play(entrants("good", "poor"), failing)
    good = next(one for one in board.models if one.name == "good")
    assert (good.seeds, good.failed_seeds) == ([0, 2], {1: "the loss is nan"})
    assert good.against.seeds == [0, 2]
    assert len(good.test["recall@20"].values) == 2


def test_models_are_ranked_by_the_monitored_metric_on_test_and_compared_with_the_best_other(play):
    board, _ = play(entrants("good", "poor"), Rehearsal())
    poor, good = board.models  # what is better on validation is worse on test here
    assert (poor.name, good.name) == ("poor", "good")
    assert (poor.against.name, good.against.name) == ("good", "poor")
    assert poor.against.difference == pytest.approx(0.05)
    assert good.against.relative == pytest.approx(-0.05 / poor.test["recall@20"].mean)
    assert poor.test["recall@20"].mean == pytest.approx(1 - 0.1 - 0.001)
    assert poor.test["recall@20"].deviation == pytest.approx(0.001)
    board, _ = play(entrants("good", "poor"), Rehearsal(), against="poor")
    assert [one.against and one.against.name for one in board.models] == [None, "poor"]


def test_the_table_shows_what_the_document_holds(play):
    play(entrants("good", "poor"), Rehearsal())
    text = (play.out / "leaderboard.md").read_text()
    assert "| poor | 0.8990 ± 0.0010 | 0.8990 ± 0.0010 | 0.8990 ± 0.0010 |" in text
    assert "| poor | good | +5.9% | +5.9% to +5.9% | 0.0002 |" in text
    assert json.loads((play.out / "leaderboard.json").read_text())["models"][0]["name"] == "poor"


@pytest.mark.parametrize(
    ("rule", "told", "suffix"),
    [("total", "among 1,000 items in all", "of 1000"), ("added", "against 1,000 others", "against 1000")],
)
def test_figures_of_a_sample_stand_in_a_table_of_their_own(rule, told, suffix, play):
    board, _ = play(entrants("good", "poor", overrides=[f"eval.sampled.rule={rule}"]), Rehearsal())
    text = (play.out / "leaderboard.md").read_text()
    ranking, rest = text.split("\n## Sampled\n\n")
    assert "_1000" not in text
    assert "| model | Recall@20 | Precision@20 | NDCG@20 |\n" in ranking
    assert rest.startswith(f"A user's targets {told}, ")
    assert f"| model | Recall@20 {suffix} | NDCG@20 {suffix} | NDCG untruncated@20 {suffix} |\n" in rest
    assert rest.count("| poor | 0.8990 ± 0.0010 | 0.8990 ± 0.0010 | 0.8990 ± 0.0010 |") == 1
    named = board.sampled.named("recall@20")
    assert json.loads((play.out / "leaderboard.json").read_text())["models"][0]["test"][named]["mean"] < 0.9
    plain, _ = play(entrants("good", "poor"), Rehearsal())
    assert plain.sampled is None
    assert "## Sampled" not in (play.out / "leaderboard.md").read_text()


def test_the_table_says_which_fold_was_tested(play):
    play(entrants("good", overrides=["split.kind=folds", "split.fold=3"]), Rehearsal())
    assert "Split: fold 3 of 5." in (play.out / "leaderboard.md").read_text()


def test_a_run_that_can_not_be_done_ends_the_comparison_and_keeps_the_rest(play):
    class Full(Rehearsal):
        def wait(self, timeout_s):
            if len(self.jobs) == 3:
                raise RunError("good: no space left on device")
            return super().wait(timeout_s)

    with pytest.raises(RunError, match="no space left"):
        play(entrants("good"), Full())
    after = Rehearsal()
    play(entrants("good"), after)
    assert [job.is_trial for job in after.jobs] == [True, False, False, False]


def test_a_damaged_record_is_named(play):
    play(entrants("good"), Rehearsal())
    path = next((play.out / "runs").glob("*.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path.name}: is damaged"):
        play(entrants("good"), Rehearsal())


def test_arrays_that_are_missing_are_made_again(play):
    first, _ = play(entrants("good"), Rehearsal())
    next((play.out / "runs").glob("*.npz")).unlink()
    again = Rehearsal()
    board, _ = play(entrants("good"), again)
    assert len(again.jobs) == 1
    assert board == first
