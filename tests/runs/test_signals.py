"""The first signal asks, the second interrupts, and the handlers are put back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lmsmith.core.errors import Interrupted
from lmsmith.runs.signals import StopSignal, stop_if_requested, stop_requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_sets_the_flag_and_the_second_interrupts(number: int) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with StopSignal():
            stop_if_requested()
            assert stop_requested() is None
            os.kill(os.getpid(), number)
            assert stop_requested() == number
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            stop_if_requested()

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.exit_code == 128 + number
    assert stop_requested() is None
    assert signal.getsignal(number) is before


def test_inner_one_keeps_the_outer_ones_flag() -> None:
    def work() -> None:
        with StopSignal():
            with StopSignal():
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested() == signal.SIGTERM

    with pytest.raises(Interrupted):
        work()


def test_a_signal_that_nobody_looked_at_is_not_lost() -> None:
    """A study's next run would begin otherwise: the last step of a run looks no more."""
    with pytest.raises(Interrupted) as caught, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert stop_requested() is None

    def fail() -> None:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        fail()


def test_other_threads_may_enter_it() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with StopSignal():
                stop_if_requested()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
