"""Progress and interruption of a run."""

import io
import os
import signal

from training.interrupt import stopping_on_signals
from training.progress import _Lines, watching


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_come_every_few_seconds_with_loss_and_speed_and_for_each_validation():
    stream, clock = io.StringIO(), Clock()
    lines = _Lines(stream, monitor="recall@20", clock=clock)
    lines.started(step=0, total_steps=40, batch_size=100)
    for step in (10, 20, 30):
        clock.now += 2
        lines.stepped(step, {"softmax": 1.5, "query_norm": 3.0})
    clock.now += 100
    lines.validated(30, {"recall@20": 0.25}, is_best=True)
    clock.now += 2
    lines.stepped(40, {"softmax": 1.25, "contrast": 0.5})
    assert stream.getvalue().splitlines() == [
        "training: step 0 of 40",
        "training: step 10 of 40, softmax 1.500, 500 samples/s",
        "validation: step 30, recall@20 0.2500, the best so far",
        "training: step 40 of 40, softmax 1.250, contrast 0.500, 500 samples/s",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with watching(stream, monitor="recall@20") as observer:
        observer.started(step=0, total_steps=4, batch_size=8)
        observer.stepped(2, {"softmax": 1.0})
        observer.validated(2, {"recall@20": 0.5}, is_best=True)
        observer.stepped(4, {"softmax": 1.0})
    assert "4/4" in stream.getvalue()
    assert "recall@20 0.5000" in stream.getvalue()


def test_the_first_signal_asks_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with stopping_on_signals() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        assert signal.getsignal(signal.SIGINT) is before  # a second Ctrl-C ends the process as usual
    assert signal.getsignal(signal.SIGINT) is before
