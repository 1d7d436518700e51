"""Jobs answered together: a bad one takes only itself away."""

import numpy as np
import pytest

from service.recommend.answer import answer_jobs
from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, NoServable
from service.recommend.job import Answer, Job
from service.recommend.types import HistoryItem, ItemId, Query
from tests.fakes import FakeServable
from tests.unit.recommend.house import inline

LATER = Deadline.after(3_600.0)


@pytest.fixture
def servable() -> FakeServable:
    return FakeServable()


def job(servable: FakeServable, *history: str, deadline: Deadline = LATER, **query) -> Job:
    return Job(servable, Query(history=inline(*history), **query), deadline)


def test_jobs_that_wait_together_share_one_look_up_one_encoding_and_one_search(servable):
    answers = answer_jobs([job(servable, f"i{row}", k=5) for row in range(8)])
    assert all(isinstance(answer, Answer) for answer in answers)
    assert servable.calls == ["rows", "encode_users", "search"]
    assert servable.holds == 1


def test_jobs_with_the_same_filter_and_a_like_k_share_a_search_others_do_not(servable):
    jobs = [job(servable, "i1", k=k) for k in (5, 6, 40)]
    answers = answer_jobs(jobs)
    assert servable.calls.count("search") == 2
    assert [len(answer.items) for answer in answers] == [5, 6, 40]


def test_a_job_past_its_deadline_is_not_encoded(servable):
    late = job(servable, "i1", deadline=Deadline.after(-1.0))
    answers = answer_jobs([late, job(servable, "i2")])
    assert isinstance(answers[0], DeadlineExceeded)
    assert isinstance(answers[1], Answer)


def test_vectors_that_can_not_be_encoded_fail_their_own_job_alone(servable):
    raw = {"visual": np.ones(6, dtype=np.float32)}
    servable.encode_items = lambda raw: (_ for _ in ()).throw(RuntimeError("boom"))
    bad = Job(servable, Query(history=(HistoryItem(ItemId("new"), modalities=raw),)), LATER)
    answers = answer_jobs([job(servable, "i1"), bad, job(servable, "i2")])
    assert [type(answer) for answer in answers] == [Answer, RuntimeError, Answer]


def test_a_user_on_whom_the_encoder_fails_leaves_its_neighbours_their_model_answers(servable):
    encode = servable.encode_users

    def picky(history_BLH, mask_BL):
        if (mask_BL.sum(axis=1) == 3).any():
            raise RuntimeError("boom")
        return encode(history_BLH, mask_BL)

    servable.encode_users = picky
    answers = answer_jobs([job(servable, "i1"), job(servable, "i1", "i2", "i3"), job(servable, "i4")])
    assert [answer.degraded for answer in answers] == [(), ("model_failed",), ()]
    assert [answer.items[0].source for answer in answers] == ["model", "popular", "model"]


def test_each_job_is_answered_from_its_own_version(servable):
    other = FakeServable(version="snapshot-fake-2", seed=1)
    jobs = [job(servable, "i1"), job(other, "i1"), job(servable, "i2")]
    alone = [answer_jobs([one])[0] for one in jobs]
    assert [answer.rows for answer in answer_jobs(jobs)] == [answer.rows for answer in alone]


def test_a_version_that_was_closed_meanwhile_is_not_touched(servable):
    waiting = job(servable, "i1")
    servable.release()
    (answer,) = answer_jobs([waiting])
    assert isinstance(answer, NoServable)
    assert servable.calls == []


def test_no_jobs_have_no_answers():
    assert answer_jobs([]) == []
