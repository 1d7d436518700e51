"""Jobs are files that any process reads: a queue with a bound, one build at a time, and the truth about dead ones."""

import os
from datetime import UTC, datetime

import pytest

from api_schemas.jobs import IndexRequest
from index.job_worker import JobReporter, build
from index.jobs import KEPT_JOBS, PROCESS_ENDED, JobConflict, JobStore, NoSuchJob
from index.store import ArtifactStore
from tests.bundles import make_bundle

REQUEST = IndexRequest(model="bundle-20260101t000000z-000000", data="shop")


@pytest.fixture
def jobs(tmp_path) -> JobStore:
    return JobStore(tmp_path, max_waiting=3)


def test_jobs_are_built_in_the_order_in_which_they_came_one_at_a_time(jobs, tmp_path):
    assert jobs.take_turn() is None
    assert jobs.all() == []
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"
    queued = [jobs.submit(REQUEST) for _ in range(3)]
    assert jobs.all() == queued[::-1]
    other = JobStore(tmp_path)
    turn = other.take_turn()
    assert (turn.job.id, turn.job.state) == (queued[0].id, "running")
    assert jobs.take_turn() is None, "one is running"
    assert jobs.get(queued[0].id).state == "running"
    jobs.save(turn.job.model_copy(update={"state": "succeeded", "index": "snapshot-1"}))
    os.close(turn.lock)
    following = jobs.take_turn()
    assert following.job.id == queued[1].id
    os.close(following.lock)


def test_no_more_wait_than_may(jobs):
    for _ in range(3):
        jobs.submit(REQUEST)
    with pytest.raises(JobConflict, match="3 builds wait already"):
        jobs.submit(REQUEST)
    turn = jobs.take_turn()
    jobs.submit(REQUEST)
    os.close(turn.lock)


def test_what_runs_without_a_process_has_failed_whoever_asks(jobs):
    first, second = jobs.submit(REQUEST), jobs.submit(REQUEST)
    os.close(jobs.take_turn().lock)  # as the kernel does when its process is killed
    dead = jobs.get(first.id)
    assert (dead.state, dead.error) == ("failed", PROCESS_ENDED)
    assert dead.ended_at >= dead.started_at
    turn = jobs.take_turn()
    assert turn.job.id == second.id
    os.close(turn.lock)
    assert [job.state for job in jobs.all()] == ["failed", "failed"]


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_when_its_process_has_ended(jobs):
    running, waiting = jobs.submit(REQUEST), jobs.submit(REQUEST)
    turn = jobs.take_turn()
    assert jobs.cancel(waiting.id).state == "cancelled"
    assert not jobs.is_cancelled(running.id)
    assert jobs.cancel(running.id).cancel_requested
    assert jobs.is_cancelled(running.id)
    assert (jobs.get(running.id).state, jobs.get(running.id).cancel_requested) == ("running", True)
    os.close(turn.lock)
    assert (jobs.get(running.id).state, jobs.get(running.id).error) == ("cancelled", None)
    for job in (running, waiting):
        with pytest.raises(JobConflict, match="it is cancelled"):
            jobs.cancel(job.id)


@pytest.mark.parametrize("job_id", ["", "x", "../CURRENT", "job-20260101t000000000000z-000000", "job-\n"])
def test_a_job_that_is_not_there_is_named(jobs, job_id):
    jobs.submit(REQUEST)
    for call in (jobs.get, jobs.cancel):
        with pytest.raises(NoSuchJob):
            call(job_id)


def test_only_the_last_jobs_that_are_over_are_kept(jobs):
    ids = []
    for _ in range(KEPT_JOBS + 2):
        job = jobs.submit(REQUEST)
        jobs.cancel(job.id)
        ids.append(job.id)
    waiting = jobs.submit(REQUEST)
    assert [job.id for job in jobs.all()] == [waiting.id, *ids[::-1][:KEPT_JOBS]]


def test_a_record_that_is_no_record_holds_up_nobody(jobs, tmp_path):
    broken = jobs.submit(REQUEST)
    (tmp_path / "jobs" / f"{broken.id}.json").write_text("{")
    job = jobs.submit(REQUEST)
    assert [one.id for one in jobs.all()] == [job.id]
    turn = jobs.take_turn()
    assert turn.job.id == job.id
    os.close(turn.lock)


def test_the_changes_that_a_dead_process_has_not_folded_in_are_removed_with_its_job(jobs):
    for _ in range(2):
        jobs.submit(REQUEST)
    turn = jobs.take_turn()
    file = jobs.changes_file(turn.job.id)
    for path in (file, file.with_name(f"{file.name}.part")):
        path.write_text("much")
    jobs.settle()
    assert file.exists(), "its process may need them"
    os.close(turn.lock)
    assert jobs.get(turn.job.id).state == "failed"
    assert [path.suffix for path in file.parent.glob("job-*")] == [".json"] * 2


def test_progress_is_written_with_each_stage_and_once_a_second(jobs):
    now = [100.0]
    submitted = jobs.submit(REQUEST)
    turn = jobs.take_turn()
    report = JobReporter(jobs, turn.job, clock=lambda: now[0])

    def seen():
        job = jobs.get(submitted.id)
        return job.progress.stage, job.progress.done, job.progress.total, job.progress.unit, job.eta_s

    report("encode items", 0, 100)
    assert seen() == ("encode items", 0, 100, "items", None)
    now[0] += 0.5
    report("encode items", 10, 100)
    assert seen()[1] == 0, "not each batch"
    now[0] += 1.5
    report("encode items", 40, 100)
    assert seen() == ("encode items", 40, 100, "items", 3.0)
    report("encode items", 100, 100)
    assert seen() == ("encode items", 100, 100, "items", None)
    report("count interactions", 1, 7)
    assert seen() == ("count interactions", 1, 7, "interactions", None)
    os.close(turn.lock)


def test_a_build_makes_an_index_or_says_why_not(jobs, toy_dataset, tmp_path):
    store = ArtifactStore(tmp_path)
    request = IndexRequest(model=make_bundle(store, toy_dataset), data="toy", fold_changes=False)

    def built(request, *, dataset=toy_dataset):
        jobs.submit(request)
        turn = jobs.take_turn()
        end = build(jobs, turn.job, store=store, dataset=dataset, config=None)
        os.close(turn.lock)
        assert jobs.get(end.id) == end
        assert end.created_at <= end.started_at <= end.ended_at <= datetime.now(UTC)
        return end

    alone = built(request.model_copy(update={"make_current": False}))
    assert (alone.state, store.current()) == ("succeeded", None)
    assert store.open_snapshot(alone.index)
    taken = built(request)
    assert (taken.state, store.current()) == ("succeeded", taken.index)
    missing = built(request, dataset=tmp_path / "data" / "gone")
    assert missing.state == "failed"
    assert missing.error == "gone: folder is missing"
    unknown = built(REQUEST.model_copy(update={"fold_changes": False}))
    assert unknown.error == f"versions/{REQUEST.model}: no such version in the store", "and not where the store lies"
    assert store.current() == taken.index
