"""Deadline and admission."""

import pytest

from service.recommend.admission import Admission
from service.recommend.deadline import Deadline
from service.recommend.errors import DeadlineExceeded, Overloaded


def test_a_deadline_is_over_at_its_moment_and_not_before():
    now = [10.0]
    deadline = Deadline.after(2.0, clock=lambda: now[0])
    assert deadline.remaining_s() == 2.0
    now[0] = 11.9
    deadline.check()
    now[0] = 12.0
    with pytest.raises(DeadlineExceeded):
        deadline.check()
    assert deadline.remaining_s() == 0.0


def test_admission_refuses_what_is_over_the_limit_and_counts_those_who_leave_by_an_error():
    admission = Admission(1)
    with admission:
        assert admission.in_flight == 1
        with pytest.raises(Overloaded), admission:
            pass
    with pytest.raises(KeyError), admission:
        raise KeyError
    assert admission.in_flight == 0


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit"):
        Admission(0)
