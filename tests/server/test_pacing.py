"""A thread works in small portions while others are busy."""

from __future__ import annotations

import sys
import threading

import pytest

from lmsmith.server import pacing
from lmsmith.server.pacing import small_portions


def work(calls: int) -> int:
    return sum(map(len, (str(number) for number in range(calls))))


def rests(monkeypatch: pytest.MonkeyPatch, *, busy: bool) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(pacing, "PORTION_SECONDS", 0.0)
    monkeypatch.setattr(pacing.time, "sleep", found.append)
    with small_portions(lambda: busy):
        work(50)
    return found


def test_it_rests_at_calls_while_others_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rests(monkeypatch, busy=True)
    assert len(found) > 50
    assert all(seconds >= 0 for seconds in found)


def test_nobody_else_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rests(monkeypatch, busy=False) == []


def test_it_rests_longer_after_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 2))  # two seconds of work between two looks
    found: list[float] = []
    monkeypatch.setattr(pacing.time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(pacing.time, "sleep", found.append)
    monkeypatch.setattr(pacing, "PORTION_SECONDS", 0.0)
    with small_portions(lambda: True):
        work(3)
    assert set(found) == {2 * pacing.REST}


def test_only_this_thread_rests_and_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    profiles: list[object] = []
    with small_portions(lambda: False):
        other = threading.Thread(target=lambda: profiles.append(sys.getprofile()))
        other.start()
        other.join()
        assert sys.getprofile() is not None
    assert profiles == [None]
    assert sys.getprofile() is None
    with pytest.raises(ZeroDivisionError), small_portions(lambda: False):
        work(1 // 0)
    assert sys.getprofile() is None
