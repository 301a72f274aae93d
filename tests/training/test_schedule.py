"""Each schedule against its closed form."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.training.schedule import Schedule, learning_rate_factor


def test_warm_up_is_a_straight_line_whose_last_step_is_the_peak() -> None:
    for name in get_args(Schedule):
        factors = [learning_rate_factor(name, step, 100, warmup_steps=10) for step in range(11)]
        assert factors == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0])


def test_cosine() -> None:
    for step in range(20, 100):
        progress = (step - 20) / 79
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        found = learning_rate_factor("cosine", step, 100, warmup_steps=20, final_lr_fraction=0.1)
        assert found == pytest.approx(expected)
    assert learning_rate_factor("cosine", 99, 100, final_lr_fraction=0.1) == pytest.approx(0.1)


def test_linear() -> None:
    factors = [learning_rate_factor("linear", step, 5, final_lr_fraction=0.2) for step in range(5)]
    assert factors == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_warm_up_stable_decay() -> None:
    factors = [
        learning_rate_factor("warmup_stable_decay", step, 20, warmup_steps=2, decay_fraction=0.25)
        for step in range(20)
    ]
    assert factors == pytest.approx([0.5] + [1.0] * 14 + [0.8, 0.6, 0.4, 0.2, 0.0])


def test_constant() -> None:
    assert {
        learning_rate_factor("constant", step, 9, final_lr_fraction=0.5) for step in range(9)
    } == {1.0}


@given(
    st.sampled_from(get_args(Schedule)),
    st.integers(1, 200),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_factor_is_between_nothing_and_the_peak_and_never_rises_after_warm_up(
    schedule: Schedule, steps: int, warmup: int, final: float, decay: float
) -> None:
    factors = [
        learning_rate_factor(schedule, step, steps, warmup, final, decay) for step in range(steps)
    ]
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)
    after = factors[warmup:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))
    if schedule != "constant" and steps > warmup + 1:
        assert factors[-1] == pytest.approx(final)
