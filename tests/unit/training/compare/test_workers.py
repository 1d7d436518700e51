"""Worker processes: answers, a process that dies, and the wish to stop. Forked here, as a start costs seconds."""

import multiprocessing
import os
from pathlib import Path

import pytest

from training.compare import workers as module
from training.compare.one_run import Job, RunError
from training.compare.records import RunRecord
from training.compare.workers import processes
from training.config import parse_config

CONFIG = parse_config('[model]\nkind = "mf_bpr"\n')


def job(name):
    return Job(name, CONFIG, {}, Path("data"), Path("out"), is_trial=True)


@pytest.fixture
def start(monkeypatch):
    def start(run_one, *, num=2):
        monkeypatch.setattr(module, "run_one", run_one)
        monkeypatch.setattr(module.multiprocessing, "get_context", lambda _: fork)
        return processes(num)

    fork = multiprocessing.get_context("fork")
    return start


def record_of(job, *, should_stop):
    return RunRecord(run=job.run, name="a", seed=os.getpid(), settings={})


def test_runs_side_by_side_come_back_with_their_jobs_and_processes_are_used_again(start):
    with start(record_of) as workers:
        found = []
        for pair in (("a", "b"), ("c", "d")):
            for name in pair:
                workers.give(job(name))
            done = []
            while len(done) < 2:
                done += workers.wait(60)
            found += done
    assert sorted(one.run for one, _ in found) == ["a", "b", "c", "d"]
    assert all(one.run == record.run for one, record in found)
    assert len({record.seed for _, record in found} | {os.getpid()}) == 3


def test_a_process_that_dies_is_told_with_its_exit_code(start):
    with start(lambda *_, **__: os._exit(9), num=1) as workers:
        workers.give(job("a"))
        with pytest.raises(RunError, match="run: its process ended with exit code 9"):
            workers.wait(60)


def test_what_is_not_the_runs_own_fault_is_raised_here(start):
    def full(*_, **__):
        raise RunError("no space left on device")

    with start(full, num=1) as workers:
        workers.give(job("a"))
        with pytest.raises(RunError, match="no space left"):
            workers.wait(60)


def test_a_run_hears_the_wish_to_stop_also_when_the_block_just_ends(start, tmp_path):
    def until_stopped(job, *, should_stop):
        while not should_stop():
            pass
        (tmp_path / job.run).touch()

    with start(until_stopped) as workers:
        workers.give(job("a"))
        assert workers.wait(0) == []
        workers.stop()
        assert workers.wait(60) == [(job("a"), None)]
    with start(until_stopped) as workers:
        workers.give(job("b"))
    assert (tmp_path / "b").exists()
