"""Numbers are read exactly, in all the ways in which people and models write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.evaluation.methods.answers import normalise_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,234.50", "1234.5"),
        ("18.", "18"),
        ("18.0 eggs", "18"),
        (".5", "0.5"),
        ("none", ""),
        ("007", "7"),
        # signs
        ("minus: -7", "-7"),
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("\uff0d5", "-5"),
        ("\u200e-5", "-5"),
        ("-0.0", "0"),
        ("negative 5", "-5"),
        ("\u2212 5", "-5"),
        ("x \u2212 5", "5"),
        ("10-5", "10"),
        ("GPT-4", "4"),
        ("(x)-5", "5"),
        ("温度是-5度", "-5"),
        ("零下5度", "-5"),
        # currencies and per cent
        ("-$12", "-12"),
        ("$-12", "-12"),
        ("- $12", "-12"),
        ("-US$12", "-12"),
        ("\u2212€12.00", "-12"),
        ("￥1，000", "1000"),
        ("50 %", "50"),
        ("50％", "50"),
        # thousands and decimals
        ("1 000 000", "1000000"),
        ("1\u202f000", "1000"),
        ("1\u00a0000,50", "1000.5"),
        ("1’000", "1000"),
        ("1_000", "1000"),
        ("12,34,567", "1234567"),
        ("1.234,56", "1234.56"),
        ("1.234.567", "1234567"),
        ("3,14", "3.14"),
        ("0,500", "0.5"),
        ("1,2,3", "1"),
        ("2024 100", "2024"),
        ("5.5.5", "5.5"),
        # digits of other scripts, words for zeros
        ("４２", "42"),
        ("٤٢", "42"),
        ("1٬000٫5", "1000.5"),
        ("答案：４２。", "42"),
        ("3.5万", "35000"),
        ("1万亿", "1000000000000"),
        ("5 million", "5000000"),
        # fractions and powers
        ("1/2", "0.5"),
        ("2/6", "1/3"),
        ("-1 1/2", "-1.5"),
        ("1½", "1.5"),
        ("1/0", "1"),
        ("10/12/2020", "10"),
        ("1e5元", "100000"),
        ("2.5E-3", "0.0025"),
        ("1 × 10^5", "100000"),
        ("1×10⁵", "100000"),
        ("10^6", "1000000"),
        ("10⁻²", "0.01"),
        ("1e99999", "1"),
        # LaTeX
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"-\dfrac{1}{3}", "-1/3"),
        (r"$1{,}000$", "1000"),
        (r"-\$12", "-12"),
        # more digits than a float, or than Python, makes a number of
        ("9007199254740993", "9007199254740993"),
        ("3.0000000000000000000001", "3.0000000000000000000001"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_number_has_one_form_however_it_is_written(text: str, number: str) -> None:
    assert normalise_number(text) == number


@given(st.integers(), st.integers(1, 10**12))
def test_the_form_is_exact(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    assert Fraction(normalise_number(f"{top}/{bottom}")) == value
    assert normalise_number(f"{top:,}") == normalise_number(f"{top:_}") == str(top)
