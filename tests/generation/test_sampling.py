"""Sampling draws from exactly the distribution it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lmsmith.core.errors import UserError
from lmsmith.generation.sampling import (
    SamplingSettings,
    choose_tokens,
    greedy,
    keep_nucleus,
    keep_top_k,
    row_uniforms,
    sample,
    scale,
)

logits = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(-20, 20, width=32),
).map(torch.from_numpy)
probability = st.floats(0.01, 0.99)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """(statistic − degrees of freedom) / √(2 · degrees): above 5 by chance once in a million."""
    degrees = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_softmax_of_logits_over_temperature(temperature: float) -> None:
    draws, vocabulary = 200_000, 40
    logits_v = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1)) * 1.5
    settings = SamplingSettings(temperature=temperature)
    uniforms = row_uniforms(7, [0], draws)[0]
    tokens = choose_tokens(logits_v.expand(draws, -1), settings, uniforms)
    exact = (logits_v.double() / temperature).softmax(dim=0).numpy()
    counts = np.bincount(tokens.numpy(), minlength=vocabulary)
    assert abs(chi_square(counts, exact * draws)) < 5


def test_the_chi_square_would_notice_a_wrong_temperature() -> None:
    draws = 200_000
    logits_v = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 1.5
    uniforms = row_uniforms(7, [0], draws)[0]
    tokens = sample(logits_v.expand(draws, -1) / 1.02, uniforms)
    exact = logits_v.double().softmax(dim=0).numpy()
    assert chi_square(np.bincount(tokens.numpy(), minlength=40), exact * draws) > 5


def test_truncated_draws_follow_the_renormalised_distribution() -> None:
    draws = 100_000
    logits_v = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    settings = SamplingSettings(top_k=3, top_p=0.9)
    tokens = choose_tokens(
        logits_v.expand(draws, -1), settings, row_uniforms(0, [3], draws)[0]
    ).numpy()
    # Of the top three, e² and e¹ already hold 1 / (1 + e⁻² / (1 + e⁻¹)) > 0.9 of what is left.
    exact = np.exp([2.0, 1.0]) / np.exp([2.0, 1.0]).sum()
    assert set(tokens.tolist()) == {0, 1}
    assert abs(chi_square(np.bincount(tokens, minlength=2), exact * draws)) < 5


@given(logits, st.floats(0, 1, exclude_max=True), st.integers(0, 12))
def test_an_impossible_token_is_never_drawn(
    logits_bv: torch.Tensor, uniform: float, forbidden: int
) -> None:
    vocabulary = logits_bv.shape[1]
    logits_bv = logits_bv.clone()
    if vocabulary > 1:
        logits_bv[:, forbidden % vocabulary] = -math.inf
    for number in (uniform, 0.0, math.nextafter(1.0, 0.0)):
        uniform_b = torch.full((len(logits_bv),), number, dtype=torch.float64)
        tokens_b = sample(logits_bv, uniform_b)
        assert bool((tokens_b >= 0).all())
        assert bool((tokens_b < vocabulary).all())
        assert bool((logits_bv.softmax(-1).gather(1, tokens_b[:, None]) > 0).all())


def test_sample_inverts_the_cdf_by_hand() -> None:
    logits_bv = torch.tensor([0.25, 0.5, 0.25]).log().expand(5, 3)
    uniform_b = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501], dtype=torch.float64)
    assert sample(logits_bv, uniform_b).tolist() == [0, 0, 1, 1, 2]


@given(logits, st.integers(1, 12))
def test_top_k_keeps_the_k_largest(logits_bv: torch.Tensor, k: int) -> None:
    kept_bv = keep_top_k(logits_bv, k)
    vocabulary = logits_bv.shape[1]
    assert (kept_bv > -math.inf).sum(dim=1).tolist() == [min(k, vocabulary)] * len(logits_bv)
    for row, kept in zip(logits_bv, kept_bv, strict=True):
        inside = kept > -math.inf
        assert torch.equal(row[inside], kept[inside])
        if not bool(inside.all()):
            assert row[inside].min() >= row[~inside].max()


@given(logits, probability)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(logits_bv: torch.Tensor, p: float) -> None:
    kept_bv = keep_nucleus(logits_bv, p)
    for row, kept in zip(logits_bv, kept_bv, strict=True):
        inside = kept > -math.inf
        probabilities = row.softmax(0, dtype=torch.float64)
        assert torch.equal(row[inside], kept[inside])
        assert probabilities[inside].sum() >= p - 1e-9
        assert probabilities[inside].sum() - probabilities[inside].min() < p + 1e-9
        if not bool(inside.all()):
            assert row[inside].min() >= row[~inside].max()


def test_the_nucleus_by_hand() -> None:
    logits_bv = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.76, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        assert (keep_nucleus(logits_bv, p)[0] > -math.inf).nonzero()[:, 0].tolist() == kept


@given(logits)
def test_temperature_zero_and_top_one_are_greedy(logits_bv: torch.Tensor) -> None:
    uniform_b = torch.full((len(logits_bv),), 0.999, dtype=torch.float64)
    by_zero = choose_tokens(logits_bv, SamplingSettings(temperature=0), uniform_b)
    assert torch.equal(by_zero, greedy(logits_bv))
    by_one = choose_tokens(logits_bv, SamplingSettings(top_k=1), uniform_b)
    best_b = logits_bv.max(dim=1).values
    assert torch.equal(logits_bv.gather(1, by_one[:, None])[:, 0], best_b)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 12)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ).map(torch.from_numpy),
    st.floats(0, 1e-3),
    st.floats(0, 1, exclude_max=True),
)
def test_no_finite_logits_and_temperature_overflow(
    logits_bv: torch.Tensor, temperature: float, uniform: float
) -> None:
    settings = SamplingSettings(temperature=temperature, top_p=0.9, min_p=0.1)
    uniform_b = torch.full((len(logits_bv),), uniform, dtype=torch.float64)
    tokens_b = choose_tokens(logits_bv, settings, uniform_b)
    assert bool((tokens_b < logits_bv.shape[1]).all())
    # One that is drawn at a temperature this low is not much below the likeliest.
    below_b = logits_bv.amax(dim=1) - logits_bv.gather(1, tokens_b[:, None])[:, 0]
    assert bool((below_b <= 3 * max(temperature, torch.finfo().tiny)).all())


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_refused(temperature: float, number: float) -> None:
    logits_bv = torch.zeros(2, 5)
    logits_bv[1, 2] = number
    uniform_b = torch.full((2,), 0.5, dtype=torch.float64)
    with pytest.raises(UserError, match="not finite"):
        choose_tokens(logits_bv, SamplingSettings(temperature=temperature), uniform_b)


def test_defaults_leave_logits_alone() -> None:
    logits_bv = torch.randn(2, 5)
    assert scale(logits_bv, 1.0) is logits_bv
    assert keep_top_k(logits_bv, 0) is logits_bv
    assert keep_nucleus(logits_bv, 1.0) is logits_bv


def test_a_rows_stream_is_its_own() -> None:
    together = row_uniforms(3, [0, 1, 2, 3], 8)
    assert torch.equal(row_uniforms(3, [2], 20)[0, :8], together[2])
    assert torch.equal(row_uniforms(3, [3, 0], 4), together[[3, 0], :4])
    assert len({float(number) for number in together.flatten()}) == together.numel()
    assert not torch.equal(row_uniforms(4, [0], 8), row_uniforms(3, [0], 8))
    assert bool(((together >= 0) & (together < 1)).all())


def test_every_setting_out_of_range_is_reported() -> None:
    settings = SamplingSettings(
        max_new_tokens=0, temperature=-1, top_k=-1, top_p=0, stop_tokens=(-1,), seed=-1
    )
    keys = [problem.key for problem in settings.check()]
    assert keys == ["max_new_tokens", "temperature", "top_k", "top_p", "stop_tokens", "seed"]
    assert SamplingSettings().check() == []
    assert [p.key for p in SamplingSettings(temperature=math.nan).check()] == ["temperature"]
